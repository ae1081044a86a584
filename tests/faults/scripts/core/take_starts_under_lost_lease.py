"""G6, F-table "paused": a take that was under way when the lease was lost hands its tasks to handlers all the same, under the dead lease.

`Feed.lost()` cancels what runs and takes the queue back once; `_take_in` does not look whose lease the take was for. After a stall of the store longer
than the lease (a failover, a paused server), the late answer starts handlers whose claims `forget_lease` has just given back: each such task is run twice
at once and has an attempt counted, though this process could know.
"""
import sys, time, anyio, logging
from contextlib import asynccontextmanager
from converge import Agent, MemoryStore, Node, Pool, PoolManager, Task, TaskManager
logging.disable(logging.CRITICAL)
LEASE = 0.6
starts, lost_at = [], []

class Stalled(MemoryStore):
    stalled = on_take = False
    async def _wait(self, answer):
        while Stalled.stalled: await anyio.sleep(0.005)
        return answer
    async def get(self, keys): await self._wait(0); return await super().get(keys)
    async def scan(self, ranges): await self._wait(0); return await super().scan(ranges)
    async def time(self): await self._wait(0); return await super().time()
    async def commit(self, batches, *, wake=()):
        await self._wait(0)
        return await super().commit(batches, wake=wake)
    async def turn(self, batches, take, *, wake=()):
        await self._wait(0)
        answer = await super().turn(batches, take, wake=wake)
        if take is not None and answer.taken and answer.taken.rests and Stalled.on_take:
            Stalled.on_take, Stalled.stalled = False, True  # the server has done it, and stalls
        return await self._wait(answer)
    @asynccontextmanager
    async def reopen(self):
        yield Stalled(core=self._core, bell=self._bell)

class Slow(Agent):
    async def on_task(self, task):
        starts.append((time.monotonic(), task.token))
        await anyio.sleep(1.0)

async def main() -> int:
    store = Stalled()
    await PoolManager(store).create_pool(Pool(id="p"))
    direct = MemoryStore(core=store._core, bell=store._bell)
    async with Node(store=store, lease_sec=LEASE, poll_sec=0.1, grace_sec=0.2) as node:
        await node.spawn(Slow, count=2, pool="p")
        await anyio.sleep(0.2)
        first = node.handle.lease_opened
        Stalled.on_take = True
        id_ = await TaskManager(direct).submit(Task(pool_id="p", max_attempts=3))
        while not Stalled.stalled: await anyio.sleep(0.005)
        while first.remaining_sec() > 0: await anyio.sleep(0.005)
        await anyio.sleep(0.1)
        lost = time.monotonic()
        Stalled.stalled = False
        await anyio.sleep(2.5)
        task = await TaskManager(direct).get(id_)
    after = [f"{at - lost:+.2f} s (token {token})" for at, token in starts]
    print(f"lease lost, then the store answers: handler started {len(starts)} times, at {after}; attempts {task.attempts}, {task.state}")
    print("ok" if len(starts) == 1 else "FAULT"); return 0 if len(starts) == 1 else 1
sys.exit(anyio.run(main))
