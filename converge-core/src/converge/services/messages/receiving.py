"""Messages from links: each is accepted once and in order, if its sender may use that link, and gets a receipt."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import anyio
import attrs

from converge.errors import BadSignature, InvalidKey, TornRecord
from converge.machines.records import GONE, MESSAGE, RECEIPT, SHOWN, SIGNED, SIGNED_TOGETHER, Item
from converge.machines.stream import Pair, Seen, Streams
from converge.model.envelope import (
    ACCEPTED,
    EARLY,
    FULL,
    HANDED,
    HANDLED,
    PING,
    REFUSED,
    STATUSES,
    UNKNOWN,
    MessageHeader,
    ReceiptHeader,
    open_signed,
    pack,
    unpack,
)
from converge.model.identity import node_name
from converge.model.together import Together
from converge.net.throttle import Throttle
from converge.services.messages.descriptors import DESCRIPTORS, Asking
from converge.services.messages.inboxes import ABSENT, STOPPING, Inboxes
from converge.services.messages.quotas import HEAVY_BYTES, LIGHT, SIGNATURE, SLICE, Quotas, weight, weight_of_answer
from converge.services.messages.receipts import Answers
from converge.services.messages.routes import Routes
from converge.services.messages.under_way import Link
from converge.services.messages.unsettled import MessagesUnderWay
from converge.services.store.handle import StoreHandle

log = logging.getLogger("converge.post")

SIGNED_WINDOW_SEC = 60.0
"""How far the moment of a signature may be from now; senders are remembered for twice that, so no replay is missed."""

MESSAGES = frozenset((MESSAGE, SIGNED, SIGNED_TOGETHER))

RECEIPTS = 16
"""Receipts that leave together: fewer would cost a system call each on both sides, where messages take long to verify.
"""

COUNTS = 1_000
"""Messages to all of a node whose counts are remembered for when they are repeated."""


class _Fanning(NamedTuple):
    """A message to all of a node."""

    link: Link
    header: MessageHeader
    payload: bytes


class _Count:
    """How many agents have a message to all of a node, once that is known."""

    __slots__ = ("done", "refused", "taken")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.taken = self.refused = 0


@attrs.frozen(kw_only=True)
class Aside:
    """Receives what is for no inbox.

    Attributes:
        on_mail: Called with an agent's id: another node says that it has mail.
        asking: Takes questions and answers about agents; None: this node has no transport.
    """

    on_mail: Callable[[str], None]
    asking: Asking | None = None


class Received:
    """Receives the items of every link of a node.

    Attributes:
        outcomes: How many messages came from other nodes, by the status of their first receipt.
        quietly: Counts and logs what was refused.
        together: Verifies messages that share a signature.
    """

    def __init__(
        self,
        handle: StoreHandle,
        network_tag: bytes,
        inboxes: Inboxes,
        routes: Routes,
        under_way: MessagesUnderWay,
        aside: Aside,
    ) -> None:
        self._env, self._now, self._network_tag = handle.env, handle.about_now, network_tag
        self._inboxes, self._routes, self._under_way = inboxes, routes, under_way
        self._asking, self._on_mail = aside.asking, aside.on_mail
        self._streams, self._answers, self.together = Streams(), Answers(routes), Together(network_tag)
        self._counts: OrderedDict[tuple[str, str], _Count] = OrderedDict()
        self.outcomes: Counter[str] = Counter()
        self._quotas = Quotas(handle.env)
        self.quietly = Throttle(log, handle.env.monotonic)

    async def on_items(self, link: Link, items: list[Item]) -> None:
        """Process the items of a link; an ill-formed body ends the link (TornRecord), nothing else does.

        This waits for nothing but its own link's work, and its peer's share of the event loop. Receipts leave often:
        the other side works on while this one does.
        """
        replies: list[Item] = []
        speakers = self._routes.speakers
        heard: set[str] = set()  # who may speak over this link; it is asked again when others have run
        for item in items:
            kind, body = item
            work = 1 if kind in LIGHT and len(body) < HEAVY_BYTES else weight(item)
            is_paid = work >= SLICE and self._routes.is_stranger(link.peer)
            if is_paid:  # before it keeps others waiting, by whichever key of its address it comes
                link.post(replies)
                replies = []
                await self._quotas.spend(link, work, is_stranger=True)
                heard.clear()
            if kind == RECEIPT:
                self._on_receipt(link, *unpack(body, ReceiptHeader))
            elif kind in MESSAGES:
                reply = self._on_message(link, kind, body, heard)
                if isinstance(reply, _Fanning):
                    reply = await self._fanned(*reply)
                    heard.clear()
                if reply is not None:
                    replies.append((RECEIPT, pack(reply)) if isinstance(reply, ReceiptHeader) else reply)
            elif kind == SHOWN:
                speakers.show(link, body)
                heard.clear()
            elif kind == GONE:
                speakers.gone(link, body.decode("ascii", "replace"))
                heard.clear()
            link.work += 0 if is_paid else work
            if link.work >= SLICE:
                is_stranger = self._routes.is_stranger(link.peer)
                if len(replies) >= RECEIPTS or (replies and is_stranger):  # which may have to wait
                    link.post(replies)
                    replies = []
                work, link.work = link.work, 0
                await self._quotas.spend(link, work, is_stranger=is_stranger)
                heard.clear()
        if replies:
            link.post(replies)

    def _on_message(
        self, link: Link, kind: int, body: bytes, heard: set[str]
    ) -> ReceiptHeader | Item | _Fanning | None:
        """Process a message; return its receipt, or None if it wants none, or what has to be waited for."""
        is_signed = kind != MESSAGE
        if is_signed:
            verified = self.together.verified
            try:
                if kind == SIGNED:
                    header, payload = open_signed(body, self._network_tag)
                else:
                    header, payload = self.together.open(body)
            except (BadSignature, InvalidKey) as error:  # who relays it need not have made it: the link goes on
                name = node_name(link.peer)
                self.quietly.refused("signature", name, "a signed message from node %s was refused: %s", name, error)
                return None
            finally:
                link.work += SIGNATURE * (self.together.verified - verified)
        else:
            header, payload = unpack(body, MessageHeader)
            if header.wants == DESCRIPTORS:
                if self._asking is None:
                    return None
                told = self._asking.on_message(link, header, payload)
                link.work += weight_of_answer(told)
                return told
        status = text = ""
        if self._inboxes.is_closed_to_others or header.to not in self._inboxes:
            status, text = self._absence(header)
        if not status and (is_signed or header.sender not in heard):
            status, text = self._refusal(link, header, is_signed=is_signed)
            if not status and not is_signed:
                heard.add(header.sender)
        if header.mail and not status:
            self._on_mail(header.to)
            return None
        if not status:
            if header.wants == PING:
                inbox = self._inboxes.get(header.to)
                is_full = inbox is not None and inbox.takes_messages and inbox.is_full
                status, text = (FULL, "its inbox is full") if is_full else (ACCEPTED, "")
            elif header.to:
                status, text = self._accept(link, header, payload)
                if not status:
                    return None
            else:
                return _Fanning(link, header, payload)
        self.outcomes[status] += 1
        return ReceiptHeader(header.id, status, text) if header.wants != HANDED else None

    async def _fanned(self, link: Link, header: MessageHeader, payload: bytes) -> ReceiptHeader | None:
        receipt = await self._accept_for_all(link, header, payload)
        self.outcomes[receipt.status] += 1
        return receipt if header.wants != HANDED else None

    def _on_receipt(self, link: Link, header: ReceiptHeader, payload: bytes) -> None:
        link.settled(header.id)
        if header.status == DESCRIPTORS:
            if self._asking is not None:
                self._asking.on_receipt(link, header, payload)
        elif header.status in STATUSES:
            self._under_way.on_receipt(link.peer, header, payload)
        else:  # to go on would say that the message was taken, or that it was not
            raise TornRecord("receipt", f'its status is none: "{header.status}"')

    def _absence(self, header: MessageHeader) -> tuple[str, str]:
        """Return why no message is accepted, whoever sent it; two empty strings if it may be."""
        if self._inboxes.is_closed_to_others:
            return UNKNOWN, STOPPING
        if not header.to or header.to in self._inboxes or (header.wants == PING and self._routes.is_own(header.to)):
            return "", ""
        return UNKNOWN, ABSENT

    def _refusal(self, link: Link, header: MessageHeader, *, is_signed: bool) -> tuple[str, str]:
        """Return why this message is refused, before anything of it is remembered; two empty strings if it is not."""
        if is_signed:
            age_sec = (self._now() - header.sent_at) / 1_000_000
            if abs(age_sec) > SIGNED_WINDOW_SEC:
                self.quietly.refused(
                    "signature_age",
                    header.sender,
                    "a signed message of %.16s was refused: it is %.0f s old; is a clock wrong?",
                    header.sender,
                    age_sec,
                )
                return (
                    REFUSED,
                    f"its signature is {age_sec:.0f} s old; at most {SIGNED_WINDOW_SEC:g} s are allowed, either way",
                )
        speaks = self._routes.speaks(header.sender, link, is_signed=is_signed)
        if speaks is None:
            return EARLY, "its sender is being looked up there"
        if not speaks:
            if not self._routes.is_listed_or_exempt(header.sender):
                text = "messages of agent %.16s are refused: it verifies, but is not listed (trust = listed)"
                self.quietly.refused("untrusted", header.sender, text, header.sender)
                return REFUSED, 'its sender is not listed there, as trust = "listed" asks'
            name = node_name(link.peer)
            self.quietly.refused(
                "sender", name, "a message was refused: node %s does not speak for agent %.16s", name, header.sender
            )
            return REFUSED, "no descriptor of the sender names the node that sent this"
        if not self._routes.admits(header.sender):
            self.quietly.refusals["untrusted"] += 1
            return REFUSED, "its sender is not trusted there"
        return "", ""

    def _accept(self, link: Link, header: MessageHeader, payload: bytes) -> tuple[str, str]:
        """Accept a message, unless it was accepted before or has to wait; return how far it got, and why not further,
        or two empty strings if its answer says so. Nothing is awaited from here to its inbox.
        """
        pair, now = Pair(header.sender, header.lease, header.to), self._env.monotonic()
        known = self._known(link, header, pair, now)
        if known[0]:
            if known[0] == ACCEPTED and header.wants == HANDLED:
                given = self._answers.again(link, header)
                if given is not None:
                    link.answer(given)
                    return "", ""
            return known
        if header.wants == HANDLED and link.is_full_of_answers:
            return EARLY, "answers wait there for this node to take them"
        answer = self._answers.owe(link, header) if header.wants == HANDLED else None
        status, text = self._inboxes.put(header.to, header, payload, answer)
        if status == ACCEPTED:
            self._streams.accept(pair, header.sequence, now)
        elif answer is not None:
            self._answers.forget(header)
        return status, text

    async def _accept_for_all(self, link: Link, header: MessageHeader, payload: bytes) -> ReceiptHeader:
        """Accept a message for all agents here of a topic or pool. A repeated message gets the same counts.

        The work goes on when the link ends, and what comes after it on the link waits: for this node's own work only.
        """
        count: _Count | None
        pair, now = Pair(header.sender, header.lease, header.to), self._env.monotonic()
        status, text = self._known(link, header, pair, now)
        if not status:
            self._streams.accept(pair, header.sequence, now)
            count = self._counts[header.sender, header.id] = _Count()
            if len(self._counts) > COUNTS:
                self._counts.popitem(last=False)
            if self._routes.errand is None:
                await self._fan_out(header, payload, count)
            else:
                self._routes.errand(self._fan_out, header, payload, count)
        elif status != ACCEPTED:
            return ReceiptHeader(header.id, status, text)
        else:
            count = self._counts.get((header.sender, header.id))
            if count is None:  # so long ago that it is forgotten
                return ReceiptHeader(header.id, status)
        await count.done.wait()
        link.work += count.taken + count.refused
        return ReceiptHeader(header.id, ACCEPTED, taken=count.taken, refused=count.refused)

    async def _fan_out(self, header: MessageHeader, payload: bytes, count: _Count) -> None:
        try:
            count.taken, count.refused = await self._inboxes.fan_out(header, payload)
        finally:
            count.done.set()

    def _known(self, link: Link, header: MessageHeader, pair: Pair, now: float) -> tuple[str, str]:
        """Return what is said of a message that is not accepted now, and why not; two empty strings if it is."""
        seen = self._streams.see(pair, header.sequence, header.after, now, lambda: self._routes.is_stranger(link.peer))
        if seen is Seen.NEW:
            return "", ""
        if seen is Seen.REPEATED:
            return ACCEPTED, ""
        if seen is Seen.EARLY:
            return EARLY, "a message before it has not come"
        return REFUSED, "too many senders are remembered"
