"""Two processes that exchange messages over links that fail on demand: no socket, no handshake; all else is as in a
node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import attrs
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from converge import AgentDescriptor, Identity, Message, open_store
from converge.env import SYSTEM
from converge.errors import ConnectFailed, ConnectionLost
from converge.machines.records import MESSAGE, SIGNED, Item
from converge.model.descriptor import network_tag, sign_descriptor
from converge.plugins import PluginHost
from converge.services.discovery.registry import IdentityRegistry
from converge.services.discovery.service import DiscoveryService
from converge.services.messages.inboxes import Inboxes, OnHandled, unpacked
from converge.services.messages.mailbox import Mailboxes
from converge.services.messages.receiving import Aside, Received
from converge.services.messages.routes import Outside, Routes
from converge.services.messages.sending import Post
from converge.services.messages.under_way import Waiting
from converge.services.store.handle import StoreHandle

Faults = Callable[[str], str]
"""Says what happens to what is sent (`send`), or to a connection that is asked for (`dial`)."""

NETWORK = "converge"


class Agent:
    """An agent with an inbox of its own: what it handles is in `got`."""

    topics: tuple[str, ...] = ("news",)
    capabilities: tuple[str, ...] = ("read",)
    pools: tuple[str, ...] = ("team",)
    takes_messages = True

    def __init__(self, group: TaskGroup, room: int = 1_000) -> None:
        self.identity = Identity.generate(SYSTEM.entropy)
        self.id = self.identity.id
        self.got: list[Message] = []
        self.gate = anyio.Event()
        self.gate.set()
        self._waits: list[tuple[Message, OnHandled | None]] = []
        self.held_bytes, self.chain = 0, tuple[str, ...]()
        self._group, self._room, self._is_running = group, room, False

    @property
    def is_full(self) -> bool:
        return len(self._waits) >= self._room

    @property
    def is_idle(self) -> bool:
        return not self._waits and not self._is_running

    def put(self, message: Message, answer: OnHandled | None, cost: int = 0) -> None:
        self._waits.append((message, answer))
        if not self._is_running:
            self._is_running = True
            self._group.start_soon(self._run)

    def abandon(self, *, but_current: bool = False) -> list[OnHandled]:
        answers = [answer for _, answer in self._waits if answer is not None]
        self._waits.clear()
        return answers

    async def _run(self) -> None:
        while self._waits:
            await self.gate.wait()
            message, answer = self._waits.pop(0)
            self.got.append(unpacked(message))
            await checkpoint()
            if answer is not None:
                answer(b"null", "")
        self._is_running = False


class Link:
    """One end of a connection. What is sent arrives in order, or the connection breaks; copies of messages may arrive
    later, over a later one.
    """

    def __init__(self, own: Side, other: Side, faults: Faults) -> None:
        self.why = ""
        self.peer, self.is_closed, self.waiting = other.identity.public_key, False, set[Waiting]()
        self.address, self.features, self.speakers_bytes, self.work = "", 0, 0, 0
        self.shown, self.speakers = dict[str, bytes](), dict[str, int]()
        self.is_full_of_answers = False
        self.end: Link
        self._own, self._other, self._faults = own, other, faults
        self.sender, self.receiver = anyio.create_memory_object_stream[list[Item]](10_000)

    async def send(self, items: list[Item], owed: str = "", on_queued: Callable[[], None] = lambda: None) -> None:
        """Send, unless a fault says otherwise."""
        self._send(items)
        on_queued()

    def offer(self, item: Item, owed: str = "") -> bool:
        """Accept: there is always room."""
        self._send([item])
        return True

    def post(self, items: list[Item]) -> None:
        """Send receipts: those for a broken connection are lost."""
        if not self.is_closed:
            self._send(items)

    def answer(self, item: Item) -> bool:
        """Send an answer."""
        self.post([item])
        return True

    def show(self, agent_id: str, signed: bytes) -> None:
        """Do nothing: both sides know whom there is to know."""

    def settled(self, message_id: str) -> None:
        """Do nothing: there is no window."""

    def _send(self, items: list[Item]) -> None:
        if self.is_closed:
            raise ConnectionLost("this end of the kit's channel is closed")
        fault = self._faults("send")
        late = [item for item in items if item[0] in (MESSAGE, SIGNED)]
        if fault == "late":
            self._own.late += late
        if fault in ("ok", "cut after", "late"):
            self.sender.send_nowait(items)
        if fault == "twice":
            self.sender.send_nowait(items + items)
        if fault == "copies":
            self.sender.send_nowait([*self._own.late, *items])
        if fault in ("cut before", "cut after"):
            self.cut()

    def cut(self) -> None:
        """Break the connection; what has been sent may still arrive."""
        for end in (self, self.end):
            end.is_closed = True
            end.sender.close()
            for one in end.waiting:
                one.give_up()

    async def run(self) -> None:
        """Deliver what is sent to the other side."""
        async with self.receiver:
            async for items in self.receiver:
                with suppress(ConnectionLost):  # the receipts of what arrives over a broken connection are lost
                    await self._other.received.on_items(self.end, items)


class Side:
    """A process: its post, its agents, and the connection that it has now."""

    def __init__(self, opened: StoreHandle, host: PluginHost, faults: Faults, group: TaskGroup) -> None:
        self.identity = Identity.generate(SYSTEM.entropy)
        discovery = DiscoveryService(store=opened.store)
        discovery.refresh = checkpoint  # type: ignore[method-assign,assignment]  # both sides know whom there is to know
        self.registry = IdentityRegistry(discovery.directory)
        outside = Outside(links=self, errand=group.start_soon)
        routes = Routes(SYSTEM, self.identity.public_key, discovery, self.registry, outside)
        tag, inboxes = network_tag(NETWORK), Inboxes(host)
        mailboxes = Mailboxes(opened, tag, inboxes, self.registry.admits)
        self.post = Post(opened, self.identity, mailboxes, routes, host)
        aside = Aside(on_mail=lambda agent_id: None)
        self.received = Received(opened, tag, inboxes, routes, self.post.under_way, aside)
        self.agents: list[Agent] = []
        self.late: list[Item] = []
        self.link: Link | None = None
        self.other: Side
        self._faults, self._group = faults, group

    def open(self, node_key: bytes) -> Link | None:
        """Return the link to the other side, if there is one."""
        is_there = node_key == self.other.identity.public_key and self.link is not None and not self.link.is_closed
        return self.link if is_there else None

    def all(self) -> list[Link]:
        """Return the one link."""
        return [] if self.link is None else [self.link]

    def is_dialling(self, node_key: bytes) -> bool:
        """Return that it is not: nothing is dialled here."""
        return False

    def failure(self, node_key: bytes) -> None:
        """Return None: no dial is remembered."""

    async def to(self, node_key: bytes, endpoints: Sequence[str]) -> Link:
        """Return the link to the other side, made anew if the last one broke."""
        assert node_key == self.other.identity.public_key
        await checkpoint()
        if self.link is None or self.link.is_closed:
            if self._faults("dial") != "ok":
                raise ConnectFailed("nobody answers")
            self.link, self.other.link = Link(self, self.other, self._faults), Link(self.other, self, self._faults)
            self.link.end, self.other.link.end = self.other.link, self.link
            for end in (self.link, self.other.link):
                self._group.start_soon(end.run)
        return self.link

    def add(self, count: int, room: int = 1_000) -> None:
        """Start agents, and let both sides know them."""
        for agent in [Agent(self._group, room) for _ in range(count)]:
            self.agents.append(agent)
            self.post.inboxes.add(agent, agent)
            self.publish(agent.identity, topics=agent.topics, capabilities=agent.capabilities, pools=agent.pools)

    def publish(self, identity: Identity, **fields: tuple[str, ...]) -> None:
        """Let both sides know an agent of this one."""
        key, node_key = identity.public_key.hex(), self.identity.public_key.hex()
        descriptor = AgentDescriptor(
            id=identity.id, public_key=key, node_key=node_key, endpoints=("there",), sequence=1
        )
        signed = sign_descriptor(identity, attrs.evolve(descriptor, **fields), NETWORK)  # type: ignore[arg-type]  # names of attributes
        for side in (self, self.other):
            assert side.post.routes.discovery.directory.offer(identity.id, signed)


def none(what: str) -> str:
    """Do nothing."""
    return "ok"


@asynccontextmanager
async def two_sides(faults: Faults = none, *, agents: int = 1, room: int = 1_000) -> AsyncIterator[tuple[Side, Side]]:
    """Start two processes, each with so many agents."""
    async with open_store("memory:") as store, anyio.create_task_group() as group:
        opened, host = StoreHandle.of(store), PluginHost(())
        await opened.now()
        one, two = (Side(opened, host, faults, group) for _ in range(2))
        one.other, two.other = two, one
        for side in (one, two):
            side.publish(side.identity)
            side.add(agents, room)
        yield one, two
        for side in (one, two):
            if side.link is not None:
                side.link.cut()
        group.cancel_scope.cancel()
