"""Sweeps go past what nobody can read, and past what is held."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch
from converge.machines.task import TaskState
from converge.model.keys import TASK
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.pools import PoolManager
from converge.services.sweep import PAGE
from converge.services.tasks import TaskManager
from converge.testing.fixtures import wait_until


async def test_a_record_that_nobody_can_read_keeps_no_other_task_from_its_time() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=0.0)
    due = datetime.now(UTC) + timedelta(seconds=0.1)
    torn, whole = await tasks.submit_many([Task(pool_id="p", not_before=due) for _ in range(2)])
    await store.commit([Batch((), ((TASK(bytes.fromhex(torn.replace("-", ""))), b'{"no": "task"}'),))])
    claimed: list[str] = []
    with anyio.fail_after(5):
        while not claimed:
            await anyio.sleep(0.02)
            claimed = [task.id for task in await tasks.claim("agent", ["p"], limit=10)]
    assert claimed == [whole]
    await tasks._opened.close()


async def test_a_page_of_held_tasks_past_their_deadline_hides_no_waiting_one_from_the_sweep() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=3_600.0)
    deadline = datetime.now(UTC) + timedelta(seconds=0.4)
    await tasks.submit_many([Task(pool_id="p", deadline=deadline) for _ in range(PAGE)])
    assert len(await tasks.claim("agent", ["p"], limit=PAGE)) == PAGE
    waiting = await tasks.submit(Task(pool_id="p", deadline=deadline + timedelta(microseconds=1), required_capabilities=["nobody-has-it"]))
    await wait_until(lambda: datetime.now(UTC) > deadline + timedelta(milliseconds=50), what="the deadline")
    await tasks._sweep.fail_late()
    assert (await tasks.get(waiting)).state == TaskState.FAILED
    await tasks._opened.close()
