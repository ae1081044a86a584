"""A question that would wait for itself is refused at once, and no other one is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, Capability, Message, Node, Task
from converge.errors import AskCycle, HandlerFailed
from converge.services.messages.chains import AGENTS


class Relay(Agent):
    """Passes a question on to the next of a list, and answers what that one does; a task asks as well."""

    async def on_message(self, message: Message) -> object:
        if not message.payload:
            return "end"
        first, *rest = message.payload
        if first == "later":
            background.start_soon(self.ask, rest[0], rest[1:])
            return "begun"
        to = Capability(first) if first == "able" else first
        try:
            return await self.ask(to, rest, timeout=60)
        except AskCycle as error:
            seen.append(error)
            raise

    async def on_task(self, task: Task) -> object:
        return await self.ask(self.id if task.inputs["to"] == "self" else task.inputs["to"], task.inputs["path"])


class Able(Relay):
    """May be chosen."""

    capabilities = ("able",)


seen: list[AskCycle] = []
background: Any = None


@pytest.fixture(params=["one process", "two processes"])
async def relays(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Relay]]:
    global background  # a handler's background task needs a group to live in
    where: dict[str, Any] = {
        "store": f"file:{tmp_path / 's.db'}",
        "plugins": ["tcp"],
        "poll_sec": 0.1,
        "grace_sec": 0.0,
    }
    async with (
        Node(**where, transport="tcp://127.0.0.1:0") as node,
        Node(**where, transport="tcp://127.0.0.1:0") as far,
        anyio.create_task_group() as background,
    ):
        seen.clear()
        other = node if request.param == "one process" else far
        yield [*await node.spawn(Relay, count=2, pool="p"), *await other.spawn(Relay, count=2)]
        background.cancel_scope.cancel()


async def test_an_agent_that_asks_itself_from_a_message_is_refused_with_the_cycle(relays: list[Relay]) -> None:
    a, *_ = relays
    with anyio.fail_after(20), pytest.raises(HandlerFailed, match="AskCycle"):
        await a.node.ask(a.id, [a.id], timeout=60)
    assert seen[0].chain == (a.id, a.id) and f"{a.id:.16} asks {a.id:.16}" in str(seen[0])


async def test_two_agents_that_ask_each_other_are_refused_and_three_too(relays: list[Relay]) -> None:
    a, b, c, d = relays
    for path in ([c, a], [c, d, b, c]):
        seen.clear()
        with anyio.fail_after(20), pytest.raises(HandlerFailed, match="AskCycle"):
            await a.node.ask(a.id, [one.id for one in path], timeout=60)
        assert seen[0].chain == (a.id, *(one.id for one in path))


async def test_a_question_that_an_agent_can_answer_is_not_refused(relays: list[Relay]) -> None:
    a, b, c, d = relays
    node = a.node
    assert await node.ask(a.id, [c.id, b.id, d.id]) == "end"  # nobody twice
    assert await node.ask(a.id, ["later", c.id, a.id]) == "begun"  # its handler is over
    task_id = await node.tasks.submit(Task(pool_id="p", inputs={"to": "self", "path": []}))
    assert (await node.tasks.result(task_id, timeout=20)).result == "end"
    assert not seen


async def test_by_capability_whoever_waits_in_the_chain_is_passed_over(relays: list[Relay]) -> None:
    a, *_, d = relays
    await a.node.spawn(Able, count=2)
    await d.node.spawn(Able, count=2)
    await a.node.discovery.refresh()
    await d.node.discovery.refresh()
    with anyio.fail_after(50):
        assert await a.node.ask(Capability("able"), ["able"] * 3, timeout=60) == "end"
        assert not seen, "each of the four is asked once"
        with pytest.raises(HandlerFailed, match="AskCycle"):
            await a.node.ask(Capability("able"), ["able"] * 4, timeout=60)
    assert len(seen[0].chain) == 5


async def test_a_chain_is_no_longer_than_its_bound(relays: list[Relay]) -> None:
    many = await relays[0].node.spawn(Relay, count=AGENTS + 2)
    path = [one.id for one in many]
    assert await many[0].node.ask(path[0], path[1:AGENTS]) == "end"
    with pytest.raises(HandlerFailed, match="more than 16 questions"):
        await many[0].node.ask(path[0], path[1:])
