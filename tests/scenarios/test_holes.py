"""Hosts that answer nothing, as behind a firewall that drops packets, cost a publication neither its other recipients
nor more than a bounded wait; the outcome says which they were.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import anyio
import pytest

from converge import Agent, AgentDescriptor, Capability, DiscoveryQuery, Identity, Message, Node
from converge.contracts.discovery import Sighting
from converge.env import SYSTEM
from converge.errors import ConnectFailed
from converge.model.descriptor import sign_descriptor
from converge.model.message import Fanout
from converge.runtime.network import dials
from converge.services.messages import choice, fanout, unsettled
from converge.services.messages.under_way import Link
from converge.testing.fixtures import wait_until

SILENT = 70
"""Nodes that say nothing."""


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """A file and TCP serve both."""
    return str(request.param)


class Reader(Agent):
    """Keeps what it gets."""

    topics = ("news",)
    capabilities = ("read",)

    async def on_start(self) -> None:
        """See the class."""
        self.got: list[object] = []

    async def on_message(self, message: Message) -> None:
        """See the class."""
        self.got.append(message.payload)


@pytest.fixture
def hole() -> Iterator[str]:
    """An endpoint that drops every SYN: nobody accepts there, and its backlog is full."""
    with socket.socket() as listener, ExitStack() as connections:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            one = connections.enter_context(socket.socket())
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(listener.getsockname())
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    """Three nodes on one store."""

    def node() -> Node:
        url = f"file:{tmp_path / 'state.db'}"
        return Node(
            store=url,
            transport="tcp://127.0.0.1:0",
            plugins=["tcp"],
            options={"tcp": {"connect_sec": 60.0}},  # no dial ends during a test
            poll_sec=0.1,
            grace_sec=0.0,
        )

    async with node() as sender, node() as linked, node() as fresh:
        yield [sender, linked, fresh]


async def list_silent(node: Node, count: int, endpoint: str) -> None:
    """List nodes with an agent of the topic that nobody reaches, under the lease of this one."""
    lease = (await node.handle.lease()).id.hex()

    def sighting() -> Sighting:
        own = Identity.generate(SYSTEM.entropy)
        key = own.public_key.hex()
        one = AgentDescriptor(
            id=own.id,
            public_key=key,
            node_key=key,
            endpoints=(endpoint,),
            lease=lease,
            sequence=1,
            topics=("news",),
            capabilities=("read",),
        )
        return Sighting(own.id, one.endpoints, sign_descriptor(own, one, "converge"))

    await node.network.sightings.publish([sighting() for _ in range(count)])
    await node.discovery.refresh()


async def test_hosts_that_say_nothing_hold_up_no_other_recipient(
    nodes: list[Node], hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "AT_A_TIME_BYTES", 1)  # one copy at a time: a dial takes no place
    monkeypatch.setattr(dials, "DIAL_SEC", 60.0)
    sender, linked, fresh = nodes
    (one,), (two,) = await linked.spawn(Reader), await fresh.spawn(Reader)
    await sender.send(one.id, "hello", ack="handled")
    await list_silent(sender, SILENT, hole)
    async with anyio.create_task_group() as group:
        group.start_soon(sender.publish, "news", "to all")
        await wait_until(
            lambda: one.got == ["hello", "to all"] and two.got == ["to all"], timeout=30, what="both have it"
        )
        links = sender.network.links
        assert links is not None
        assert len(links._dials._under_way) == SILENT, "they waited for those that say nothing"
        group.cancel_scope.cancel()


async def test_the_caller_waits_for_a_silent_host_so_long_and_is_told_where_it_is(
    nodes: list[Node], hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, linked, _ = nodes
    (one,) = await linked.spawn(Reader)
    await sender.send(one.id, "hello", ack="handled")
    await list_silent(sender, 1, hole)
    monkeypatch.setattr(fanout, "REACH_SEC", 0.1)
    monkeypatch.setattr(dials, "CHOOSY_SEC", 60.0)

    def told(outcomes: list[Fanout]) -> list[tuple[int, str]]:
        return sorted((one.accepted, one.error.partition(" to node ")[0]) for one in outcomes)

    found = await sender.publish("news", "to all", timeout=60)
    assert told(found) == [(0, "ConnectFailed: connecting"), (1, "")]
    (error,) = [one.error for one in found if one.error]
    assert error.endswith(f"at {hole} takes more than 0.1 s, and goes on")


async def test_hosts_that_could_not_be_reached_hold_up_no_message_by_capability(
    nodes: list[Node], hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dials, "DIAL_SEC", 60.0)
    monkeypatch.setattr(unsettled, "CHOOSY_SEC", 60.0)  # so long is one waited for whose dial never failed
    sender, linked, _ = nodes
    (one,) = await linked.spawn(Reader)
    await sender.send(one.id, "hello", ack="handled")
    await list_silent(sender, 3, hole)
    links = sender.network.links
    assert links is not None
    for found in await sender.discovery.query(DiscoveryQuery(capabilities=["read"])):
        if found.id != one.id:
            links._dials._resting[found.node_key_bytes] = 0.0, 0.0, ConnectFailed("no answer")
    with anyio.fail_after(50):
        for number in range(4):  # the choice begins with each of the four agents once
            await sender.send(Capability("read"), number, ack="handled", timeout=100)
    assert one.got == ["hello", 0, 1, 2, 3]
    assert len(links._dials._under_way) == 3, "they are dialled all the same, should they be back"


async def test_hosts_that_say_nothing_cost_a_first_message_by_capability_no_more_than_one_of_them(
    nodes: list[Node], hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dials, "DIAL_SEC", 60.0)
    monkeypatch.setattr(unsettled, "CHOOSY_SEC", 1.0)  # who answers at all does so by then
    monkeypatch.setattr(choice, "CHOOSY_SEC", 60.0)  # so long is the first that answers waited for
    waited, reached = [0], unsettled._reached

    async def counted(reach: unsettled.Reach, patience_sec: float) -> Link:
        waited[0] += 1
        return await reached(reach, patience_sec)

    monkeypatch.setattr(unsettled, "_reached", counted)
    sender, linked, fresh = nodes
    await linked.spawn(Agent)
    (one,) = await fresh.spawn(Reader)
    await list_silent(sender, 20, hole)
    with anyio.fail_after(50):
        for number in range(3):
            await sender.send(Capability("read"), number, ack="handled", timeout=100)
    assert one.got == [0, 1, 2]
    # Of each message: one that says nothing, and who answered; some more where the machine stood still meanwhile.
    assert waited[0] <= 2 * 3 + 4


async def test_a_dial_that_takes_long_is_waited_for_once(
    nodes: list[Node], hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dials, "DIAL_SEC", 60.0)
    monkeypatch.setattr(dials, "CHOOSY_SEC", 0.0)
    sender, *_ = nodes
    await list_silent(sender, 1, hole)
    (silent,) = [found for found in await sender.discovery.query(DiscoveryQuery()) if found.topics]
    links = sender.network.links
    assert links is not None and links.failure(silent.node_key_bytes) is None
    with anyio.move_on_after(0.2):  # the dial begins, and goes on
        await links.to(silent.node_key_bytes, [hole])
    assert "no answer for" in str(links.failure(silent.node_key_bytes))


async def test_who_is_slow_to_reach_gets_a_message_by_capability_where_all_others_are_silent(
    nodes: list[Node], hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dials, "DIAL_SEC", 60.0)
    monkeypatch.setattr(unsettled, "CHOOSY_SEC", 0.0)  # nobody is reached at once
    monkeypatch.setattr(choice, "CHOOSY_SEC", 60.0)
    sender, _, fresh = nodes
    (one,) = await fresh.spawn(Reader)
    await list_silent(sender, 1, hole)
    with anyio.fail_after(50):
        for number in range(2):  # the choice begins with each of the two once
            await sender.send(Capability("read"), number, ack="handled", timeout=100)
    assert one.got == [0, 1]
