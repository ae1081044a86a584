"""Design 6 "while renewals reach the store, live work is never taken away": one renewal whose reply is lost in silence costs the lease and all handlers.

`Lease._renew_from` waits lease/2 for the answer, then does not look whether the renewal arrived (it does so for OutcomeUnknown only): the next try meets a
conflict, `_look_again` finds the key, moves no deadline, and waits once more; by then 0.9 lease have passed. In the store the lease runs on all the time.
"""
import sys, time, anyio, logging
from contextlib import asynccontextmanager
from converge import MemoryStore
from converge.model.keys import EXPIRY
from converge.services.store.lease import LeaseSettings
from converge.services.store.handle import StoreHandle
logging.disable(logging.CRITICAL)
LEASE = 3.0

class Lossy(MemoryStore):
    lost = 0
    async def commit(self, batches, *, wake=()):
        answer = await super().commit(batches, wake=wake)
        if not Lossy.lost:
            Lossy.lost = 1
            await anyio.sleep(1e6)  # the request arrived, the reply never will: a dropped packet, a NAT that forgot the connection
        return answer

class Main(MemoryStore):
    @asynccontextmanager
    async def reopen(self):
        yield Lossy(core=self._core, bell=self._bell)

async def main() -> int:
    store = Main()
    opened = StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=LEASE))
    lease = await opened.lease()
    least, in_store, until = 9.0, 0.0, time.monotonic() + 2 * LEASE
    while time.monotonic() < until:
        lease.beat()
        if lease.remaining_sec() < least:
            (entry,) = await store.get([EXPIRY(lease.id)])
            least, in_store = lease.remaining_sec(), (int(entry.value) - await store.time()) / 1e6 if entry else -1
        if least <= 0: break
        await anyio.sleep(0.01)
    await opened.close()
    if least <= 0:
        print(f"FAULT: given up with {in_store:.2f} s of {LEASE:g} s left in the store, which answers all other calls at once"); return 1
    print(f"ok: never less than {least:.2f} s left"); return 0
sys.exit(anyio.run(main))
