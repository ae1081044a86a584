"""Plugins that observe a node's attempts and guard its messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import attrs
import pytest

from converge.errors import Undeliverable
from converge.hookspecs import hookimpl
from converge.model.message import Message
from converge.model.task import Task
from converge.runtime.agent import Agent
from converge.runtime.node import Node


class Worker(Agent):
    """Completes, fails, or answers."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        if task.inputs.get("text") == "bad":
            raise ValueError("it is bad")
        return "fine"

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        return message.payload


class Watcher:
    """A plugin that remembers what it saw, and guards as it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    @hookimpl
    def converge_node_started(self, node_id: str) -> None:
        """See the hook."""
        self.seen.append(("started", node_id))

    @hookimpl
    def converge_node_stopping(self, node_id: str) -> None:
        """See the hook."""
        self.seen.append(("stopping", node_id))

    @hookimpl
    def converge_task_claimed(self, task: Task) -> None:
        """See the hook."""
        self.seen.append(("claimed", task.id, task.claimed_by))
        raise ValueError("an observer that fails changes nothing")

    @hookimpl
    def converge_task_finished(self, task: Task, outcome: str) -> None:
        """See the hook."""
        self.seen.append((outcome, task.id, task.claimed_by))

    @hookimpl
    def converge_message_before_send(self, message: Message) -> Message | None:
        """See the hook."""
        if message.payload == "secret":
            raise ValueError("it must not leave")
        return attrs.evolve(message, recipient=message.sender) if message.payload == "divert" else None

    @hookimpl
    def converge_message_received(self, message: Message) -> Message:
        """See the hook."""
        if message.payload == "poison":
            raise ValueError("it must not come in")
        return attrs.evolve(message, payload=f"{message.payload}, seen")


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watcher]:
    """The plugin, to be named as `hooks_under_test:watcher`."""
    module = ModuleType("hooks_under_test")
    module.watcher = Watcher()  # type: ignore[attr-defined]  # a module made for the test
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module.watcher


async def test_a_plugin_sees_the_node_and_each_attempt(watcher: Watcher) -> None:
    async with Node(plugins=["hooks_under_test:watcher"]) as node:
        (agent,) = await node.spawn(Worker, pool="p")
        good, bad = await node.tasks.submit_many([Task(pool_id="p", inputs={"text": text}, max_attempts=1) for text in ("good", "bad")])
        assert [(await node.tasks.result(id_, timeout=10)).state for id_ in (good, bad)] == ["COMPLETED", "FAILED"]
    node_id = node.identity.id
    assert (watcher.seen[0], watcher.seen[-1]) == (("started", node_id), ("stopping", node_id))
    attempts = sorted(watcher.seen[1:-1])
    assert attempts == sorted([("claimed", good, agent.id), ("claimed", bad, agent.id), ("completed", good, agent.id), ("failed", bad, agent.id)])


async def test_guards_change_and_refuse_messages(watcher: Watcher) -> None:
    async with Node(plugins=["hooks_under_test:watcher"]) as node:
        one, two = await node.spawn(Worker, count=2)
        assert await one.ask(two.id, "hello") == "hello, seen"
        with pytest.raises(Undeliverable, match=r"plugin hooks_under_test:watcher refused the message: ValueError: it must not leave"):
            await one.ask(two.id, "secret")
        with pytest.raises(Undeliverable, match="changed whose message it is"):
            await one.ask(two.id, "divert")
        with pytest.raises(Undeliverable, match=r"a guard of the recipient's node refused it$"):
            await one.ask(two.id, "poison")
