"""Post: messages between agents, here or over a link; each ends with a receipt, or a typed error by the deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from converge.codec import decode_plain, encode_plain
from converge.errors import (
    ConvergeError,
    DeliveryTimeout,
    HandlerFailed,
    InvalidName,
    InvalidValue,
    MessageTooLarge,
    Undeliverable,
)
from converge.model.envelope import (
    ACCEPTED,
    DROPPED,
    HANDED,
    HANDLED,
    MAIL_BYTES,
    PAYLOAD_BYTES,
    PING,
    PINGS,
    STORED,
    MessageHeader,
)
from converge.model.identity import Identity, is_agent_id
from converge.model.message import Capability, Receipt
from converge.plugins import PluginHost
from converge.services.messages.chains import CHAIN
from converge.services.messages.choice import Choice
from converge.services.messages.inboxes import LocalOutcome, raise_for_status, to_message
from converge.services.messages.mailbox import Mailboxes
from converge.services.messages.options import DEFAULTS, SendOptions, check_timeout, checked_task_id, level_of
from converge.services.messages.routes import Routes
from converge.services.messages.under_way import Signer, UnderWay
from converge.services.messages.unsettled import MessagesUnderWay
from converge.services.store.handle import StoreHandle

BEFORE_SEND = "converge_message_before_send"

LEAST_SEC = 0.001
"""The patience of who wants to know at once why a node cannot be reached."""

IDS = 64
"""Ids of messages that are drawn together."""

SENDS_A_TURN = 16
"""Messages without a receipt, or to inboxes of this process, after which a sender lets others run: a loop of sends must
neither starve nor overfill their readers.
"""


class Draft(NamedTuple):
    """A message before its recipient is known. A plain tuple: one is made for each message."""

    id: str
    sender: str
    payload: Any
    wants: str
    task: str
    signer: Signer | None


class Tried:
    """What was sent last of a message that may go to several."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: UnderWay | None = None


class Outcome(NamedTuple):
    """Who accepted a message, and what its handler answered (JSON), or None and why it failed."""

    recipient: str
    answer: bytes | None = None
    why: str = ""


class Post:
    """Sends messages for the agents of one process.

    Args:
        handle: The store, for its clock.
        identity: The node's own: it may send, too.
        mailboxes: Where messages are stored; its inboxes are those of this process.
        routes: The way to agents of other processes.
        host: Guards of what is sent.
        on_stored: Called with the header of each message that was stored.
    """

    def __init__(
        self,
        handle: StoreHandle,
        identity: Identity,
        mailboxes: Mailboxes,
        routes: Routes,
        host: PluginHost,
        on_stored: Callable[[MessageHeader], None] = lambda header: None,
    ) -> None:
        self.mailboxes, self.inboxes, self.routes = mailboxes, mailboxes.inboxes, routes
        self.under_way = MessagesUnderWay(handle.env.monotonic, routes.errand, routes.credential)
        self._handle, self._env, self._identity, self._host = handle, handle.env, identity, host
        self._on_stored = on_stored
        self._is_guarded = host.has(BEFORE_SEND)
        self._life = handle.env.entropy(8).hex()
        self._choice = Choice(self.inboxes, self.routes)
        self._turn = 0
        self._ids: list[str] = []
        self.outcomes: Counter[str] = Counter()
        """How many messages were sent, by how far they got, or the class of the error: also those to agents here."""

    async def send(self, sender: str, to: str, payload: Any, options: SendOptions) -> Receipt:
        """Send a message; return when it has got as far as asked. See `Node.send`."""
        began = self._env.monotonic()
        wants = ACCEPTED if options is DEFAULTS else level_of(options)
        draft = self.draft(sender, payload, wants, options)
        try:
            if options.mailbox:
                outcome, wants = await self._store(draft, to, options.timeout), HANDLED if wants == HANDLED else STORED
            elif to in self.inboxes or isinstance(to, Capability):
                outcome = await self._deliver(draft, to, options.timeout)
            else:
                outcome = await self._deliver_there(draft, to, options.timeout)
            if wants == HANDLED and outcome.answer is None:
                raise HandlerFailed(f"agent {outcome.recipient} failed to handle message {draft.id}: {outcome.why}")
        except ConvergeError as error:
            self.outcomes[type(error).__name__] += 1
            raise
        self.outcomes[wants] += 1
        return Receipt(
            message_id=draft.id, recipient=outcome.recipient, level=wants, duration_sec=self._env.monotonic() - began
        )

    async def ask(self, sender: str, to: str, payload: Any, options: SendOptions) -> Any:
        """Send a message; return what its handler returned. See `Node.ask`."""
        draft = self.draft(sender, payload, HANDLED, options)
        try:
            outcome = await self._deliver(draft, to, options.timeout)
            if outcome.answer is None:
                raise HandlerFailed(f"agent {outcome.recipient} failed to handle message {draft.id}: {outcome.why}")
        except ConvergeError as error:
            self.outcomes[type(error).__name__] += 1
            raise
        self.outcomes[HANDLED] += 1
        return decode_plain(outcome.answer, "answer")

    async def ping(self, sender: str, to: str, timeout: float) -> float:
        """Send a message for no handler to an agent, or to a node, of another process; return after how many seconds
        its receipt came: what any message takes that its recipient's node accepts. A node that cannot be reached is
        tried once.

        Raises:
            Undeliverable, Backpressure, DeliveryTimeout, ChannelError, StoreError: Why a message would not arrive.
        """
        header, body = self.write(self.draft(sender, None, PING, SendOptions(timeout=timeout)), to)
        one = UnderWay(header, body, to)
        with by_deadline(timeout, f"agent {to}", one, dialled_at=partial(self.routes.dialled_at, to)):
            if not (await self.routes.link_of(to)).features & PINGS:
                raise Undeliverable(f"agent {to} is connected, but the release of its node answers no pings")
            began = self._env.monotonic()
            await self.under_way.deliver(one, partial(self.routes.link_of, to), patience_sec=LEAST_SEC)
            return self._env.monotonic() - began

    def draft(self, sender: str, payload: Any, wants: str, options: SendOptions) -> Draft:
        """Begin a message."""
        if sender != self._identity.id and sender not in self.inboxes and not is_agent_id(sender):
            raise InvalidName("sender", sender, "an agent's id: cv1 and 52 characters")
        message_id = self._ids.pop() if self._ids else self._new_id()
        if options is DEFAULTS:
            return Draft(message_id, sender, payload, wants, "", None)
        check_timeout(options.timeout)
        if options.proof not in ("channel", "signed"):
            raise InvalidValue("proof", options.proof, '"channel" or "signed"')
        signer = self.signer(sender) if options.proof == "signed" else None
        return Draft(message_id, sender, payload, wants, checked_task_id(options.task_id), signer)

    def _new_id(self) -> str:
        """Return an id, and keep some for the next messages: a call of the system for each would cost more."""
        drawn = self._env.entropy(16 * IDS).hex()
        self._ids = [drawn[at : at + 32] for at in range(0, len(drawn), 32)]
        return self._ids.pop()

    def signer(self, sender: str) -> Signer:
        """Return the signer of an agent of this node.

        Raises:
            InvalidValue: It is none.
        """
        identity = self._identity if sender == self._identity.id else self.inboxes.identity(sender)
        if identity is None:
            raise InvalidValue("sender", sender, "an agent of this node: only it can sign")
        return Signer(identity, self.mailboxes.network_tag, self._handle.about_now)

    def write(
        self, draft: Draft, to: str, *, topic: str = "", pool: str = "", sequence: int = 0
    ) -> tuple[MessageHeader, bytes]:
        """Return header and payload, as the guards leave them; 0: the sequence is drawn when it leaves.

        Raises:
            Undeliverable: A guard refused it.
            InvalidValue, MessageTooLarge: The payload cannot be sent.
        """
        header = MessageHeader(
            draft.id,
            draft.sender,
            to,
            self._life,
            sequence,
            self._handle.about_now(),
            0,
            draft.wants,
            draft.task,
            topic,
            pool,
        )
        if draft.wants == HANDLED and (chain := CHAIN.get()):
            header = msgspec.structs.replace(header, chain=chain)
        payload = draft.payload
        if self._is_guarded:
            message = self._host.guard(BEFORE_SEND, to_message(header, to, payload))
            payload = message.payload
            if message.task_id != draft.task:
                header = msgspec.structs.replace(header, task=checked_task_id(message.task_id))
        body = encode_plain(payload, "payload")
        if len(body) > PAYLOAD_BYTES:
            raise MessageTooLarge(f"a payload of {len(body):,} bytes; the limit is {PAYLOAD_BYTES:,}")
        return header, body

    async def _store(self, draft: Draft, to: str, timeout: float) -> Outcome:
        """Store a message, even for an agent of this process; wait until it is handled if that is wanted."""
        if isinstance(to, Capability) or not is_agent_id(to):
            raise InvalidName("recipient", to, "an agent's id: only an agent has a mailbox")
        header, body = self.write(draft, to)
        if len(body) > MAIL_BYTES:
            raise MessageTooLarge(f"a payload of {len(body):,} bytes; the limit of a mailbox is {MAIL_BYTES:,}")
        with by_deadline(timeout, f"the mailbox of agent {to}"):
            signed = self.signer(draft.sender).body(header, body)
            task_id = await self.mailboxes.store(to, header, signed)
            self._on_stored(msgspec.structs.replace(header, wants=HANDED, mail=True))
            return Outcome(to, *(await self.mailboxes.handled(task_id) if draft.wants == HANDLED else ()))

    async def _deliver(self, draft: Draft, to: str, timeout: float) -> Outcome:
        if isinstance(to, Capability):
            tried = Tried()
            with by_deadline(timeout, f'an agent with the capability "{to}"', tried):
                deliver_to = partial(self._deliver_to, draft, tried=tried)
                return await self._choice.deliver(draft.sender, to, deliver_to)
        if to not in self.inboxes:
            return await self._deliver_there(draft, to, timeout)
        if draft.wants != HANDLED:
            return await self._deliver_here(draft, to)  # it never waits, so it needs no deadline
        with by_deadline(timeout, f"agent {to}"):
            return await self._deliver_here(draft, to)

    async def _deliver_there(self, draft: Draft, to: str, timeout: float) -> Outcome:
        """Deliver a message to an agent of another process: by its open link, else under a deadline of its own."""
        link = self.routes.open_to(to)
        if link is None and not is_agent_id(to):
            raise InvalidName(
                "recipient", to, "an agent's id, as discovery gives it: cv1 and 52 characters; or a Capability"
            )
        under_way, until = self.under_way, self._env.monotonic() + timeout
        header, body = self.write(draft, to, sequence=under_way.draw())  # it leaves before anything is awaited
        if draft.wants == HANDED and link is not None and under_way.hand(header, body, link, draft.signer):
            await self._take_turns()
            return Outcome(to)
        one = UnderWay(header, body, to, draft.signer)
        try:
            waiter = under_way.start(one, link, until)
            if waiter is not None and link is not None:
                try:
                    await waiter
                finally:
                    under_way.stop(one, link)
            is_over = one.was_sent if draft.wants == HANDED else one.is_over()
            if not is_over:
                await self._deliver_late(one, to, timeout, until)
        finally:
            under_way.end(one)
        if draft.wants == HANDED:
            await self._take_turns()
        return Outcome(to, one.answer, "" if one.receipt is None else one.receipt.text)

    async def _deliver_late(self, one: UnderWay, to: str, timeout: float, until: float) -> None:
        """Deliver what could not be sent at once, or was not taken then."""
        if one.is_expired:
            raise _timeout(timeout, f"agent {to}", one) from one.cause
        rest_sec = max(0.0, until - self._env.monotonic())
        dialled_at = partial(self.routes.dialled_at, to)
        with by_deadline(timeout, f"agent {to}", one, rest_sec=rest_sec, dialled_at=dialled_at):
            await self.under_way.finish(one, partial(self.routes.link_of, to))

    async def _deliver_to(self, draft: Draft, to: str, *, tried: Tried) -> Outcome:
        """Deliver a message to one of several agents that could have it."""
        if to in self.inboxes:
            return await self._deliver_here(draft, to)
        one = UnderWay(*self.write(draft, to), to, draft.signer)
        tried.last = one
        await self.under_way.deliver(one, partial(self.routes.link_of_candidate, to), patience_sec=0.0)
        return Outcome(to, one.answer, "" if one.receipt is None else one.receipt.text)

    async def _deliver_here(self, draft: Draft, to: str) -> Outcome:
        """Deliver a message to an agent of this process: nothing is signed, and no socket is touched."""
        header, body = self.write(draft, to)
        if draft.wants != HANDLED:
            raise_for_status(f"agent {to}", *self.inboxes.put(to, header, body, None))
            await self._take_turns()
            return Outcome(to)
        end = LocalOutcome(header.chain)
        raise_for_status(f"agent {to}", *self.inboxes.put(to, header, body, end), (*header.chain[1:], to))
        await end.event.wait()
        if end.is_dropped:
            raise_for_status(f"agent {to}", DROPPED, end.why)
        return Outcome(to, end.answer, end.why)

    async def _take_turns(self) -> None:
        self._turn += 1
        if self._turn >= SENDS_A_TURN:
            self._turn = 0
            await checkpoint()


@contextmanager
def by_deadline(
    timeout: float,
    whom: str,
    tried: Tried | UnderWay | None = None,
    *,
    rest_sec: float | None = None,
    dialled_at: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Cancel the block after so many seconds. `tried`: what was on its way. `rest_sec`: what is left of the time.
    `dialled_at`: returns where the recipient's node is being dialled, if it is.

    Raises:
        DeliveryTimeout: It had not ended by itself.
    """
    try:
        with anyio.fail_after(timeout if rest_sec is None else rest_sec):
            yield
    except TimeoutError:
        one = tried.last if isinstance(tried, Tried) else tried
        raise _timeout(timeout, whom, one, dialled_at()) from (None if one is None else one.cause)


def _timeout(timeout: float, whom: str, one: UnderWay | None, dialled_at: str = "") -> DeliveryTimeout:
    cause = "" if one is None or one.cause is None else f"; the last try: {one.cause}"
    cause = f"; {dialled_at} has not answered yet" if dialled_at and not cause else cause
    if one is not None and not one.was_sent:
        return DeliveryTimeout(
            f"{whom} was not reached within {timeout:g} s, so it certainly does not have the message{cause}",
            was_sent=False,
        )
    return DeliveryTimeout(
        f"no receipt or answer from {whom} within {timeout:g} s; it may have the message or not{cause}", was_sent=True
    )
