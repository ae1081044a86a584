"""No handler of an agent runs beside its `on_stop`: what has not ended in the grace time is cancelled before that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from converge.errors import Dropped
from converge.model.message import Message
from converge.model.task import Task
from converge.runtime import retiring, stopping
from converge.runtime.agents.agent import Agent
from converge.runtime.node import Node


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cancelled, and `on_stop`, have as long as a busy machine needs for them."""
    for module in (stopping, retiring):
        for name in ("RELEASE_SEC", "ON_STOP_SEC"):
            monkeypatch.setattr(module, name, 30.0)


class Endless(Agent):
    """A handler that ends only when it is cancelled, and then takes a moment."""

    begun: anyio.Event
    said: list[str]

    def __init__(self) -> None:
        self.begun, self.said = anyio.Event(), []

    async def hang(self) -> None:
        """See the class."""
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.said.append("ended")

    async def on_stop(self) -> None:
        """See the class."""
        self.said.append("stopped")


class Reading(Endless):
    """Gets a message."""

    async def on_message(self, message: Message) -> None:
        """See the class."""
        await self.hang()


class Ticking(Endless):
    """Ticks."""

    tick_sec = 0.01

    async def on_tick(self) -> None:
        """See the class."""
        await self.hang()


class Deciding(Endless):
    """Decides on a message."""

    async def decide(self, messages: Sequence[Message], tasks: Sequence[Task]) -> list[Any]:
        """See the class."""
        await self.hang()
        return []


class DecidingOnTime(Deciding):
    """Decides on nothing but that it is time to."""

    tick_sec = 0.01


@pytest.mark.parametrize("how", ["stop", "retire"])
@pytest.mark.parametrize("cls", [Reading, Ticking, Deciding, DecidingOnTime])
async def test_a_handler_that_does_not_end_is_cancelled_before_on_stop(cls: type[Endless], how: str) -> None:
    dropped: list[Exception] = []

    async def ask() -> None:
        try:
            await other.ask(agent.id, "x", timeout=60)
        except Dropped as error:
            dropped.append(error)

    with anyio.fail_after(60):
        async with Node(grace_sec=0.0) as node, anyio.create_task_group() as group:
            (agent,), (other,) = await node.spawn(cls), await node.spawn(Agent)
            is_asked = cls.tick_sec is None
            if is_asked:
                group.start_soon(ask)
            await agent.begun.wait()
            if how == "stop":
                await node.stop()
            else:
                await node.retire(agent)
            assert agent.said == ["ended", "stopped"]
    assert len(dropped) == is_asked, "whoever waits for it is told"


async def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stopping, "RELEASE_SEC", 0.1)
    gone = anyio.Event()

    class Stubborn(Endless):
        async def on_message(self, message: Message) -> None:
            self.begun.set()
            with anyio.CancelScope(shield=True):
                await gone.wait()

    with anyio.fail_after(60):
        async with Node(grace_sec=0.0) as node:
            agents = await node.spawn(Stubborn, count=2)
            for agent in agents:
                await node.send(agent.id, "x")
                await agent.begun.wait()
            await node.stop()
            assert [agent.said for agent in agents] == [["stopped"], ["stopped"]]
            gone.set()


async def test_an_agent_that_retires_itself_on_a_tick_is_not_waited_for() -> None:
    class Leaving(Endless):
        tick_sec = 0.01

        async def on_tick(self) -> None:
            await self.node.retire(self)  # type: ignore[attr-defined]  # its type offers less
            self.said.append("left")
            self.begun.set()

    with anyio.fail_after(20):
        async with Node(grace_sec=600.0) as node:
            (agent,) = await node.spawn(Leaving)
            await agent.begun.wait()
            assert agent.said == ["stopped", "left"]
