"""G3, T-13: a `claim` whose answer was lost, while the store stays away for one more call, holds its tasks for as long as the process lives.

`TaskManager._take` settles an unknown take at once, once; if that settle fails (the store is still away, or the caller is cancelled) the nonce is
forgotten: nobody ever settles it. The lease is renewed, so no reaper takes it back. The docstring of `claim` says "StoreError: ...; nothing is held".
"""
import sys, anyio, logging
from contextlib import asynccontextmanager
from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.errors import OutcomeUnknown, StoreError, StoreUnavailable
from converge.services.store.lease import LeaseSettings
from converge.services.store.handle import StoreHandle
logging.disable(logging.CRITICAL)
LEASE = 0.6

class Cut(MemoryStore):
    armed = away = False
    async def get(self, keys):
        if self.away: raise StoreUnavailable("away")
        return await super().get(keys)
    async def turn(self, batches, take, *, wake=()):
        answer = await super().turn(batches, take, wake=wake)
        if self.armed and take is not None:
            self.armed, self.away = False, True
            raise OutcomeUnknown("the connection was cut before the reply")
        return answer
    @asynccontextmanager
    async def reopen(self):  # the lease's own connection works throughout
        yield MemoryStore(core=self._core, bell=self._bell)

async def main() -> int:
    store = Cut()
    StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=LEASE))
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=0.05)
    ids = await tasks.submit_many([Task(pool_id="p") for _ in range(3)])
    assert not await tasks.claim("a", ["p"], types=["none"])  # opens the lease
    store.armed = True
    try:
        await tasks.claim("a", ["p"], limit=3)
        print("the test did not cut the answer"); return 1
    except StoreError as error:
        print("claim raised", type(error).__name__)
    store.away = False  # the outage lasted for one call
    async with store.reopen() as other:
        beside = TaskManager(other, poll_sec=0.05)
        got = 0
        for _ in range(60):  # 5 leases and 60 poll intervals, with two workers that keep polling
            got += len(await tasks.claim("a", ["p"], limit=3)) + len(await beside.claim("b", ["p"], limit=3))
            if got: break
            await anyio.sleep(0.05)
        states = [str((await beside.get(i)).state) for i in ids]
    await StoreHandle.of(store).close()
    if got:
        print("ok: claimed again"); return 0
    print(f"FAULT: 5 leases later nobody was given any of the 3 tasks; they are {states}, held for as long as this process lives"); return 1

sys.exit(anyio.run(main))
