"""Plugins that observe a node's attempts and guard its messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anyio
import attrs
import pytest

from converge.errors import Undeliverable
from converge.hookspecs import hookimpl
from converge.model.message import Message
from converge.model.pool import Pool
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.decisions import BroadcastMessage, ReportTask
from converge.runtime.node import Node
from converge.testing.fixtures import wait_until


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
        good, bad = await node.tasks.submit_many(
            [Task(pool_id="p", inputs={"text": text}, max_attempts=1) for text in ("good", "bad")]
        )
        assert [(await node.tasks.result(id_, timeout=10)).state for id_ in (good, bad)] == ["COMPLETED", "FAILED"]
    node_id = node.identity.id
    assert (watcher.seen[0], watcher.seen[-1]) == (("started", node_id), ("stopping", node_id))
    attempts = sorted(watcher.seen[1:-1])
    assert attempts == sorted(
        [
            ("claimed", good, agent.id),
            ("claimed", bad, agent.id),
            ("completed", good, agent.id),
            ("failed", bad, agent.id),
        ]
    )


async def test_guards_change_and_refuse_messages(watcher: Watcher) -> None:
    async with Node(plugins=["hooks_under_test:watcher"]) as node:
        one, two = await node.spawn(Worker, count=2)
        assert await one.ask(two.id, "hello") == "hello, seen"
        with pytest.raises(
            Undeliverable, match=r"plugin hooks_under_test:watcher refused the message: ValueError: it must not leave"
        ):
            await one.ask(two.id, "secret")
        with pytest.raises(Undeliverable, match="changed id, sender or recipient"):
            await one.ask(two.id, "divert")
        with pytest.raises(Undeliverable, match=r"a guard of the recipient's node refused it$"):
            await one.ask(two.id, "poison")


class Deciding(Agent):
    """Reports each task as it comes."""

    def decide(self, messages: list[Message], tasks: list[Task]) -> list[Any]:
        """See the class."""
        return [
            ReportTask(task_id=task.id, error="bad" if task.inputs.get("text") == "bad" else None, is_retried=False)
            for task in tasks
        ]


async def test_a_plugin_sees_the_attempts_of_an_agent_that_decides(watcher: Watcher) -> None:
    async with Node(plugins=["hooks_under_test:watcher"]) as node:
        (agent,) = await node.spawn(Deciding, pool="p")
        for text, outcome in (("good", "completed"), ("bad", "failed")):
            watcher.seen.clear()
            task_id = await node.tasks.submit(Task(pool_id="p", inputs={"text": text}))
            await node.tasks.result(task_id, timeout=10)
            await wait_until(lambda seen=("claimed", outcome): tuple(what for what, *_ in watcher.seen) == seen)  # type: ignore[misc]
            assert {tuple(rest) for _, *rest in watcher.seen} == {(task_id, agent.id)}


async def test_a_plugin_hears_nothing_of_claims_that_go_back_before_they_begin(watcher: Watcher) -> None:
    class Stopping(Agent):
        concurrency = 8

        async def on_task(self, task: Task) -> None:
            assert isinstance(self.node, Node)
            for feed in self.node.feeds:
                feed.hand_back()  # the claims behind this one have no worker yet
            await anyio.sleep_forever()

    async with Node(plugins=["hooks_under_test:watcher"], grace_sec=0.1) as node:
        await node.pools.create_pool(Pool(id="p"))
        ids = await node.tasks.submit_many([Task(pool_id="p") for _ in range(8)])
        await node.spawn(Stopping, pool="p")
        await wait_until(lambda: any(what == "claimed" for what, *_ in watcher.seen))
    claimed, released = (
        {task_id for what, task_id, *_ in watcher.seen if what == word} for word in ("claimed", "released")
    )
    assert claimed == released and 0 < len(claimed) < len(ids)


def broadcast(pool_id: str, payload: str) -> BroadcastMessage:
    """The decision to send to a pool."""
    return BroadcastMessage(pool_id=pool_id, payload=payload)


@pytest.mark.parametrize("how", ["publish", "broadcast"])
async def test_guards_see_what_is_sent_to_many_once_and_what_each_of_them_gets(watcher: Watcher, how: str) -> None:
    class Listener(Agent):
        topics = ("news",)
        got: list[Any] = []  # noqa: RUF012  # one list for all of them is what is wanted

        async def on_message(self, message: Message) -> None:
            self.got.append(message.payload)

    Listener.got.clear()
    async with Node(plugins=["hooks_under_test:watcher"]) as node:
        one, *_ = await node.spawn(Listener, count=3, pool="p")
        send = one.publish if how == "publish" else lambda to, payload: one.act(broadcast(to, payload))
        to = "news" if how == "publish" else "p"
        assert [(outcome.accepted, outcome.refused) for outcome in await send(to, "hello")] == [(2, 0)]
        await wait_until(lambda: Listener.got == ["hello, seen"] * 2)
        with pytest.raises(Undeliverable, match="it must not leave"):
            await send(to, "secret")
        assert [(outcome.accepted, outcome.refused) for outcome in await send(to, "poison")] == [(0, 2)]


async def test_guards_are_asked_in_load_order_and_the_first_refusal_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def guard(name: str, refused: str) -> ModuleType:
        module = ModuleType(name)

        @hookimpl
        def converge_message_before_send(message: Message) -> Message:
            asked.append(name)
            if message.payload.startswith(refused):
                raise ValueError(f"{name} says no")
            return attrs.evolve(message, payload=f"{message.payload} {name}")

        module.converge_message_before_send = converge_message_before_send  # type: ignore[attr-defined]  # a module made for the test
        monkeypatch.setitem(sys.modules, name, module)
        return module

    for name, refused in (("guard_one", "bad"), ("guard_two", "bad"), ("guard_three", "worse")):
        guard(name, refused)
    async with Node(plugins=["guard_two:", "guard_one:", "guard_three:"]) as node:
        one, two = await node.spawn(Worker, count=2)
        assert await one.ask(two.id, "hello") == "hello guard_two guard_one guard_three"
        asked.clear()
        with pytest.raises(Undeliverable, match="guard_two says no"):
            await one.ask(two.id, "bad")
        assert asked == ["guard_two"]
        with pytest.raises(Undeliverable, match="guard_three says no"):
            await one.ask(two.id, "worse")
