"""Messages to other nodes without a receipt yet: each is repeated with its id, those of a pair in order."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from itertools import count
from math import inf

import anyio

from converge.errors import (
    AskCycle,
    Backpressure,
    BadSignature,
    ChannelError,
    ConnectFailed,
    ConnectionLost,
    DeliveryTimeout,
    Dropped,
    MessageTooLarge,
    StoreError,
    Undeliverable,
)
from converge.model.envelope import EARLY, HANDED, HANDLED, MessageHeader, ReceiptHeader
from converge.net.throttle import Throttle
from converge.services.messages.under_way import TAKEN, Link, Signer, UnderWay, item_of
from converge.services.messages.waits import Deadlines, Waiter, waiters

log = logging.getLogger("converge.post")

RETRY_LEAST_SEC, RETRY_GREATEST_SEC = 0.05, 1.0
"""Waits between tries to reach a node."""

CHOOSY_SEC = 1.0
"""How long a dial may take before another agent of the capability is tried."""


Reach = Callable[[], Awaitable[Link]]
"""Gives the link to the recipient's node, as it is known now."""


class MessagesUnderWay:
    """The messages of this process that are not settled, and the order of those of each pair."""

    def __init__(
        self,
        monotonic: Callable[[], float],
        errand: Callable[..., object] | None = None,
        credential: Callable[[str], bytes | None] = lambda agent_id: None,
    ) -> None:
        """`errand`: starts the task that ends waits. `credential`: returns the signed descriptor of an agent of this
        process, which is shown before it speaks.
        """
        self._monotonic, self._credential = monotonic, credential
        self._quietly = Throttle(log, monotonic)
        self._by_id: dict[str, UnderWay] = {}
        # One count for all pairs: a pair of which nothing is under way needs no memory, and its next message still has
        # a higher sequence.
        self._sequence = count(1)
        self._pairs: dict[tuple[str, str], dict[int, UnderWay]] = {}
        self._deadlines = None if errand is None else Deadlines(monotonic, errand)
        self._new_waiter: Callable[[], Waiter] | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def on_receipt(self, peer: bytes, receipt: ReceiptHeader, payload: bytes) -> None:
        """Accept a node's receipt; ignore one after the deadline, or from a node that was not sent the message."""
        one = self._by_id.get(receipt.id)
        if one is None:
            one = self._by_id.get(receipt.id + peer.hex())
        if one is not None and one.link is not None and one.link.peer == peer:
            one.on_receipt(receipt, payload)

    def draw(self) -> int:
        """Return the sequence of a message that begins before anything is awaited."""
        return next(self._sequence)

    def hand(self, header: MessageHeader, payload: bytes, link: Link, signer: Signer | None) -> bool:
        """Send a message whose sequence is drawn and that wants no receipt, where nothing is to be remembered of it:
        over a link that has room, and behind no message of its pair; return whether that was so.

        Raises:
            MessageTooLarge: It is over the limit.
        """
        if (header.sender, header.to) in self._pairs:
            return False
        if signer is None:
            self._introduce(header.sender, link)
        try:
            return link.offer(item_of(header, payload, header.sequence, 0, link.features, signer))
        except ConnectionLost:
            return False

    def start(self, one: UnderWay, link: Link | None, until: float) -> Waiter | None:
        """Begin a message, and send it if that needs no wait: over a link that is open and has room. Return what to
        await for its receipts, if it was sent and has any; then `UnderWay.is_over` says whether that was all. What is
        left to do, `finish` does. `end` follows in any case.

        Raises:
            MessageTooLarge: It is over the limit.
        """
        after = self._begin(one)
        if link is None or self._deadlines is None:
            return None
        try:
            if not self._offer(one, link, after) or one.header.wants == HANDED:
                return None
        except ConnectionLost as error:
            one.cause = error
            return None
        if self._new_waiter is None:
            self._new_waiter = waiters()
        one.waiter, one.is_quick = self._new_waiter(), True
        one.grain = self._deadlines.add(one, until)
        link.waiting.add(one)
        return one.waiter

    def stop(self, one: UnderWay, link: Link) -> None:
        """End the wait that `start` has begun."""
        one.is_quick = False
        link.waiting.discard(one)
        if self._deadlines is not None:
            self._deadlines.discard(one, one.grain)

    def _begin(self, one: UnderWay) -> int:
        """Draw a message's sequence; return that of the last one before it that is not settled, or 0."""
        queue = self._pairs.get(one.pair)
        if queue is None:
            queue = self._pairs[one.pair] = {}
        after = next(reversed(queue)) if queue else 0
        one.sequence = sequence = one.header.sequence or next(self._sequence)
        self._by_id[one.key] = queue[sequence] = one
        one.queue = queue
        return after

    def end(self, one: UnderWay) -> None:
        """Forget a message."""
        if one.queue is not None:
            one.leave()
        self._by_id.pop(one.key, None)
        queue = self._pairs.get(one.pair)
        if queue is not None and not queue:
            del self._pairs[one.pair]

    async def deliver(self, one: UnderWay, reach: Reach, *, patience_sec: float = inf) -> None:
        """Send the message until a receipt says that it was taken, or handled if wanted. The caller has a deadline.

        Args:
            one: The message.
            reach: Finds the link.
            patience_sec: How long to go on trying to reach the node; 0: there are other recipients, do not wait.

        Raises:
            Undeliverable, Backpressure: It was certainly not taken.
            ChannelError, StoreError: The patience is over, and it was certainly not taken.
            DeliveryTimeout: The patience is over, and it may have been taken; never where there are other recipients.
        """
        try:
            self._begin(one)
            await self.finish(one, reach, patience_sec=patience_sec)
        finally:
            self.end(one)

    async def finish(self, one: UnderWay, reach: Reach, *, patience_sec: float = inf) -> None:
        """Do what is left of `deliver`, of a message that has begun and may have been sent."""
        if one.queue is not None:
            await self._until_settled(one, one.queue, reach, patience_sec)
            one.leave()
        if one.header.wants == HANDLED:
            await self._until_handled(one, reach)

    async def _until_settled(
        self, one: UnderWay, queue: dict[int, UnderWay], reach: Reach, patience_sec: float
    ) -> None:
        wait_sec, until = RETRY_LEAST_SEC, self._monotonic() + patience_sec
        is_tried = one.link is not None and one.is_settled
        while True:
            try:
                if not is_tried:
                    await self._send(one, await _reached(reach, patience_sec), _before(one, queue))
                    if one.header.wants == HANDED:
                        return
                    await self._receipt(one)
                if _is_taken(one):
                    return
            except (MessageTooLarge, BadSignature, Dropped, AskCycle):
                raise
            except (ChannelError, StoreError, Undeliverable, Backpressure) as error:
                if one.was_sent and one.receipt is None and not one.may_be_taken:
                    one.may_be_taken, until = True, self._monotonic() + patience_sec
                if not isinstance(error, ChannelError | StoreError) and not one.may_be_taken:
                    raise
                one.cause = error
                if self._monotonic() >= until:
                    _give_up(one, error, patience_sec)
                text, to = "message %s to %.16s is repeated: %s", one.header.to or "all of a node"
                self._quietly.info(str(error), text, one.header.id, to, error)
            is_tried = False
            one.is_settled, one.receipt = False, None
            if not await _earlier(one, queue):  # who has waited for one before it, need not wait more
                await anyio.sleep(wait_sec)
                wait_sec = min(wait_sec * 2, RETRY_GREATEST_SEC)

    def _offer(self, one: UnderWay, link: Link, after: int) -> bool:
        """Give a message to a link that has room, after its sender's descriptor; return whether it has."""
        header = one.header
        if one.signer is None:
            self._introduce(header.sender, link)
        if not link.offer(one.item(after, link.features), "" if header.wants == HANDED else header.id):
            return False
        one.link, one.was_sent = link, True
        return True

    def _introduce(self, sender: str, link: Link) -> None:
        """Show an agent's descriptor to a peer that has not seen it, before what it says."""
        credential = self._credential(sender)
        if credential is not None and link.shown.get(sender) is not credential:
            link.show(sender, credential)

    async def _send(self, one: UnderWay, link: Link, after: int) -> None:
        """Give a message to a link, when it has room."""
        if self._offer(one, link, after):
            return
        one.link = link
        owed = "" if one.header.wants == HANDED else one.header.id
        await link.send([one.item(after, link.features)], owed, one.sent)

    async def _receipt(self, one: UnderWay) -> None:
        """Wait for the receipt; a link that ends meanwhile ends the wait."""
        link = one.link
        assert link is not None, "it was sent over one"
        if self._new_waiter is None:
            self._new_waiter = waiters()
        link.waiting.add(one)
        try:
            if not link.is_closed and not one.is_settled:
                one.waiter = self._new_waiter()
                await one.waiter
        finally:
            link.waiting.discard(one)

    async def _until_handled(self, one: UnderWay, reach: Reach) -> None:
        """Wait for the answer; when the link ends meanwhile, repeat the message, known to be taken, over another, and
        again where that node does not take it: it may be a new one, that has begun a moment ago.

        Raises:
            Dropped: The node stopped before a handler had ended.
        """
        wait_sec, is_refused = RETRY_LEAST_SEC, False
        while not one.is_handled:
            try:
                link = await reach()
                if one.is_handled:
                    break
                one.is_settled = False
                if link is not one.link or is_refused:
                    await self._send(one, link, 0)
                await self._receipt(one)
                is_refused = one.receipt is not None and one.receipt.status not in TAKEN
                is_again = link.is_closed or is_refused
                if is_again:
                    one.cause = Undeliverable(one.receipt.text) if is_refused and one.receipt else _ended(link)
            except (ChannelError, StoreError, Undeliverable) as error:
                one.cause = error
                text = "the answer to message %s from %.16s is asked again: %s"
                self._quietly.info(str(error), text, one.header.id, one.header.to, error)
                is_again = True
            if is_again and not one.is_handled:
                await anyio.sleep(wait_sec)
                wait_sec = min(wait_sec * 2, RETRY_GREATEST_SEC)
        one.raise_if_refused()


def _is_taken(one: UnderWay) -> bool:
    """Return whether the receipt of the last try says that the message was taken; False: it is to come again.

    Raises:
        Undeliverable, Backpressure: It says that it was not.
        ConnectionLost: There is none.
    """
    receipt, link = one.receipt, one.link
    if receipt is None:
        assert link is not None, "it was sent over one"
        raise _ended(link)
    if receipt.status != EARLY:
        one.raise_if_refused()
        return True
    one.was_sent = one.may_be_taken  # its node says itself that it has not this one
    one.cause = Undeliverable(f"not taken yet: {receipt.text}")
    return False


def _ended(link: Link) -> ConnectionLost:
    return ConnectionLost(f"the connection ended before the recipient's node had answered: {link.why}")


def _give_up(one: UnderWay, error: Exception, patience_sec: float) -> None:
    """Raise at the end of the patience, unless another recipient could get what the first one may have."""
    if not one.was_sent:
        raise error
    if patience_sec:
        raise DeliveryTimeout(
            "the connection ended before a receipt came, and the node was not reached again; it may have the message "
            f"or not; the last try: {error}"
        ) from error


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
