"""The store is away for a moment between two calls of one thing that an attempt does: it outlives that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from typing import Any

import pytest

from converge import Agent, MemoryStore, Node, Pool, Task
from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Range
from converge.errors import CalledOff, OutcomeUnknown, StoreBusy, StoreUnavailable
from converge.model.keys import ACTOR, HELD, READER, STEP
from converge.runtime.attempts import family
from converge.services.store.patience import attempts
from converge.testing._task.base import POOL, Process
from converge.testing._task.durable import begun


class Gone(MemoryStore):
    """A store that is away for the next reads of some family, and loses the answer of a step's next write."""

    def __init__(self) -> None:
        super().__init__()
        self.family: Any = None
        self.left = 0
        self.loses = False

    def _check(self, keys: Sequence[Sequence[Any]]) -> None:
        if self.left and any(key[0] is self.family for key in keys):
            self.left -= 1
            raise StoreUnavailable("it is away")

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self._check(keys)
        return await super().get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        self._check([one.prefix for one in ranges])
        return await super().scan(ranges)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        done = await super().commit(batches, wake=wake)
        if self.loses and any(key[0] is STEP for batch in batches for key, _ in batch.puts):
            self.loses = False
            raise OutcomeUnknown("no answer")
        return done


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    process = Process(Gone(), lease_sec=30.0)
    await process.pools.create_pool(Pool(id=POOL))
    yield process
    await process.handle.close()


def away(process: Process, family: Any, calls: int = 2) -> Gone:
    assert isinstance(process.store, Gone)
    process.store.family, process.store.left = family, calls
    return process.store


async def test_while_the_readers_of_output_are_looked_up(process: Process) -> None:
    work = await begun(process)
    store = away(process, READER)
    await work.attempt.emit("once")
    assert not store.left
    assert (await anext(process.tasks.watch(work.task.id))).data == "once"


async def test_while_a_write_without_an_answer_is_looked_up(process: Process) -> None:
    work = await begun(process)
    await process.tasks.signal(work.task.id, "go", 1)
    store = away(process, STEP)
    store.loses = True
    assert await work.attempt.wait_for(("go",), None) == 1
    assert not store.left and not store.loses


async def test_while_a_cancel_with_grace_is_looked_up(process: Process) -> None:
    work = await begun(process)
    assert await process.tasks.cancel(work.task.id, grace_sec=60)
    store = away(process, HELD)
    assert await work.step("recorded", lambda: 1) == 1
    assert not store.left
    with pytest.raises(CalledOff):
        await work.step("told", lambda: 2)


class Answers(Agent):
    """Counts its messages."""

    async def on_ask(self, state: Any, message: Any) -> tuple[Any, Any]:
        return (state or 0) + 1, message


async def test_while_the_state_of_a_virtual_agent_is_looked_up() -> None:
    store = Gone()
    async with Node(store=store, poll_sec=0.1) as node:
        await node.spawn(Answers, pool="p")
        assert await node.agent("a", pool="p").ask("first") == "first"
        store.family, store.left = ACTOR, 2
        assert await node.agent("a", pool="p").ask("second") == "second"
        assert not store.left
        assert [one.attempts for one in await node.tasks.list(limit=10)] == [1, 1], "its first attempt outlived it"


async def test_a_child_whose_lane_keeps_moving_is_not_said_to_be_there(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = await begun(process)

    async def refused(*args: Any, **more: Any) -> bool:
        return False

    monkeypatch.setattr(work.attempt.ledger, "record", refused)
    monkeypatch.setattr(family, "attempts", partial(attempts, within_sec=0.0))
    with pytest.raises(StoreBusy):
        await work.attempt.spawn(Task(pool_id=POOL), "c")
