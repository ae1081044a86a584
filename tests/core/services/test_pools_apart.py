"""Nothing that core asks of a store mixes the tasks of two pools: each may be kept in a store of its own."""

from __future__ import annotations

import anyio
import pytest

from converge import Agent, MemoryStore, Node, Pool, PoolManager, Task, TaskManager
from converge.contracts.store import Batch, Range, Store, Take
from converge.model.keys import DEAD, DONE, HELD, LANE, NOTICE, READY, TASK
from converge.services.store.handle import StoreHandle
from converge.services.tasks.sweep import Sweep
from converge.testing._task.apart import PoolsApart
from converge.testing.checked import CallerBroke


async def filled() -> Store:
    """A checked store with tasks in two pools."""
    store = PoolsApart(MemoryStore())
    for pool in ("p", "q"):
        await PoolManager(store).create_pool(Pool(id=pool))
    await TaskManager(store).submit_many([Task(pool_id=pool, type=kind) for pool in "pq" for kind in "ab"] * 5)
    return store


async def test_a_claim_of_two_pools_takes_of_the_one_whose_task_is_best_and_then_of_the_other() -> None:
    store = await filled()
    tasks = TaskManager(store)
    first, second = [await tasks.claim("a", ["p", "q"], limit=15) for _ in range(2)]
    assert [{task.pool_id for task in some} for some in (first, second)] == [{"p"}, {"q"}]
    assert len(first) == len(second) == 10
    await tasks.submit(Task(pool_id="q", priority=500))
    await tasks.submit(Task(pool_id="p"))
    (best,) = await TaskManager(store).claim("a", ["p", "q"], limit=1)
    assert (best.pool_id, best.priority) == ("q", 500)
    await StoreHandle.of(store).close()


async def test_what_a_dead_process_held_of_two_pools_goes_back_apart() -> None:
    store = await filled()
    async with store.reopen() as other:
        tasks = TaskManager(other)
        assert len(await tasks.claim("a", ["p", "q"], limit=10) + await tasks.claim("a", ["p", "q"], limit=10)) == 20
        await StoreHandle.of(other).close()
    sweep = Sweep(StoreHandle.of(store))
    with anyio.fail_after(20):
        while await sweep.page():
            pass
    assert len(await TaskManager(store).claim("a", ["p"], limit=20)) == 10
    await StoreHandle.of(store).close()


async def test_what_a_dead_process_was_told_of_tasks_of_two_pools_goes_apart() -> None:
    store = await filled()
    async with store.reopen() as other:
        tasks = TaskManager(other)
        claims = [await tasks.claim("a", [pool], limit=1) for pool in "pq"]
        assert all([await TaskManager(store).cancel(task.id) for (task,) in claims])
        lease = (await StoreHandle.of(other).lease()).id
        await StoreHandle.of(other).close()
    sweep = Sweep(StoreHandle.of(store))
    with anyio.fail_after(20):
        while await sweep.page():
            pass
    assert list(await store.scan([Range(NOTICE(lease)), Range(DEAD(lease))])) == [[], []]
    await StoreHandle.of(store).close()


A, B = b"a" * 16, b"b" * 16


async def test_a_step_that_mixes_two_pools_is_found() -> None:
    store = PoolsApart(MemoryStore())
    with pytest.raises(CallerBroke, match="no batch writes tasks of two pools"):
        await store.commit([Batch(puts=[(TASK(A), b'{"pool":"p"}'), (DONE("q", "FAILED", 1, B), b"")])])
    await store.commit([Batch(puts=[(LANE("p", A), b"")]), Batch(puts=[(LANE("q", B), b"")])])
    with pytest.raises(CallerBroke, match="no take has ranges of two pools"):
        await store.turn([], Take([Range(READY(A)), Range(READY(B))], 1, HELD(A), (B,)))


class InTwoPools(Agent):
    """Works for both."""

    concurrency = 4

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return task.pool_id


async def test_an_agent_of_two_pools_completes_the_tasks_of_both() -> None:
    with anyio.fail_after(30):
        async with Node() as node:
            await node.spawn(InTwoPools, pool=["p", "q"])
            ids = await node.tasks.submit_many([Task(pool_id=pool) for pool in "pq"] * 20)
            assert [(await node.tasks.result(id_)).result for id_ in ids] == list("pq") * 20
