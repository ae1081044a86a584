"""Post: messages between agents, to an inbox of this process or over a link; each is settled by a receipt, or a typed error by the deadline."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
import attrs
from anyio.lowlevel import checkpoint

from converge.codec import decode_plain, encode_plain
from converge.env import Env
from converge.errors import (
    Backpressure,
    ChannelError,
    ConnectFailed,
    ConvergeError,
    DeliveryTimeout,
    HandlerFailed,
    InvalidName,
    InvalidValue,
    StoreError,
    TornRecord,
    Undeliverable,
    Unsupported,
)
from converge.machines.records import MESSAGE, RECEIPT, Item
from converge.machines.stream import WINDOW_SEC, Pair, Seen, Streams
from converge.model.envelope import ACCEPTED, FULL, HANDLED, RAISED, REFUSED, UNKNOWN, MessageHeader, ReceiptHeader, pack, unpack
from converge.model.identity import is_agent_id
from converge.model.message import Capability, Fanout, Message, Receipt
from converge.plugins import PluginHost
from converge.services.discovery import DiscoveryService
from converge.services.registry import IdentityRegistry
from converge.services.spec import moment

log = logging.getLogger("converge.post")

BEFORE_SEND, RECEIVED = "converge_message_before_send", "converge_message_received"

RETRY_LEAST_SEC, RETRY_GREATEST_SEC = 0.05, 1.0
"""Waits between tries to reach a node."""

REFRESH_SEC = 0.5
"""The directory is not read again more often than this on behalf of unknown agents: a stranger must not make us hammer the store. Who asks waits."""

PAIRS = 10_000
"""Pairs of sender and recipient whose sequence is kept."""


class Waiting(Protocol):
    """Somebody who waits for a receipt, and is told when none can come over this link."""

    def give_up(self) -> None: ...


class Link(Protocol):
    """A secured connection to another node. Who waits for a receipt stands in `waiting`, and is told when it ends."""

    peer: bytes
    is_closed: bool
    waiting: set[Waiting]

    async def send(self, items: list[Item]) -> None: ...


class Links(Protocol):
    """Finds or makes the link to a node."""

    async def to(self, node_key: bytes, endpoints: tuple[str, ...]) -> Link: ...


class LocalInbox(Protocol):
    """An agent of this process."""

    takes_messages: bool

    @property
    def is_full(self) -> bool: ...

    def put(self, message: Message, answer: Callable[[bytes | None, str], Awaitable[None]] | None) -> None: ...


class _Pending:
    """A message under way: what its receipts have said so far."""

    __slots__ = ("answer", "handled", "settled", "status", "text")

    def __init__(self) -> None:
        self.status = self.text = ""
        self.answer: bytes | None = None
        self.settled, self.handled = anyio.Event(), anyio.Event()

    def give_up(self) -> None:
        """The link has ended: without a status the message is sent again."""
        self.settled.set()


class _Outgoing:
    """What a sender keeps for one recipient: the sequence, and the lock that keeps one message under way at a time."""

    __slots__ = ("lock", "sequence")

    def __init__(self) -> None:
        self.lock, self.sequence = anyio.Lock(fast_acquire=True), 0  # free nearly always: then it costs no step of the event loop


@attrs.frozen(kw_only=True)
class How:
    """How a message is to be sent; `Node.send` says what each means."""

    ack: str | None = "accepted"
    timeout: float = 10.0
    mailbox: bool = False
    proof: str = "channel"
    task_id: str = ""


class Post:
    """Sends and takes messages for the agents of one process."""

    def __init__(
        self, env: Env, discovery: DiscoveryService, registry: IdentityRegistry, now: Callable[[], Awaitable[int]], host: PluginHost
    ) -> None:
        self.inboxes: dict[str, LocalInbox] = {}
        self.links: Links | None = None
        self._env, self._discovery, self._registry, self._now = env, discovery, registry, now
        self._host = host
        self._life = env.entropy(8).hex()
        self._streams = Streams()
        self._pending: dict[str, _Pending] = {}
        self._outgoing: dict[tuple[str, str], _Outgoing] = {}
        self._refreshed = self._tried = float("-inf")
        self._refreshing = anyio.Lock()

    async def send(self, sender: str, to: str, payload: Any, how: How) -> Receipt:
        """Send a message; return when it is in the recipient's inbox.

        Raises:
            InvalidName, InvalidValue, MessageTooLarge, Unsupported: It cannot be sent as asked.
            Undeliverable, Backpressure, DeliveryTimeout: It did not arrive.
        """
        if how.ack not in ("accepted", "handled", None):
            raise InvalidValue("ack", how.ack, '"accepted", "handled" or None')
        if how.ack != "accepted":
            raise Unsupported(f'ack={how.ack!r}: this release delivers with ack="accepted" only')
        if how.mailbox:
            raise Unsupported("mailbox=True: this release has no mailboxes; submit a task for the agent's pool instead")
        if how.proof != "channel":
            raise Unsupported(f'proof={how.proof!r}: this release has proof="channel" only: the sender is verified by its node\'s channel')
        began = self._env.monotonic()
        message_id, _ = await self._deliver(sender, to, payload, ACCEPTED, how.timeout, how.task_id)
        return Receipt(message_id=message_id, recipient=to, level=ACCEPTED, duration_sec=self._env.monotonic() - began)

    async def publish(self, sender: str, topic: str, payload: Any, *, timeout: float) -> list[Fanout]:
        """Send to every agent that has the topic. See `Node.publish`."""
        raise Unsupported("publish: this release has no topics")

    async def broadcast(self, sender: str, pool_id: str, payload: Any, *, timeout: float) -> list[Fanout]:
        """Send to every agent of a pool. See `Node.broadcast`."""
        raise Unsupported("broadcast: this release has no broadcasts")

    async def ask(self, sender: str, to: str, payload: Any, how: How) -> Any:
        """Send a message; return what its handler returned.

        Raises:
            HandlerFailed: The recipient's handler raised.
            As `send`.
        """
        message_id, pending = await self._deliver(sender, to, payload, HANDLED, how.timeout, how.task_id)
        if pending.status == RAISED or pending.answer is None:
            raise HandlerFailed(f"agent {to} failed to handle message {message_id}: {pending.text}")
        return decode_plain(pending.answer, "answer")

    async def _deliver(self, sender: str, to: str, payload: Any, wants: str, timeout: float, task_id: str) -> tuple[str, _Pending]:
        if isinstance(to, Capability):
            raise Unsupported(f'send to Capability("{to}"): this release sends to an agent\'s id; find one with DiscoveryService.query')
        if not is_agent_id(to):
            raise InvalidName("recipient", to, "an agent's id, as discovery gives it: cv1 and 52 characters")
        if not 0 < timeout <= WINDOW_SEC:
            raise InvalidValue("timeout", timeout, f"seconds, above 0, at most {WINDOW_SEC:g}: so long a repeated message is recognised")
        message_id = self._env.entropy(16).hex()
        if self._host.has(BEFORE_SEND):
            message = Message(id=message_id, sender=sender, recipient=to, payload=payload, task_id=task_id, sent_at=moment(await self._now()))
            message = self._host.guard(BEFORE_SEND, message)
            payload, task_id = message.payload, message.task_id
        body = encode_plain(payload, "payload")
        pending = self._pending[message_id] = _Pending()
        try:
            with anyio.fail_after(timeout):
                outgoing = self._outgoing_of(sender, to)
                async with outgoing.lock:  # later messages to this recipient wait until this one is settled
                    outgoing.sequence += 1
                    header = MessageHeader(message_id, sender, to, self._life, outgoing.sequence, await self._now(), wants, task_id)
                    await self._until_accepted(header, body, pending)
                if wants == HANDLED:
                    await pending.handled.wait()
        except TimeoutError:
            raise DeliveryTimeout(f"no {'answer' if pending.status else 'receipt'} from agent {to} within {timeout:g} s") from None
        finally:
            del self._pending[message_id]
        return message_id, pending

    def _outgoing_of(self, sender: str, to: str) -> _Outgoing:
        outgoing = self._outgoing.get((sender, to))
        if outgoing is None:
            if len(self._outgoing) >= PAIRS:
                # Oldest first; one that is forgotten begins a new sequence under a new life, as after a restart.
                idle = next((pair for pair, one in self._outgoing.items() if not one.lock.locked()), None)
                if idle is None:
                    raise Backpressure(f"{PAIRS} messages of this process are under way; wait for some of them")
                self._outgoing.pop(idle)
                self._life = self._env.entropy(8).hex()
                self._outgoing.clear()
            outgoing = self._outgoing[sender, to] = _Outgoing()
        return outgoing

    async def _until_accepted(self, header: MessageHeader, payload: bytes, pending: _Pending) -> None:
        inbox = self.inboxes.get(header.to)
        if inbox is not None:
            status, text = self._put(inbox, header, payload, self._answer_here(pending))
            _settle(header.to, status, text)
            pending.status = pending.status or status
            await checkpoint()  # a sender in a loop must let the recipient run, or its inbox would fill
            return
        wait_sec, item = RETRY_LEAST_SEC, (MESSAGE, pack(header, payload))
        while True:
            try:
                link = await self._link(header.to)
                await link.send([item])
                await self._receipt(link, pending)
            except (ConnectFailed, ChannelError, StoreError) as error:
                log.info("message %s to %.16s is repeated: %s", header.id, header.to, error)
            else:
                if pending.status:
                    _settle(header.to, pending.status, pending.text)
                    return
            await anyio.sleep(wait_sec)
            wait_sec = min(wait_sec * 2, RETRY_GREATEST_SEC)
            pending.settled = anyio.Event()

    async def _receipt(self, link: Link, pending: _Pending) -> None:
        """Wait for the receipt; a link that ends meanwhile ends the wait."""
        link.waiting.add(pending)
        try:
            if not link.is_closed:
                await pending.settled.wait()
        finally:
            link.waiting.discard(pending)

    async def _link(self, to: str) -> Link:
        descriptor = self._discovery.directory.get(to)
        if descriptor is None:
            await self._refresh()
            descriptor = self._discovery.directory.get(to)
        if descriptor is None:
            raise Undeliverable(f"agent {to} is not known here: it has stopped, or was never started in this network")
        if self.links is None:
            raise Undeliverable(f"agent {to} is in another process, and this node has no transport; give it one with --transport")
        return await self.links.to(bytes.fromhex(descriptor.node_key), descriptor.endpoints)

    async def _refresh(self) -> None:
        """Return once the directory is no older than this call; calls that come while one reads share the next reading."""
        asked = self._env.monotonic()
        async with self._refreshing:
            if self._refreshed >= asked:
                return
            await anyio.sleep(max(0.0, self._tried + REFRESH_SEC - self._env.monotonic()))
            began = self._tried = self._env.monotonic()
            await self._discovery.refresh()
            self._refreshed = began

    # What comes in.

    async def on_items(self, link: Link, items: list[Item]) -> None:
        """Take what a link has received; an ill-formed body ends the link (TornRecord), nothing else does."""
        replies: list[Item] = []
        for kind, body in items:
            if kind == MESSAGE:
                header, payload = unpack(body, MessageHeader)
                status, text = await self._on_message(link, header, payload)
                replies.append((RECEIPT, pack(ReceiptHeader(header.id, status, text))))
            elif kind == RECEIPT:
                self._on_receipt(*unpack(body, ReceiptHeader))
        if replies:
            await link.send(replies)

    def _on_receipt(self, header: ReceiptHeader, payload: bytes) -> None:
        pending = self._pending.get(header.id)
        if pending is None:
            return  # it came after its deadline
        pending.status, pending.text = header.status, header.text
        pending.settled.set()
        if header.status in (HANDLED, RAISED):
            pending.answer = payload if header.status == HANDLED else None
            pending.handled.set()

    async def _on_message(self, link: Link, header: MessageHeader, payload: bytes) -> tuple[str, str]:
        inbox = self.inboxes.get(header.to)
        if inbox is None:
            return UNKNOWN, "no such agent in this process"
        try:
            is_spoken_for = await self._is_spoken_for(header.sender, link.peer)
        except StoreError as error:  # no reason to end the link: agents that are known go on talking over it
            log.warning("a message was refused: agent %.16s is not known, and the store is away: %s", header.sender, error)
            return REFUSED, "its sender is not known there and cannot be looked up, since the store is away; send again later"
        if not is_spoken_for:
            log.warning("a message was refused: node %s does not speak for agent %.16s", link.peer.hex()[:16], header.sender)
            return REFUSED, "no descriptor of the sender names the node that sent this"
        pair, now = Pair(header.sender, header.lease, header.to), self._env.monotonic()
        seen = self._streams.see(pair, header.sequence, header.id, now)
        if seen is Seen.REPEATED:
            return ACCEPTED, ""
        if seen is not Seen.NEW:
            return REFUSED, "it is older than one that was taken" if seen is Seen.OLD else "too many senders are remembered"
        status, text = self._put(inbox, header, payload, self._answer_over(link, header) if header.wants == HANDLED else None)
        if status == ACCEPTED:
            self._streams.take(pair, header.sequence, header.id, now)
        return status, text

    async def _is_spoken_for(self, sender: str, node_key: bytes) -> bool:
        if not self._registry.is_spoken_for(sender, node_key):
            await self._refresh()
        return self._registry.is_spoken_for(sender, node_key)

    def _put(
        self, inbox: LocalInbox, header: MessageHeader, payload: bytes, answer: Callable[[bytes | None, str], Awaitable[None]] | None
    ) -> tuple[str, str]:
        if not inbox.takes_messages:
            return REFUSED, "the agent takes no messages: it has no on_message"
        if inbox.is_full:
            return FULL, "its inbox is full"
        try:
            content = decode_plain(payload, "payload")
        except TornRecord as error:
            return REFUSED, str(error)
        message = Message(
            id=header.id, sender=header.sender, recipient=header.to, payload=content, task_id=header.task, sent_at=moment(header.sent_at)
        )
        try:
            message = self._host.guard(RECEIVED, message)
        except Undeliverable as error:
            log.warning("message %s was refused: %s", header.id, error)
            return REFUSED, "a guard of the recipient's node refused it"  # why is the node's own business
        inbox.put(message, answer)
        return ACCEPTED, ""

    def _answer_here(self, pending: _Pending) -> Callable[[bytes | None, str], Awaitable[None]]:
        async def answer(result: bytes | None, why: str) -> None:
            pending.answer, pending.text, pending.status = result, why, RAISED if result is None else HANDLED
            pending.handled.set()

        return answer

    def _answer_over(self, link: Link, header: MessageHeader) -> Callable[[bytes | None, str], Awaitable[None]]:
        async def answer(result: bytes | None, why: str) -> None:
            try:
                receipt = ReceiptHeader(header.id, RAISED if result is None else HANDLED, why[:1_000])
                await link.send([(RECEIPT, pack(receipt, result or b""))])
            except ConvergeError as error:
                log.warning("the answer to message %s could not be sent: %s", header.id, error)

        return answer


def _settle(to: str, status: str, text: str) -> None:
    """Return if the message was taken.

    Raises:
        Backpressure, Undeliverable: It was not, and why.
    """
    if status == FULL:
        raise Backpressure(f"agent {to}: {text}; send again later, or slower")
    if status in (UNKNOWN, REFUSED):
        raise Undeliverable(f"agent {to}: {text}")
