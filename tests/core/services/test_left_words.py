"""What was asked by who waits no longer: what was not sent is never sent, and what may have been is unknown."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import inf

import anyio
import pytest

from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.contracts.store import Batch, Channel, Committed, Conflict
from converge.errors import StoreUnavailable
from converge.model.keys import SIGNAL
from converge.services.store.limits import LIMIT, Limit
from converge.services.store.pages import read_all
from converge.services.store.reads import Ask, Rounds


class Gated(MemoryStore):
    """Answers what stores signals when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.gate = anyio.Event(), anyio.Event()
        self.gate.set()

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        if any(key[0] is SIGNAL for batch in batches for key, _ in batch.puts):
            self.asked.set()
            await self.gate.wait()
        return await super().commit(batches, wake=wake)

    def shut(self) -> None:
        self.asked, self.gate = anyio.Event(), anyio.Event()


@pytest.fixture
async def store() -> Gated:
    return Gated()


@pytest.fixture
async def signalled(store: Gated) -> tuple[TaskManager, str]:
    """A task that was sent a signal, which has raised the format."""
    tasks = TaskManager(store)
    await PoolManager(store).create_pool(Pool(id="p"))
    id_ = await tasks.submit(Task(pool_id="p"))
    await tasks.signal(id_, "first")
    return tasks, id_


async def test_a_signal_of_which_nothing_was_sent_in_time_is_sent_with_no_later_one(
    store: Gated, signalled: tuple[TaskManager, str]
) -> None:
    tasks, id_ = signalled
    store.shut()
    async with anyio.create_task_group() as group:
        group.start_soon(tasks.signal, id_, "second")
        await store.asked.wait()
        with pytest.raises(StoreUnavailable, match="nothing was changed"):
            await tasks.signal(id_, "third", timeout=0.1)
        store.gate.set()
    await tasks.signal(id_, "fourth")
    assert len(await read_all(store, SIGNAL())) == 3


async def test_who_leaves_a_round_that_has_begun_may_have_changed_something_and_who_leaves_before_has_not() -> None:
    gates, begun = [anyio.Event(), anyio.Event()], list[list[str]]()

    async def run(asks: Sequence[Ask[str]]) -> None:
        begun.append([ask.request for ask in asks])
        await gates[len(begun) - 1].wait()
        for ask in asks:
            ask.done = True

    rounds, limits, scopes = Rounds(run, 2, is_whole=True), dict[str, Limit](), dict[str, anyio.CancelScope]()

    async def ask(name: str) -> None:
        limits[name], scopes[name] = Limit(inf), anyio.CancelScope()
        LIMIT.set(limits[name])
        with scopes[name]:
            await rounds.ask(name)

    async with anyio.create_task_group() as group:
        for name in ("first", "second", "third", "fourth"):
            group.start_soon(ask, name)
            await anyio.wait_all_tasks_blocked()
        gates[0].set()
        await anyio.wait_all_tasks_blocked()
        assert begun == [["first"], ["second", "third"]]
        for name in ("third", "fourth"):
            scopes[name].cancel()
        await anyio.wait_all_tasks_blocked()
        assert [limits[name].is_written for name in ("third", "fourth")] == [True, False]
        gates[1].set()
    assert begun == [["first"], ["second", "third"]], "what nobody waits for was sent"
