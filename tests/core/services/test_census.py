"""The census counts each task of a pool at its place, and those of other pools not at all."""

from __future__ import annotations

from datetime import UTC, datetime

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch
from converge.ids import id_bytes
from converge.model.keys import LANE
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.tasks.counts import Census, census
from converge.services.tasks.surroundings import read_task

NEVER = datetime(2099, 1, 1, tzinfo=UTC)


async def test_each_task_is_counted_at_its_place_in_its_pool() -> None:
    store = MemoryStore()
    pools, tasks = PoolManager(store), TaskManager(store)
    for pool_id in ("a", "b"):
        await pools.create_pool(Pool(id=pool_id))
        for _ in range(3):
            await tasks.submit(Task(pool_id=pool_id))
        completed, failed, _held = await tasks.claim("x", [pool_id], limit=3)
        await tasks.complete(completed)
        await tasks.fail(failed, "no", retry=False)
        await tasks.cancel(await tasks.submit(Task(pool_id=pool_id)))
    await tasks.submit_many([Task(pool_id="a", type="t"), Task(pool_id="a"), Task(pool_id="a", not_before=NEVER)])
    for _ in range(3):
        await tasks.submit(Task(pool_id="b", ordering_key="k"))
    assert await census(store, ["a", "b"]) == {
        "a": Census(ready=2, later=1, held=1, completed=1, failed=1, cancelled=1),
        "b": Census(ready=1, waiting=2, held=1, completed=1, failed=1, cancelled=1),
    }
    assert (await census(store, ["a"]))["a"].done == 3
    await tasks._handle.close()


async def test_a_task_that_is_not_due_is_counted_though_its_lane_was_closed() -> None:
    store = MemoryStore()
    tasks = TaskManager(store)
    await PoolManager(store).create_pool(Pool(id="a"))
    spec, _ = await read_task(store, id_bytes("task id", await tasks.submit(Task(pool_id="a", not_before=NEVER))))
    await store.commit([Batch((), (), [LANE("a", bytes.fromhex(spec.lane))])])
    assert await census(store, ["a", "gone"]) == {"a": Census(later=1), "gone": Census()}
