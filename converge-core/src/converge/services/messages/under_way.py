"""A message to another node that has no receipt yet, and the link that it goes over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio
import msgspec

from converge.machines.records import MESSAGE, SIGNED, SIGNED_TOGETHER, Item
from converge.model.envelope import (
    ACCEPTED,
    CHAINS,
    DROPPED,
    EARLY,
    HANDLED,
    RAISED,
    TOGETHER,
    MessageHeader,
    ReceiptHeader,
    pack,
    sign,
)
from converge.model.identity import Identity
from converge.model.together import MOST, sign_together
from converge.services.messages.inboxes import raise_for_status
from converge.services.messages.waits import Waiter

ENDED = frozenset((HANDLED, RAISED, DROPPED))
"""What a receipt says of a message whose handler does nothing more."""

TAKEN = frozenset((ACCEPTED, HANDLED, RAISED))
"""What it says of one that was taken."""


UNSIGNED = 255
"""The kind of an item that is not `signed` yet; it never leaves."""

TOGETHER_BYTES = 16_384
"""The longest payload that shares a signature."""


class Waiting(Protocol):
    """Somebody who waits for a receipt, and is told when none can come over this link."""

    def give_up(self) -> None: ...


class Link(Protocol):
    """A secured connection to another node; `runtime.network.link` says what each of these does."""

    peer: bytes
    address: str
    features: int
    is_closed: bool
    why: str
    waiting: set[Waiting]
    shown: dict[str, bytes]
    speakers: dict[str, int]
    speakers_bytes: int
    work: int

    @property
    def is_full_of_answers(self) -> bool: ...

    async def send(self, items: list[Item], owed: str = "", on_queued: Callable[[], None] = ...) -> None: ...

    def offer(self, item: Item, owed: str = "") -> bool: ...

    def settled(self, message_id: str) -> None: ...

    def post(self, items: list[Item]) -> None: ...

    def show(self, agent_id: str, signed: bytes) -> None: ...

    def answer(self, item: Item) -> bool: ...


class Signer:
    """Signs messages for a network with the sender's key, each with the store's time at the try."""

    __slots__ = ("_identity", "_network_tag", "_now")

    def __init__(self, identity: Identity, network_tag: bytes, now: Callable[[], int]) -> None:
        self._identity, self._network_tag, self._now = identity, network_tag, now

    def item(self, header: MessageHeader, payload: bytes, features: int = 0) -> Item:
        """Return the signed item; for a peer that knows it, one that is `signed` when it leaves, with those beside it.
        A long one is signed at once: it fits into no record.
        """
        if features & TOGETHER and len(payload) <= TOGETHER_BYTES:
            return UNSIGNED, Unsigned(pack(self._named(header), payload), self)
        return SIGNED, self.body(header, payload)

    def body(self, header: MessageHeader, payload: bytes) -> bytes:
        """Return the signed body."""
        return sign(self._identity, self._network_tag, self._named(header), payload)

    def together(self, bodies: Sequence[bytes]) -> list[bytes]:
        """Return members with one signature of a few bodies of this signer's."""
        return sign_together(self._identity, self._network_tag, bodies)

    @property
    def sender(self) -> str:
        """Who signs."""
        return self._identity.id

    def _named(self, header: MessageHeader) -> MessageHeader:
        return msgspec.structs.replace(header, key=self._identity.public_key.hex(), sent_at=self._now())


class Unsigned(bytes):
    """The body of a message that its signer signs when it leaves."""

    signer: Signer

    def __new__(cls, body: bytes, signer: Signer) -> Unsigned:
        self = super().__new__(cls, body)
        self.signer = signer
        return self


def signed(items: list[Item]) -> list[Item]:
    """Return items as they leave: those of one sender that wait for a signature share it, up to `MOST`, and each stays
    in its place.
    """
    places: dict[str, list[int]] = {}
    for place, (kind, body) in enumerate(items):
        if kind == UNSIGNED and isinstance(body, Unsigned):
            places.setdefault(body.signer.sender, []).append(place)
    for all_ in places.values():
        for at in range(0, len(all_), MOST):
            some = all_[at : at + MOST]
            first = items[some[0]][1]
            assert isinstance(first, Unsigned), "so it was chosen"
            members = first.signer.together([items[place][1] for place in some])
            for place, member in zip(some, members, strict=True):
                items[place] = SIGNED_TOGETHER, member
    return items


def item_of(
    header: MessageHeader, payload: bytes, sequence: int, after: int, features: int, signer: Signer | None
) -> Item:
    """Return what goes over the wire, to a peer with these features."""
    chain = header.chain if features & CHAINS else ()
    if header.sequence != sequence or header.after != after or header.chain != chain:
        header = msgspec.structs.replace(header, sequence=sequence, after=after, chain=chain)
    return (MESSAGE, pack(header, payload)) if signer is None else signer.item(header, payload, features)


class UnderWay:
    """One message, and what its receipts have said so far.

    Attributes:
        key: What receipts find it by: of a message to all agents of a node there is one for each node.
        pair: Whose order it keeps: the sender, and the recipient, or the node's key where it is for all agents of it.
        queue: The messages of its pair that are not settled, by sequence; None: this one is.
        is_settled: Whether the wait for its receipts is over: there is one, or the link has ended.
        was_sent: Whether the last try has left, or may have.
        may_be_taken: Whether an earlier try may have been taken: its link ended before a receipt came.
        is_quick: Whether its sender waits for all of its receipts at once.
        is_expired: Whether its deadline, noted in `grain`, has come.
    """

    __slots__ = (
        "answer",
        "cause",
        "done",
        "grain",
        "header",
        "is_expired",
        "is_handled",
        "is_quick",
        "is_settled",
        "key",
        "link",
        "may_be_taken",
        "pair",
        "payload",
        "queue",
        "receipt",
        "sequence",
        "signer",
        "waiter",
        "was_sent",
    )

    def __init__(self, header: MessageHeader, payload: bytes, stream: str, signer: Signer | None = None) -> None:
        self.header, self.payload, self.signer, self.pair = header, payload, signer, (header.sender, stream)
        self.key = header.id if header.to else header.id + stream
        self.receipt: ReceiptHeader | None = None
        self.answer: bytes | None = None
        self.sequence = self.grain = 0
        self.was_sent = self.may_be_taken = False
        self.cause: Exception | None = None  # of the last try that failed
        self.link: Link | None = None  # that it was sent over last
        self.queue: dict[int, UnderWay] | None = None
        self.is_settled = self.is_handled = self.is_quick = self.is_expired = False
        self.waiter: Waiter | None = None
        self.done: anyio.Event | None = None  # made by who waits for it

    def sent(self) -> None:
        """Note that it may leave from now on."""
        self.was_sent = True

    def give_up(self) -> None:
        """Note that the link has ended: without a receipt the message is sent again."""
        self.is_settled = True
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def expire(self) -> None:
        """Note that the deadline has come."""
        self.is_expired = True
        self.give_up()

    def on_receipt(self, receipt: ReceiptHeader, payload: bytes) -> None:
        """Record a receipt."""
        if self.is_handled:
            return
        self.receipt = receipt
        if receipt.status in ENDED:
            self.answer = payload if receipt.status == HANDLED else None
            self.is_handled = True
        elif self.is_quick and receipt.status == ACCEPTED and self.header.wants == HANDLED:
            self.leave()  # and nobody is woken before its answer is there
            return
        self.give_up()

    def leave(self) -> None:
        """Let the next messages of the pair go on: this one is settled."""
        queue, self.queue = self.queue, None
        if queue is not None:
            del queue[self.sequence]
            if self.done is not None:
                self.done.set()

    def item(self, after: int, features: int = 0) -> Item:
        """Return what goes over the wire, to a peer with these features."""
        return item_of(self.header, self.payload, self.sequence, after, features, self.signer)

    def is_over(self) -> bool:
        """Return whether the receipts say all that is wanted.

        Raises:
            Undeliverable, Backpressure, Dropped: They say that it was not taken, or that its node stopped.
        """
        if self.receipt is None or self.receipt.status == EARLY:
            return False
        self.raise_if_refused()
        return self.is_handled or self.header.wants != HANDLED

    def raise_if_refused(self) -> None:
        """Raise unless the last receipt says that the message was accepted.

        Raises:
            Undeliverable, Backpressure: It says why not.
        """
        receipt = self.receipt
        assert receipt is not None, "there is one"
        if receipt.status not in TAKEN:
            header = self.header
            whom = f"agent {header.to}" if header.to else "the node"
            raise_for_status(whom, receipt.status, receipt.text, (*header.chain[1:], header.to))
