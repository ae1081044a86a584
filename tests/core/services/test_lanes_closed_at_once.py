"""Whoever closes lanes the moment they are empty stops nobody: a lane is opened in the same step that puts a task in
it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Any

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager
from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Channel, Committed, Conflict, Range, Take, Turned
from converge.model.keys import LANE, READY

NO_PATIENCE_SEC = 30.0
"""Each step takes a few calls; tried again for as long as this it would never end."""


class ClosesLanes(MemoryStore):
    """Before each write of anybody's, another process has closed each lane that is empty."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        await self._close()
        return await super().commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        await self._close()
        return await super().turn(batches, take, wake=wake)

    async def _close(self) -> None:
        (lanes,) = await self.scan([Range(LANE(), None, 100)])
        for lane in lanes:
            (first,) = await self.scan([Range(READY(lane.key[2]), None, 1)])
            if not first:
                await super().commit([Batch([(lane.key, lane.revision)], (), [lane.key])])


@pytest.fixture
async def tasks() -> AsyncIterator[TaskManager]:
    store = ClosesLanes()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=0.0)
    with anyio.fail_after(NO_PATIENCE_SEC):
        yield tasks
    await tasks._handle.close()


def in_lane(number: int, **more: Any) -> Task:
    return Task(pool_id="p", type=f"t{number % 3}", retry_delay_sec=0.0, **more)


async def test_tasks_of_several_lanes_are_submitted(tasks: TaskManager) -> None:
    ids = await tasks.submit_many([in_lane(number) for number in range(9)])
    assert {task.id for task in await tasks.claim("a", ["p"], limit=9)} == set(ids)


async def test_tasks_of_one_ordering_key_and_several_lanes_are_submitted_and_follow_each_other(
    tasks: TaskManager,
) -> None:
    ids = await tasks.submit_many([in_lane(number, ordering_key="k") for number in range(9)])
    for id_ in ids:
        (task,) = await tasks.claim("a", ["p"], limit=9)
        assert task.id == id_
        await tasks.complete(task)


async def test_what_is_given_back_is_ready_again(tasks: TaskManager) -> None:
    ids = await tasks.submit_many([in_lane(number) for number in range(6)])
    for task in await tasks.claim("a", ["p"], limit=6):
        await tasks.release(task)
    assert {task.id for task in await tasks.claim("a", ["p"], limit=6)} == set(ids)


async def test_what_failed_is_tried_again(tasks: TaskManager) -> None:
    ids = await tasks.submit_many([in_lane(number) for number in range(6)])
    for task in await tasks.claim("a", ["p"], limit=6):
        await tasks.fail(task, "once")
    again: set[str] = set()
    while len(again) < len(ids):
        again |= {task.id for task in await tasks.claim("b", ["p"], limit=6)}
        await anyio.sleep(0.001)  # until it is due, on the store's clock
    assert again == set(ids)
