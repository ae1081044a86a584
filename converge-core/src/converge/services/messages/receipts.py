"""Answers to messages of other nodes: sent when a handler ends, and kept for a while in case the connection breaks."""

from __future__ import annotations

import logging
from collections import OrderedDict

from converge.errors import ConvergeError, MessageTooLarge
from converge.machines.records import RECEIPT, Item
from converge.model.envelope import DROPPED, HANDLED, RAISED, MessageHeader, ReceiptHeader, pack
from converge.services.messages.inboxes import STOPPING
from converge.services.messages.routes import Routes
from converge.services.messages.unsettled import Link

log = logging.getLogger("converge.post")

KEPT = 1_000
"""Answers that are kept at most, for senders who repeat their message because the connection broke."""

KEPT_BYTES = 1_048_576
"""Their size together: past it the oldest go, and who still waits for one of those meets its deadline."""

TEXT = 1_000
"""Characters of a reason that travel."""


class Answers:
    """The answers that handlers of this process owe to other nodes, and those given last."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._owed: dict[tuple[str, str], RemoteOutcome] = {}  # by sender and id: nobody is told what another one asked
        self._kept: OrderedDict[tuple[str, str], Item] = OrderedDict()
        self._bytes = 0

    def owe(self, link: Link, header: MessageHeader) -> RemoteOutcome:
        """Return what sends the answer once the handler has ended."""
        owed = self._owed[header.sender, header.id] = RemoteOutcome(self, link, header)
        return owed

    def forget(self, header: MessageHeader) -> None:
        """Forget the message: it was not accepted, so it gets no answer."""
        self._owed.pop((header.sender, header.id), None)

    def again(self, link: Link, header: MessageHeader) -> Item | None:
        """Return the answer to a message that is repeated, if it was given; one that is owed goes over this link, when
        it is there.
        """
        if (owed := self._owed.get((header.sender, header.id))) is not None:
            owed.link = link
        return self._kept.get((header.sender, header.id))

    async def give(self, owed: RemoteOutcome, receipt: ReceiptHeader, payload: bytes) -> None:
        """Send an answer, and keep it."""
        self._owed.pop((owed.sender, receipt.id), None)
        try:
            item = RECEIPT, pack(receipt, payload)
        except MessageTooLarge as error:  # so that the one who asks is told, and does not wait for its deadline
            item = RECEIPT, pack(ReceiptHeader(receipt.id, RAISED, f"MessageTooLarge: {error}"))
        self._keep((owed.sender, receipt.id), item)
        try:
            link = owed.link if not owed.link.is_closed else await self._routes.link_of(owed.sender)
            await link.send([item])
        except ConvergeError as error:
            log.info("the answer to message %s waits for its sender to ask again: %s", receipt.id, error)

    def _keep(self, key: tuple[str, str], item: Item) -> None:
        self._kept[key] = item
        self._bytes += len(item[1])
        while len(self._kept) > 1 and (len(self._kept) > KEPT or self._bytes > KEPT_BYTES):
            self._bytes -= len(self._kept.popitem(last=False)[1][1])


class RemoteOutcome:
    """Answers the sender of one message, over the link that it came by last or, if that has ended, another one."""

    __slots__ = ("_answers", "_id", "link", "sender")

    def __init__(self, answers: Answers, link: Link, header: MessageHeader) -> None:
        self._answers, self.link, self._id, self.sender = answers, link, header.id, header.sender

    async def __call__(self, answer: bytes | None, why: str) -> None:
        """See `OnHandled`."""
        await self._answers.give(
            self, ReceiptHeader(self._id, RAISED if answer is None else HANDLED, why[:TEXT]), answer or b""
        )

    async def drop(self) -> None:
        """See `OnHandled`."""
        await self._answers.give(self, ReceiptHeader(self._id, DROPPED, STOPPING), b"")
