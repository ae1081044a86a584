"""Messages between agents of one process: the levels of a send, who gets what is for several, and what a full inbox, a
guard or an end does.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import attrs
import pytest

from converge import Agent, Capability, Message, Node, Topic
from converge.errors import (
    Backpressure,
    DeliveryTimeout,
    HandlerFailed,
    InvalidName,
    InvalidValue,
    MessageError,
    Undeliverable,
)
from converge.hookspecs import hookimpl
from converge.model.envelope import HANDED, MessageHeader
from converge.model.message import Fanout
from converge.runtime.agents.inbox import INBOX
from converge.testing.fixtures import wait_until


class Reader(Agent):
    """Keeps what it gets; waits or fails as it is told."""

    capabilities = ("read",)
    topics = ("news", "sport")

    async def on_start(self) -> None:
        """See the class."""
        self.got: list[Message] = []
        self.gate = anyio.Event()
        self.gate.set()

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        await self.gate.wait()
        self.got.append(message)
        if message.payload == "fail":
            raise ValueError("it would not")
        return len(self.got)


class Deaf(Agent):
    """Has the topic and the capability, and takes no messages."""

    capabilities = ("read",)
    topics = ("news",)


class Quiet(Agent):
    """Has neither."""

    async def on_start(self) -> None:
        """See the class."""
        self.got: list[Message] = []

    async def on_message(self, message: Message) -> None:
        """See the class."""
        self.got.append(message)


@pytest.fixture(params=["memory", "file"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    """A node of one process."""
    async with Node(
        store="memory:" if request.param == "memory" else f"file:{tmp_path}/state.db", poll_sec=0.2
    ) as node:
        yield node


async def readers(node: Node, count: int, pool: str | None = None) -> list[Reader]:
    """Start readers."""
    return await node.spawn(Reader, count, pool)


async def emptied(*agents: Agent) -> None:
    """Return when the agents have handled what they have: each is asked, and messages are handled in order."""
    for agent in agents:
        await agent.node.send(agent.id, "last", ack="handled")


# The levels.


async def test_a_send_that_wants_it_handled_returns_when_the_handler_has_returned(node: Node) -> None:
    sender, reader = await readers(node, 2)
    receipt = await sender.send(reader.id, "hello", ack="handled")
    assert [(one.payload, one.sender, one.recipient, one.id) for one in reader.got] == [
        ("hello", sender.id, reader.id, receipt.message_id)
    ]
    assert (receipt.level, receipt.recipient) == ("handled", reader.id)


async def test_a_handler_that_raises_is_told_to_who_wants_it_handled(node: Node) -> None:
    sender, reader = await readers(node, 2)
    with pytest.raises(HandlerFailed, match="ValueError: it would not"):
        await sender.send(reader.id, "fail", ack="handled")
    with pytest.raises(HandlerFailed, match="ValueError: it would not"):
        await sender.ask(reader.id, "fail")
    assert (await sender.send(reader.id, "fail")).level == "accepted"


@pytest.mark.parametrize(("ack", "level"), [("accepted", "accepted"), (None, "handed")])
async def test_a_send_that_wants_less_returns_while_the_handler_waits(node: Node, ack: str | None, level: str) -> None:
    sender, reader = await readers(node, 2)
    reader.gate = anyio.Event()
    receipt = await sender.send(reader.id, "hello", ack=ack)
    assert (receipt.level, reader.got) == (level, [])
    reader.gate.set()
    await emptied(reader)
    assert [one.payload for one in reader.got] == ["hello", "last"]


async def test_an_answer_that_does_not_come_is_a_timeout_and_the_message_goes_on(node: Node) -> None:
    sender, reader = await readers(node, 2)
    reader.gate = anyio.Event()
    with pytest.raises(DeliveryTimeout, match=r"0\.05 s"):
        await sender.ask(reader.id, "slow", timeout=0.05)
    reader.gate.set()
    await emptied(reader)
    assert [one.payload for one in reader.got] == ["slow", "last"]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"ack": "acepted"}, "acepted"),
        ({"ack": ["accepted"]}, "accepted"),
        ({"proof": "sealed"}, "sealed"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": 121.0}, "at most 120"),
        ({"timeout": None}, "above 0"),
        ({"timeout": float("nan")}, "above 0"),
        ({"task_id": "x" * 65}, "at most 64"),
    ],
)
async def test_a_send_that_nobody_can_mean_is_refused(node: Node, how: dict[str, Any], text: str) -> None:
    sender, reader = await readers(node, 2)
    with pytest.raises(InvalidValue, match=text):
        await sender.send(reader.id, "x", **how)
    assert reader.got == []


async def test_a_recipient_that_is_no_agents_id_is_refused_and_one_that_is_unknown_is_undeliverable(node: Node) -> None:
    (sender,) = await readers(node, 1)
    for nobody in ("nobody", "", None, 7, "cv1" + "a" * 51):
        for mailbox in (False, True):
            with pytest.raises(InvalidName, match="agent's id"):
                await node.send(nobody, "x", mailbox=mailbox)  # type: ignore[arg-type]  # what a program may do all the same
        with pytest.raises(InvalidName, match="agent's id"):
            await node.send(sender.id, "x", sender=nobody or "nobody")  # type: ignore[arg-type]  # as above
    with pytest.raises(Undeliverable, match="not known here"):
        await sender.send("cv1" + "a" * 52, "x")


async def test_a_handler_cannot_change_what_another_one_or_the_sender_has(node: Node) -> None:
    sender, one, two = await readers(node, 3)
    payload = {"words": ["a"]}
    await sender.publish("news", payload)
    await emptied(one, two)
    one.got[0].payload["words"].append("b")
    assert (payload, two.got[0].payload) == ({"words": ["a"]}, {"words": ["a"]})


# Bounds and order.


async def test_a_full_inbox_answers_with_backpressure_and_takes_again_when_there_is_room(node: Node) -> None:
    sender, reader, other = await readers(node, 3)
    reader.gate = anyio.Event()
    accepted = 0
    with pytest.raises(Backpressure, match="inbox is full"):
        for number in range(INBOX + 2):
            await sender.send(reader.id, number)
            accepted += 1
    assert INBOX <= accepted <= INBOX + 1, "one may be with the handler"
    assert await sender.ask(other.id, "others go on") == 1
    reader.gate.set()
    await wait_until(lambda: len(reader.got) == accepted, what="what was accepted is handled")
    await emptied(reader)
    assert [one.payload for one in reader.got] == [*range(accepted), "last"]


async def test_messages_of_one_sender_are_handled_in_the_order_of_their_sends(node: Node) -> None:
    sender, reader = await readers(node, 2)
    async with anyio.create_task_group() as group:
        for start in range(3):
            group.start_soon(_send_range, sender, reader, start)
    await emptied(reader)
    for start in range(3):
        assert [one.payload[1] for one in reader.got[:-1] if one.payload[0] == start] == list(range(60))


async def _send_range(sender: Agent, reader: Agent, start: int) -> None:
    for number in range(60):
        await sender.send(reader.id, [start, number], ack=("accepted", "handled", None)[number % 3])


# Topics and pools.


async def test_a_message_that_is_published_reaches_each_agent_with_the_topic_but_its_sender(node: Node) -> None:
    sender, one, two = await readers(node, 3)
    (quiet,) = await node.spawn(Quiet)
    assert isinstance(quiet, Quiet)
    await node.spawn(Deaf)
    assert await sender.publish("news", "hello") == [Fanout(node=node.identity.id, accepted=2)]
    await emptied(one, two, quiet, sender)
    assert [[(got.payload, got.topic, got.recipient) for got in agent.got[:-1]] for agent in (one, two)] == [
        [("hello", "news", agent.id)] for agent in (one, two)
    ]
    assert [len(sender.got), len(quiet.got)] == [1, 1], "only what emptied them"


async def test_topics_match_exactly_and_a_topic_that_nobody_has_reaches_nobody(node: Node) -> None:
    (reader,) = await readers(node, 1)
    assert await node.publish("new", "x") == []
    assert await node.publish(Topic("sport"), "x") == [Fanout(node=node.identity.id, accepted=1)]
    with pytest.raises(InvalidName):
        await node.publish("no such name", "x")
    await emptied(reader)
    assert [one.payload for one in reader.got] == ["x", "last"]


async def test_a_broadcast_reaches_the_agents_of_the_pool(node: Node) -> None:
    inside, outside = await readers(node, 2, "inside"), await readers(node, 1, "outside")
    assert await node.broadcast("inside", "hello", sender=inside[0].id) == [Fanout(node=node.identity.id, accepted=1)]
    await emptied(*inside, *outside)
    assert [(one.payload, one.pool_id) for one in inside[1].got[:-1]] == [("hello", "inside")]
    assert [len(inside[0].got), len(outside[0].got)] == [1, 1]


async def test_a_full_inbox_is_counted_and_the_others_have_the_message(node: Node) -> None:
    sender, full, free = await readers(node, 3)
    full.gate = anyio.Event()
    with pytest.raises(Backpressure):
        for number in range(INBOX + 2):
            await sender.send(full.id, number)
    assert await sender.publish("news", "hello") == [Fanout(node=node.identity.id, accepted=1, refused=1)]
    await emptied(free)
    assert free.got[0].payload == "hello"
    full.gate.set()


# Capabilities.


async def test_a_capability_reaches_one_agent_and_all_in_turn(node: Node) -> None:
    sender, *others = await readers(node, 4)
    took = [(await sender.send(Capability("read"), number)).recipient for number in range(9)]
    assert sorted(set(took)) == sorted(one.id for one in others)
    assert [took.count(one.id) for one in others] == [3, 3, 3]
    assert await sender.ask(Capability("read"), "who") == 4


async def test_a_capability_goes_to_another_agent_where_one_is_full_or_takes_no_messages(node: Node) -> None:
    await node.spawn(Deaf)
    sender, full, free = await readers(node, 3)
    full.gate = anyio.Event()
    with pytest.raises(Backpressure):
        for number in range(INBOX + 2):
            await sender.send(full.id, number)
    assert {(await sender.send(Capability("read"), "x")).recipient for _ in range(4)} == {free.id}
    full.gate.set()


async def test_a_capability_that_nobody_has_is_undeliverable_and_one_whose_agents_are_full_is_backpressure(
    node: Node,
) -> None:
    sender, full = await readers(node, 2)
    with pytest.raises(Undeliverable, match='capability "write"'):
        await sender.send(Capability("write"), "x")
    full.gate = anyio.Event()
    with pytest.raises(Backpressure):
        for _ in range(INBOX + 2):
            await sender.send(Capability("read"), "x")
    full.gate.set()


# The node, and what is shared.


async def test_the_node_sends_asks_publishes_and_broadcasts_under_its_own_identity(node: Node) -> None:
    (reader,) = await readers(node, 1, "inside")
    await node.send(reader.id, 1)
    assert await node.ask(reader.id, 2) == 2
    assert (
        await node.publish("news", 3)
        == await node.broadcast("inside", 4)
        == [Fanout(node=node.identity.id, accepted=1)]
    )
    await emptied(reader)
    assert [(one.payload, one.sender) for one in reader.got[:-1]] == [
        (number, node.identity.id) for number in (1, 2, 3, 4)
    ]


async def test_a_message_names_its_task(node: Node) -> None:
    (reader,) = await readers(node, 1)
    await node.send(reader.id, "about it", task_id="0190-some-task")
    await emptied(reader)
    assert (reader.got[0].task_id, reader.got[0].sent_at.tzinfo is not None) == ("0190-some-task", True)


async def test_thousands_of_messages_leave_nothing_behind(node: Node) -> None:
    sender, reader = await readers(node, 2)
    for _ in range(1_500):
        await sender.send(reader.id, "x", ack="handled")
    assert len(node.network.post.under_way) == 0
    refused: list[Callable[[], Any]] = [
        lambda: sender.send("cv1" + "a" * 52, "x"),
        lambda: sender.ask(reader.id, "fail"),
    ]
    for call in refused:
        with pytest.raises(MessageError):
            await call()
    assert len(node.network.post.under_way) == 0


# Guards.


class Guard:
    """A plugin that remembers which messages it saw, changes some and refuses some."""

    def __init__(self) -> None:
        self.left: list[tuple[str, str, str]] = []
        self.came: list[str] = []

    @hookimpl
    def converge_message_before_send(self, message: Message) -> Message | None:
        """See the hook."""
        self.left.append((message.recipient, message.topic, message.pool_id))
        if message.payload == "secret":
            raise ValueError("it must not leave")
        return attrs.evolve(message, payload="changed", task_id="t-1") if message.payload == "change" else None

    @hookimpl
    def converge_message_received(self, message: Message) -> None:
        """See the hook."""
        self.came.append(message.recipient)
        if message.payload == "poison":
            raise ValueError("it must not come in")


@pytest.fixture
async def guarded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Node, Guard]]:
    """A node with a guard."""
    module = ModuleType("guard_under_test")
    module.guard = guard = Guard()  # type: ignore[attr-defined]  # a module made for the test
    monkeypatch.setitem(sys.modules, module.__name__, module)
    async with Node(plugins=["guard_under_test:guard"]) as node:
        yield node, guard


async def test_a_publication_passes_the_guard_once_where_it_leaves_and_for_each_agent_where_it_arrives(
    guarded: tuple[Node, Guard],
) -> None:
    node, guard = guarded
    agents = await readers(node, 2)
    assert await node.publish("news", "change") == [Fanout(node=node.identity.id, accepted=2)]
    assert guard.left == [("", "news", "")]
    assert sorted(guard.came) == sorted(one.id for one in agents)
    assert await node.publish("news", "poison") == [Fanout(node=node.identity.id, refused=2)]
    with pytest.raises(Undeliverable, match="it must not leave"):
        await node.publish("news", "secret")
    await emptied(*agents)
    assert [[(message.payload, message.task_id) for message in one.got[:-1]] for one in agents] == [
        [("changed", "t-1")]
    ] * 2


async def test_what_is_refused_again_and_again_does_not_flood_the_log(
    guarded: tuple[Node, Guard], caplog: pytest.LogCaptureFixture
) -> None:
    node, _ = guarded
    (reader,) = await readers(node, 1)
    torn = MessageHeader("0" * 32, reader.id, "", "0" * 16, 1, 0, 0, HANDED, "", "news", "")
    for _ in range(50):
        with pytest.raises(Undeliverable, match="a guard of the recipient's node refused it"):
            await node.send(reader.id, "poison")
        assert await node.network.post.inboxes.fan_out(torn, b"{") == (0, 1)
    said = [record.getMessage() for record in caplog.records if "was refused" in record.getMessage()]
    assert 2 <= len(said) <= 10, "some, of the hundred that were refused"


async def test_what_is_stored_passes_the_guards_when_it_is_stored_and_when_it_is_read(
    guarded: tuple[Node, Guard],
) -> None:
    node, guard = guarded
    (reader,) = await readers(node, 1)
    with pytest.raises(Undeliverable, match="it must not leave"):
        await node.send(reader.id, "secret", mailbox=True)
    await node.send(reader.id, "change", mailbox=True, ack="handled")
    assert [one.payload for one in reader.got] == ["changed"]
    assert guard.came == [reader.id]


# The end.


class Slow(Reader):
    """Begins, and waits for longer than any test."""

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        self.gate.set()
        await anyio.sleep(600)


async def test_messages_that_were_accepted_are_handled_before_the_node_ends(node: Node) -> None:
    (reader,) = await readers(node, 1)
    reader.gate = anyio.Event()
    for number in range(50):
        await node.send(reader.id, number)
    async with anyio.create_task_group() as group:
        group.start_soon(node.stop)
        await wait_until(lambda: node.network.post.inboxes.is_closed_to_others, what="the node stops")
        reader.gate.set()
    assert [one.payload for one in reader.got] == list(range(50))
    with pytest.raises(Undeliverable, match="stopping"):
        await node.send(reader.id, "late")


async def test_who_waits_for_a_handler_that_does_not_end_in_the_grace_time_is_told(node: Node) -> None:
    (slow,) = await node.spawn(Slow)
    assert isinstance(slow, Slow)
    slow.gate = anyio.Event()
    told: list[str] = []

    async def ask(number: int) -> None:
        with pytest.raises(Undeliverable) as caught:
            await node.ask(slow.id, number, timeout=60)
        told.append(str(caught.value))

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(ask, number)
        await slow.gate.wait()
        await node.stop(grace_sec=0.05)
    assert len(told) == 3
    assert all("stopping" in text for text in told)
