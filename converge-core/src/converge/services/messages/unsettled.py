"""Messages to other nodes that have no receipt yet: each is repeated with the same id, those of one sender to one
recipient in order.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from itertools import count
from math import inf
from typing import Protocol

import anyio
import msgspec

from converge.errors import BadSignature, ChannelError, ConnectFailed, MessageTooLarge, StoreError, Undeliverable
from converge.machines.records import MESSAGE, SIGNED, Item
from converge.model.envelope import (
    CHAINS,
    DROPPED,
    EARLY,
    HANDED,
    HANDLED,
    RAISED,
    MessageHeader,
    ReceiptHeader,
    pack,
    sign,
)
from converge.model.identity import Identity
from converge.services.messages.inboxes import raise_for_status

log = logging.getLogger("converge.post")

RETRY_LEAST_SEC, RETRY_GREATEST_SEC = 0.05, 1.0
"""Waits between tries to reach a node."""


CHOOSY_SEC = 1.0
"""How long a dial may take before another agent of the capability is tried."""


class Waiting(Protocol):
    """Somebody who waits for a receipt, and is told when none can come over this link."""

    def give_up(self) -> None: ...


class Link(Protocol):
    """A secured connection to another node; `runtime.network.link` says what each of these does."""

    peer: bytes
    address: str
    features: int
    is_closed: bool
    waiting: set[Waiting]
    shown: dict[str, bytes]
    speakers: dict[str, int]
    speakers_bytes: int
    work: int

    @property
    def is_full_of_answers(self) -> bool: ...

    async def send(self, items: list[Item], owed: str = "") -> None: ...

    def offer(self, item: Item, owed: str = "") -> bool: ...

    def settled(self, message_id: str) -> None: ...

    def post(self, items: list[Item]) -> None: ...

    def show(self, agent_id: str, signed: bytes) -> None: ...

    def answer(self, item: Item) -> bool: ...


Reach = Callable[[], Awaitable[Link]]
"""Gives the link to the recipient's node, as it is known now."""


class Signer:
    """Signs messages for a network with the sender's key; the moment of each signature is the store's time at the
    try.
    """

    __slots__ = ("_identity", "_network_tag", "_now")

    def __init__(self, identity: Identity, network_tag: bytes, now: Callable[[], int]) -> None:
        self._identity, self._network_tag, self._now = identity, network_tag, now

    def item(self, header: MessageHeader, payload: bytes) -> Item:
        """Return the signed item."""
        return SIGNED, self.body(header, payload)

    def body(self, header: MessageHeader, payload: bytes) -> bytes:
        """Return the signed body."""
        header = msgspec.structs.replace(header, key=self._identity.public_key.hex(), sent_at=self._now())
        return sign(self._identity, self._network_tag, header, payload)


class UnderWay:
    """One message, and what its receipts have said so far."""

    __slots__ = (
        "answer",
        "cause",
        "done",
        "header",
        "is_handled",
        "link",
        "payload",
        "receipt",
        "sequence",
        "settled",
        "signer",
        "was_sent",
    )

    def __init__(self, header: MessageHeader, payload: bytes, signer: Signer | None = None) -> None:
        self.header, self.payload, self.signer = header, payload, signer
        self.receipt: ReceiptHeader | None = None
        self.answer: bytes | None = None
        self.sequence, self.was_sent = 0, False
        self.cause: Exception | None = None  # of the last try that failed
        self.link: Link | None = None  # that it was sent over last
        self.settled = anyio.Event()
        self.is_handled = False
        self.done: anyio.Event | None = None  # made by who waits for it

    def give_up(self) -> None:
        """Note that the link has ended: without a receipt the message is sent again."""
        self.settled.set()

    def on_receipt(self, receipt: ReceiptHeader, payload: bytes) -> None:
        """Record a receipt."""
        if self.is_handled:
            return
        self.receipt = receipt
        self.settled.set()
        if receipt.status in (HANDLED, RAISED, DROPPED):
            self.answer = payload if receipt.status == HANDLED else None
            self.is_handled = True

    def item(self, after: int, features: int = 0) -> Item:
        """Return what goes over the wire, to a peer with these features."""
        chain = self.header.chain if features & CHAINS else ()
        header = msgspec.structs.replace(self.header, sequence=self.sequence, after=after, chain=chain)
        return (MESSAGE, pack(header, self.payload)) if self.signer is None else self.signer.item(header, self.payload)


class MessagesUnderWay:
    """The messages of this process that are not settled, and the order of those of each pair."""

    def __init__(
        self, monotonic: Callable[[], float], credential: Callable[[str], bytes | None] = lambda agent_id: None
    ) -> None:
        """`credential`: returns the signed descriptor of an agent of this process, which is shown before it speaks."""
        self._monotonic, self._credential = monotonic, credential
        self._by_id: dict[str, UnderWay] = {}
        # One count for all pairs: a pair of which nothing is under way needs no memory, and its next message still has
        # a higher sequence.
        self._sequence = count(1)
        self._pairs: dict[tuple[str, str], dict[int, UnderWay]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def on_receipt(self, peer: bytes, receipt: ReceiptHeader, payload: bytes) -> None:
        """Accept a node's receipt; ignore one that comes after its message's deadline, or from a node that was not
        sent the message.
        """
        one = self._by_id.get(receipt.id + peer.hex()) or self._by_id.get(receipt.id)
        if one is not None and one.link is not None and one.link.peer == peer:
            one.on_receipt(receipt, payload)

    async def deliver(self, one: UnderWay, stream: str, reach: Reach, *, patience_sec: float = inf) -> None:
        """Send the message until a receipt says that it was taken, and if that is wanted, until it was handled. The
        caller has a deadline.

        Args:
            one: The message.
            stream: Whose order it keeps: the recipient, or the node's key where it is for all agents of the node.
            reach: Finds the link.
            patience_sec: How long to go on trying to reach the node; 0: there are other recipients, do not wait.

        Raises:
            Undeliverable, Backpressure: It was certainly not taken.
            ChannelError, StoreError: The patience is over, and it was certainly not taken.
        """
        pair = (one.header.sender, stream)
        queue = self._pairs.setdefault(pair, {})
        one.sequence = next(self._sequence)
        key = one.header.id if one.header.to else one.header.id + stream
        self._by_id[key] = queue[one.sequence] = one
        try:
            try:
                await self._until_settled(one, queue, reach, patience_sec)
            finally:
                del queue[one.sequence]
                if one.done is not None:
                    one.done.set()
                if not queue and self._pairs.get(pair) is queue:
                    del self._pairs[pair]
            if one.header.wants == HANDLED:
                await self._until_handled(one, reach)
        finally:
            del self._by_id[key]

    async def _until_settled(
        self, one: UnderWay, queue: dict[int, UnderWay], reach: Reach, patience_sec: float
    ) -> None:
        wait_sec, until = RETRY_LEAST_SEC, self._monotonic() + patience_sec
        while True:
            try:
                await self._send(one, await _reached(reach, patience_sec), _before(one, queue))
                if one.header.wants == HANDED:
                    return
                await _receipt(one)
            except (MessageTooLarge, BadSignature):
                raise
            except (ChannelError, StoreError) as error:
                one.cause = error
                if not one.was_sent and self._monotonic() >= until:
                    raise
                log.info("message %s to %.16s is repeated: %s", one.header.id, one.header.to or "all of a node", error)
            receipt = one.receipt
            if receipt is not None and receipt.status != EARLY:
                whom = f"agent {one.header.to}" if one.header.to else "the node"
                raise_for_status(whom, receipt.status, receipt.text, (*one.header.chain[1:], one.header.to))
                return
            if receipt is not None:
                one.was_sent = False  # its node says so itself
                one.cause = Undeliverable(f"not taken yet: {receipt.text}")
            one.settled, one.receipt = anyio.Event(), None
            if not await _earlier(one, queue):  # who has waited for one before it, need not wait more
                await anyio.sleep(wait_sec)
                wait_sec = min(wait_sec * 2, RETRY_GREATEST_SEC)

    async def _send(self, one: UnderWay, link: Link, after: int) -> None:
        """Give a message to a link, after the descriptor of its sender where the peer has not seen that."""
        if one.signer is None and (credential := self._credential(one.header.sender)) is not None:
            link.show(one.header.sender, credential)
        item, owed = one.item(after, link.features), "" if one.header.wants == HANDED else one.header.id
        before, one.link = one.was_sent, link
        one.was_sent = True
        try:
            if not link.offer(item, owed):
                await link.send([item], owed)
        except ChannelError:  # it was not queued
            one.was_sent = before
            raise

    async def _until_handled(self, one: UnderWay, reach: Reach) -> None:
        """Wait for the answer; when the link ends meanwhile, repeat the message over another, to be answered there: it
        is known to be taken.

        Raises:
            Dropped: The node stopped before a handler had ended.
        """
        wait_sec = RETRY_LEAST_SEC
        while not one.is_handled:
            try:
                link = await reach()
                if one.is_handled:
                    break
                if link is not one.link or one.settled.is_set():
                    one.settled = anyio.Event()
                if link is not one.link:
                    await self._send(one, link, 0)
                await _receipt(one)
                is_again = link.is_closed
            except (ChannelError, StoreError, Undeliverable) as error:
                one.cause = error
                log.info("the answer to message %s from %.16s is asked again: %s", one.header.id, one.header.to, error)
                is_again = True
            if is_again and not one.is_handled:
                await anyio.sleep(wait_sec)
                wait_sec = min(wait_sec * 2, RETRY_GREATEST_SEC)
        assert one.receipt is not None, "its receipt says that it was handled"
        raise_for_status(f"agent {one.header.to}", one.receipt.status, one.receipt.text)


async def _reached(reach: Reach, patience_sec: float) -> Link:
    """Return the link; who does not wait is told that a dial takes long, and it goes on.

    Raises:
        ConnectFailed: It does.
    """
    if patience_sec:
        return await reach()
    with anyio.move_on_after(CHOOSY_SEC):
        return await reach()
    raise ConnectFailed(f"connecting takes more than {CHOOSY_SEC:g} s")


async def _receipt(one: UnderWay) -> None:
    """Wait for the receipt; a link that ends meanwhile ends the wait."""
    link = one.link
    assert link is not None, "it was sent over one"
    link.waiting.add(one)
    try:
        if not link.is_closed:
            await one.settled.wait()
    finally:
        link.waiting.discard(one)


def _before(one: UnderWay, queue: dict[int, UnderWay]) -> int:
    """Return the sequence of the last unsettled message before this one, or 0."""
    return next((sequence for sequence in reversed(queue) if sequence < one.sequence), 0)


async def _earlier(one: UnderWay, queue: dict[int, UnderWay]) -> bool:
    """Wait until every message before this one is settled; return whether there was any.

    The first try of a message leaves behind the others without a pause. Once something went wrong there is one at a
    time, or a link that breaks with a hundred of a pair under way would see each of them repeated again and again.
    """
    was_any = False
    while before := _before(one, queue):
        was_any = True
        earlier = queue[before]
        earlier.done = earlier.done or anyio.Event()
        await earlier.done.wait()
    return was_any
