"""What a call on a task says where the answer of its write was lost: what it has done itself, and no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

import pytest

from converge import MemoryStore, Pool, TaskManager, TaskState
from converge.contracts.store import Batch, Channel, Committed, Conflict
from converge.errors import NotWaiting, OutcomeUnknown
from converge.model.keys import STATE
from converge.testing._task.base import POOL, Process
from converge.testing._task.durable import begun


class Loses(MemoryStore):
    """A store that loses the answer of the next write of a task's state; `instead` happens in place of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loses = False
        self.instead: Callable[[], Awaitable[Any]] | None = None

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        if not self.loses or not any(key[0] is STATE for batch in batches for key, _ in batch.puts):
            return await super().commit(batches, wake=wake)
        self.loses = False
        await (self.instead() if self.instead is not None else super().commit(batches, wake=wake))
        raise OutcomeUnknown("no answer")


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    process = Process(Loses(), lease_sec=30.0)
    await process.pools.create_pool(Pool(id=POOL))
    yield process
    await process.handle.close()


def lose(process: Process, instead: Callable[[], Awaitable[Any]] | None = None) -> None:
    store = process.store
    assert isinstance(store, Loses)
    store.loses, store.instead = True, instead


async def waiting(process: Process) -> str:
    work = await begun(process)
    assert await work.parks(work.attempt.wait_for(("go",), None))
    return work.task.id


@pytest.mark.parametrize("is_own", [True, False])
async def test_a_cancel_with_grace(process: Process, is_own: bool) -> None:
    work = await begun(process)
    other = TaskManager(process.store)
    lose(process, None if is_own else partial(other.cancel, work.task.id, grace_sec=90, why="another"))
    assert await process.tasks.cancel(work.task.id, grace_sec=60) is is_own


@pytest.mark.parametrize("result", [None, "another's", "mine"])
async def test_a_completion_by_its_id(process: Process, result: str | None) -> None:
    id_ = await waiting(process)
    other = TaskManager(process.store)
    lose(process, None if result is None else partial(other.complete, id_, result))
    if result == "another's":
        with pytest.raises(NotWaiting):
            await process.tasks.complete(id_, "mine")
    else:
        await process.tasks.complete(id_, "mine")
    assert (await process.tasks.get(id_)).result == (result or "mine")


async def test_a_completion_of_a_task_that_was_cancelled_meanwhile(process: Process) -> None:
    id_ = await waiting(process)
    lose(process, partial(TaskManager(process.store).cancel, id_))
    with pytest.raises(NotWaiting):
        await process.tasks.complete(id_, None)
    assert (await process.tasks.get(id_)).state == TaskState.CANCELLED
