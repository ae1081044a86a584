"""Waiting for results: who waits is told, whoever else leaves, and whatever the store does meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import anyio
import anyio.lowlevel
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Entry, Key
from converge.errors import StoreUnavailable
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.tasks.wait import Results
from converge.testing.fixtures import wait_until

NEVER_SEC = 3_600.0


class Flaky(MemoryStore):
    """A memory store whose reads fail while `is_away`."""

    is_away = False

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().get(keys)


@pytest.fixture
async def store() -> AsyncIterator[Flaky]:
    store = Flaky()
    await PoolManager(store).create_pool(Pool(id="p"))
    yield store
    await TaskManager(store)._handle.close()


async def claimed(tasks: TaskManager, count: int) -> list[Task]:
    await tasks.submit_many([Task(pool_id="p") for _ in range(count)])
    return await tasks.claim("agent", ["p"], limit=count)


async def test_one_who_waits_is_told_after_the_leader_and_its_heir_left_at_once(store: Flaky) -> None:
    tasks = TaskManager(store, poll_sec=NEVER_SEC)
    first, second, third = await claimed(tasks, 3)
    ended: list[str] = []

    async def wait(task: Task) -> None:
        ended.append((await tasks.result(task.id)).id)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for task in (first, second, third):
                group.start_soon(wait, task)
            await anyio.wait_all_tasks_blocked()
            async with anyio.create_task_group() as finishing:  # one call: the leader sees both at one look
                finishing.start_soon(tasks.complete, first)
                finishing.start_soon(tasks.complete, second)
            await wait_until(lambda: len(ended) == 2, timeout=20)
            await tasks.complete(third)
    assert sorted(ended) == sorted([first.id, second.id, third.id])


@pytest.mark.parametrize("turns", range(8))
async def test_one_who_waits_is_told_after_the_leader_and_its_heir_were_cancelled(store: Flaky, turns: int) -> None:
    tasks = TaskManager(store, poll_sec=NEVER_SEC)
    first, second = await claimed(tasks, 2)
    leader, heir = anyio.CancelScope(), anyio.CancelScope()
    ended: list[str] = []

    async def wait(task: Task, scope: anyio.CancelScope) -> None:
        with scope:
            ended.append((await tasks.result(task.id)).id)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for task, scope in ((first, leader), (first, heir), (second, anyio.CancelScope())):
                group.start_soon(wait, task, scope)
                await anyio.wait_all_tasks_blocked()
            leader.cancel()
            for _ in range(turns):  # somewhere here the heir is told to lead, and leaves before it does
                await anyio.lowlevel.checkpoint()
            heir.cancel()
            await anyio.wait_all_tasks_blocked()
            await tasks.complete(second)
    assert ended == [second.id]


async def test_a_wait_outlasts_an_outage_of_the_store(store: Flaky) -> None:
    tasks = TaskManager(store, poll_sec=0.02)
    (task,) = await claimed(tasks, 1)
    results = Results(tasks._handle, 0.02)
    states: list[str] = []

    async def wait() -> None:
        await results.wait(bytes.fromhex(task.id.replace("-", "")))
        states.append("ended")

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            store.is_away = True
            await anyio.sleep(0.1)  # several looks fail
            assert states == []
            store.is_away = False
            await tasks.complete(task)
    assert states == ["ended"]
