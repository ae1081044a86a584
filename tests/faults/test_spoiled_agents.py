"""Agents that spoil their own object, or their class: their calls fail, and neither the node nor others notice."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import anyio
import pytest

from converge import Agent, Message, Node, Task
from converge.errors import HandlerFailed, InvalidValue
from converge.runtime.agents.decisions import AnswerMessage, ReportTask

GOOD = "good"
LOOPS = ["asyncio", "uvloop", "trio"] if os.environ.get("FULL_TESTS") == "1" else ["uvloop", "trio"]


@pytest.fixture(scope="module", params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loops."""
    return ("trio", {}) if request.param == "trio" else ("asyncio", {"use_uvloop": request.param == "uvloop"})


def raises(*_: Any, **__: Any) -> NoReturn:
    """See the name."""
    raise SystemExit("asked")


class Unknown:
    """A handler that answers no question but that it can be called."""

    def __getattribute__(self, name: str) -> Any:
        raises()

    def __call__(self, *_: Any) -> str:
        return GOOD


def spoils_look_ups(agent: Agent) -> None:
    """Raise whatever attribute is asked for."""
    type(agent).__getattribute__ = raises  # type: ignore[method-assign]


def spoils_operators(agent: Agent) -> None:
    """Raise whatever is done with the agent itself."""
    for name in ("__eq__", "__hash__", "__bool__", "__repr__", "__str__", "__len__", "__setattr__", "__delattr__"):
        setattr(type(agent), name, raises)


def spoils_class(agent: Agent) -> None:
    """Leave nothing of the class as it was checked."""
    names = ("concurrency", "topics", "capabilities", "task_types", "tick_sec", "inputs", "limits", "breaker", "tools")
    for name in (*names, "allowed_actions", "on_stop", "on_tick", "on_message", "decide", "id", "log", "node", "pools"):
        setattr(type(agent), name, Unknown())


def becomes_another(agent: Agent) -> None:
    """Be of another class, which has no handler."""
    agent.__class__ = type("Another", (Agent,), {})


def clears(agent: Agent) -> None:
    """Have no attribute of its own left."""
    vars(agent).clear()


def deletes(agent: Agent) -> None:
    """Have no id."""
    del agent.id


SPOILING: Mapping[str, Callable[[Any], None]] = {
    one.__name__: one for one in (spoils_look_ups, spoils_operators, spoils_class, becomes_another, clears, deletes)
}


class Spoiling(Agent):
    """Does to itself what its tasks say."""

    capabilities, topics, tick_sec = ("spoiling",), ("news",), 0.01

    async def on_task(self, task: Task) -> str:
        """See the class."""
        if (kind := task.inputs["kind"]) != GOOD:
            SPOILING[kind](self)
        return GOOD

    async def on_message(self, message: Message) -> str:
        """See the class."""
        return GOOD

    async def on_tick(self) -> None:
        """See the class."""

    async def on_stop(self) -> None:
        """See the class."""


class SpoilingDecider(Agent):
    """Does it in `decide`."""

    tick_sec = 0.01

    async def decide(self, messages: list[Message], tasks: list[Task]) -> Any:
        """See the class."""
        for one in tasks:
            if one.inputs["kind"] != GOOD:
                SPOILING[one.inputs["kind"]](self)
        answers = [AnswerMessage(message_id=one.id, payload=GOOD) for one in messages]
        return [*answers, *(ReportTask(task_id=one.id, result=GOOD) for one in tasks)]


class Steady(Agent):
    """Works beside them."""

    topics = ("news",)

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return GOOD

    async def on_message(self, message: Message) -> str:
        """See the class."""
        return GOOD


async def ended(node: Node, pool: str, kind: str) -> Task:
    """Return a task's only attempt, ended."""
    one = Task(pool_id=pool, inputs={"kind": kind}, max_attempts=1)
    return await node.tasks.result(await node.tasks.submit(one), timeout=20)


async def test_an_agent_that_spoils_itself_spoils_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(60):
        async with Node(grace_sec=1.0) as node:
            (steady,) = await node.spawn(Steady, pool="q")
            for cls in (Spoiling, SpoilingDecider):
                for kind in SPOILING:
                    mine: type[Agent] = type("Mine", (cls,), {})
                    (agent,) = await node.spawn(mine, pool=kind + cls.__name__)
                    agent_id = agent.id
                    await ended(node, kind + cls.__name__, kind)
                    later = await ended(node, kind + cls.__name__, GOOD)
                    if kind in ("clears", "deletes", "spoils_operators"):
                        assert later.result == GOOD, f"{kind}: {later.error}"
                        assert kind == "clears" or agent.id == agent_id
                    try:
                        assert await node.ask(agent_id, kind) == GOOD
                    except HandlerFailed:
                        assert kind in ("spoils_look_ups", "spoils_class", "becomes_another")
                    assert len(await node.publish("news", kind)) == 1
                    assert (await ended(node, "q", GOOD)).result == GOOD
                    assert await node.ask(steady.id, kind) == GOOD
                    assert node.health().is_ready and not node.parts.boundary.background.failures, kind
                    if cls is Spoiling:
                        await node.retire(agent, grace_sec=1.0)
                        assert agent_id not in node.agents


async def test_a_handler_is_asked_nothing_but_whether_it_can_be_called() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            agent: Agent
            (agent,) = await node.spawn(
                type("Odd", (Agent,), {"on_task": Unknown(), "on_message": Unknown()}), pool="p"
            )
            for _ in range(2):
                assert "asked" in (await ended(node, "p", GOOD)).error
            with pytest.raises(HandlerFailed):
                await node.ask(agent.id, GOOD)
            assert node.health().is_ready and not node.parts.boundary.background.failures


async def test_only_an_agent_of_the_node_is_retired() -> None:
    async with Node() as node:
        for one in (Agent(), object()):
            with pytest.raises(InvalidValue, match="agent"):
                await node.retire(one)  # type: ignore[arg-type]  # what it is to find out
