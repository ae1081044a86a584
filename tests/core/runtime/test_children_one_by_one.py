"""What an attempt has read that is parked, the next one of the process need not read: work grows with what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from converge import Agent, MemoryStore, Node, Task, TaskState
from converge.contracts.store import Entry
from converge.ids import id_bytes
from converge.model.keys import ENDED, STEP
from converge.services.durable.limits import KNOWN_FROM
from converge.testing.fixtures import wait_until

ENDED_ALONE = 8
"""Children that end while the parent is parked, the others end beside each other."""


class Read:
    """What is read of one task's records: entries, and calls that name them."""

    def __init__(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.id = b""
        self.entries = self.calls = 0
        for name in ("get", "scan"):
            monkeypatch.setattr(store, name, self._counted(getattr(store, name)))

    def _counted(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        async def call(*args: Any, **more: Any) -> Any:
            answer = await plain(*args, **more)
            entries: list[Entry] = []
            for one in answer:
                entries += [one] if isinstance(one, Entry) else one or ()
            own = sum(one.key[0] in (STEP, ENDED) and one.key[1] == self.id for one in entries)
            self.entries += own
            self.calls += bool(own)
            return answer

        return call


class Team(Agent):
    """One takes its children as they end, in one slot with them; a child waits until it is told to end."""

    async def on_task(self, task: Task) -> Any:
        if task.type == "child":
            return await task.wait_for("go")
        children = [await task.spawn(Task(pool_id="p", type="child"), f"c{n}") for n in range(task.inputs["count"])]
        return [result async for _, result in task.as_completed(*children)]


class Plain(Team):
    """The same in a plain handler."""

    def on_task(self, task: Task) -> Any:  # both kinds are handlers
        call = task.blocking
        if task.type == "child":
            return call.wait_for("go")
        children = [call.spawn(Task(pool_id="p", type="child"), f"c{n}") for n in range(task.inputs["count"])]
        return [result for _, result in call.as_completed(*children)]


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    yield MemoryStore()


@pytest.mark.parametrize("agent", [Team, Plain])
async def test_children_that_end_one_by_one_cost_the_same_each(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, agent: type[Agent]
) -> None:
    read, found = Read(store, monkeypatch), list[tuple[int, int]]()
    async with Node(store=store, poll_sec=0.2) as node:
        await node.spawn(agent, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p", inputs={"count": KNOWN_FROM}))

        async def waits(parks: int) -> bool:
            shown = await node.tasks.get(id_)
            return shown.state == TaskState.WAITING and parks <= shown.parks

        await wait_until(lambda: waits(1), timeout=60)
        children = [one.id for one in await node.tasks.children(id_)]
        for number, child in enumerate(children[:ENDED_ALONE]):
            read.id, read.entries, read.calls = id_bytes("task", id_), 0, 0
            await node.tasks.signal(child, "go", number)
            await wait_until(partial(waits, number + 2), timeout=60)
            found.append((read.entries, read.calls))
        for number, child in enumerate(children[ENDED_ALONE:], ENDED_ALONE):
            await node.tasks.signal(child, "go", number)
        done = await node.tasks.result(id_, timeout=60)
    assert sorted(done.result) == list(range(KNOWN_FROM)) and done.result[:ENDED_ALONE] == list(range(ENDED_ALONE))
    assert done.attempts == 1 and found == [(1, 1)] * ENDED_ALONE


SOONER_SEC = 40.0
"""Less than a pause of the longest polls, which vary."""


class Family(Agent):
    """A parent that waits for its child, or ends before it; the child waits for a signal."""

    async def on_task(self, task: Task) -> Any:
        if task.type == "child":
            return await task.wait_for("go")
        child = await task.spawn(Task(pool_id="p", type="child"))
        await task.wait_for("ready")
        if task.type == "leaves":
            return child.id
        return await task.gather(child) if task.type == "gather" else [(await task.first(child))[1]]


@pytest.mark.parametrize("how", ["gather", "first", "leaves"])
async def test_the_end_of_a_child_or_parent_is_acted_on_without_a_poll(store: MemoryStore, how: str) -> None:
    async with Node(store=store, poll_sec=60.0) as node:
        await node.spawn(Family, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p", type=how))

        async def is_waiting(task_id: str, what: str) -> bool:
            return what in (await node.tasks.get(task_id)).waiting_for

        await wait_until(partial(is_waiting, id_, "ready"), timeout=SOONER_SEC)
        (child,) = await node.tasks.children(id_)
        await node.tasks.signal(id_, "ready")
        if how == "leaves":
            assert (await node.tasks.result(id_, timeout=SOONER_SEC)).result == child.id
            assert (await node.tasks.result(child.id, timeout=SOONER_SEC)).state == TaskState.CANCELLED
            return
        await wait_until(partial(is_waiting, id_, "child"), timeout=SOONER_SEC)
        await node.tasks.signal(child.id, "go", 7)
        done = await node.tasks.result(id_, timeout=SOONER_SEC)
        assert done.result == [7], done.error
