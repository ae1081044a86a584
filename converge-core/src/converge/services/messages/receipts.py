"""Answers to messages of other nodes: sent when a handler ends, and kept for a while in case the connection breaks.

Who gives an answer never waits for the peer that asked.
"""

from __future__ import annotations

from collections import OrderedDict

import anyio

from converge.errors import ConvergeError, MessageTooLarge
from converge.machines.records import RECEIPT, Item
from converge.model.envelope import DROPPED, HANDLED, RAISED, MessageHeader, ReceiptHeader, pack
from converge.services.messages.inboxes import ENDING
from converge.services.messages.quotas import weight_of_answer
from converge.services.messages.routes import Routes
from converge.services.messages.under_way import Link

KEPT = 1_000
"""Answers that are kept at most, for senders who repeat their message because the connection broke."""

KEPT_BYTES = 1_048_576
"""Their size together: past it the oldest go of the node that has most, and who waits for those meets a deadline."""

LATE_AT_A_TIME = 100
"""Answers for which a connection is looked for at a time, because the one that their question came by has ended."""

LATE_SEC = 10.0


class Answers:
    """The answers that handlers of this process owe to other nodes, and those given last."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._owed: dict[tuple[str, str], RemoteOutcome] = {}  # by sender and id: nobody is told what another one asked
        self._kept: dict[bytes, OrderedDict[tuple[str, str], Item]] = {}  # by the node that asked
        self._count = self._bytes = self._late = 0

    def owe(self, link: Link, header: MessageHeader) -> RemoteOutcome:
        """Return what sends the answer once the handler has ended."""
        owed = self._owed[header.sender, header.id] = RemoteOutcome(self, link, header)
        return owed

    def forget(self, header: MessageHeader) -> None:
        """Forget the message: it was not accepted, so it gets no answer."""
        self._owed.pop((header.sender, header.id), None)

    def again(self, link: Link, header: MessageHeader) -> Item | None:
        """Return the answer to a repeated message, if it was given; one that is owed then goes over this link."""
        if (owed := self._owed.get((header.sender, header.id))) is not None:
            owed.link = link
        kept = self._kept.get(link.peer)
        return None if kept is None else kept.get((header.sender, header.id))

    def give(self, owed: RemoteOutcome, receipt: ReceiptHeader, payload: bytes) -> None:
        """Send an answer, and keep it."""
        self._owed.pop((owed.sender, receipt.id), None)
        try:
            item = RECEIPT, pack(receipt, payload)
        except MessageTooLarge as error:  # so that the one who asks is told, and does not wait for its deadline
            item = RECEIPT, pack(ReceiptHeader(receipt.id, RAISED, f"MessageTooLarge: {error}"))
        self._keep(owed.link.peer, (owed.sender, receipt.id), item)
        owed.link.work += weight_of_answer(item)
        link = owed.link if not owed.link.is_closed else self._routes.open(owed.link.peer)
        if link is not None:
            self._send(link, receipt.id, item)
        elif self._late < LATE_AT_A_TIME and self._routes.errand is not None:
            self._late += 1
            self._routes.errand(self._send_late, owed.sender, receipt.id, item)

    def _send(self, link: Link, message_id: str, item: Item) -> None:
        if not link.answer(item):
            why = f"Backpressure: its answer of {len(item[1]):,} bytes finds no room: others wait on this connection"
            self._routes.quietly.info(link.address, "the answer to message %s was lost: %s", message_id, why)
            link.post([(RECEIPT, pack(ReceiptHeader(message_id, RAISED, why)))])

    async def _send_late(self, sender: str, message_id: str, item: Item) -> None:
        try:
            with anyio.fail_after(LATE_SEC):
                self._send(await self._routes.link_of(sender), message_id, item)
        except (ConvergeError, TimeoutError) as error:
            text = "the answer to message %s waits for its sender to ask again: %s"
            self._routes.quietly.info(sender, text, message_id, error)
        finally:
            self._late -= 1

    def _keep(self, peer: bytes, key: tuple[str, str], item: Item) -> None:
        of_peer = self._kept.setdefault(peer, OrderedDict())
        if (older := of_peer.pop(key, None)) is not None:  # it used the id twice: that costs nobody else's answers
            self._bytes -= len(older[1])
            self._count -= 1
        of_peer[key] = item
        self._bytes += len(item[1])
        self._count += 1
        while self._count > 1 and (self._count > KEPT or self._bytes > KEPT_BYTES):
            most = max(self._kept, key=lambda one: len(self._kept[one])) if len(self._kept) > 1 else peer
            kept = self._kept[most]
            self._bytes -= len(kept.popitem(last=False)[1][1])
            self._count -= 1
            if not kept:
                del self._kept[most]


class RemoteOutcome:
    """Answers the sender of one message, over the link that it came by last or, if that has ended, another one."""

    __slots__ = ("_answers", "_id", "chain", "link", "sender")

    def __init__(self, answers: Answers, link: Link, header: MessageHeader) -> None:
        self._answers, self.link, self._id, self.sender = answers, link, header.id, header.sender
        self.chain = header.chain

    def __call__(self, answer: bytes | None, why: str) -> None:
        """See `OnHandled`."""
        self._answers.give(self, ReceiptHeader(self._id, RAISED if answer is None else HANDLED, why), answer or b"")

    def drop(self) -> None:
        """See `OnHandled`."""
        self._answers.give(self, ReceiptHeader(self._id, DROPPED, ENDING), b"")
