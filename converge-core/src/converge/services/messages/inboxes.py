"""The inboxes of one process, and how a message gets into one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Protocol

import anyio
import attrs
from anyio.lowlevel import checkpoint

from converge.codec import decode_plain
from converge.env import SYSTEM
from converge.errors import AskCycle, Backpressure, Dropped, TornRecord, Undeliverable
from converge.model.envelope import ACCEPTED, CYCLE, DROPPED, EARLY, FULL, REFUSED, UNKNOWN, MessageHeader
from converge.model.identity import Identity
from converge.model.message import Message
from converge.net.throttle import Throttle
from converge.plugins import PluginHost
from converge.services.messages.chains import cycle_of
from converge.services.tasks.records import moment

log = logging.getLogger("converge.post")

AT_A_TIME = 64
"""Inboxes that are put into before others run."""

GATE = 500
"""Messages that wait for an agent which starts and has mail to read: at most the bound of the inbox once more."""

RECEIVED = "converge_message_received"

STOPPING = "its node is stopping"
ENDING = "it is stopping"  # the agent: alone, or with its node
ABSENT = "its process has no such agent, or no longer"  # whoever reads it may be in another one

SMALL_BYTES = 512
"""Payloads up to this are decoded when they come; longer ones, which grow up to twentyfold, by their handler."""

SMALL_COSTS, MESSAGE_COSTS = 16, 256
"""What a byte of a decoded payload counts for, and what each message does, whatever its payload."""

INBOX_BYTES, INBOXES_BYTES = 8_388_608, 67_108_864
"""What waits in one inbox, and in those of all agents of a process; the next message is answered with Backpressure."""

POLL_SEC = 0.01
"""How often a node that stops looks whether its agents have handled what they have."""


class OnHandled(Protocol):
    """Receives the outcome of an accepted message. `chain`: that of the question."""

    chain: tuple[str, ...]

    def __call__(self, answer: bytes | None, why: str) -> None:
        """Note that the handler has ended: with an answer (JSON), or None and why it failed. Does not wait."""

    def drop(self) -> None:
        """Note that the node stops: no handler gets the message, or the one that has it is cancelled."""


class LocalInbox(Protocol):
    """The inbox of an agent of this process."""

    takes_messages: bool
    held_bytes: int
    chain: tuple[str, ...]
    """Of the message that its handler is busy with, itself the last; empty: it is free, or free to take another."""

    @property
    def is_full(self) -> bool: ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and no handler has anything."""

    def put(self, message: Message, answer: OnHandled | None, cost: int = 0) -> None:
        """Put a message in; `cost`: the bytes that it counts for. A `Packed` payload is `unpacked` for its handler."""

    def abandon(self, *, but_current: bool = False) -> list[OnHandled]:
        """Forget what waits, and cancel the handler; return the answers of all that it has not ended. `but_current`:
        the handler goes on with the message that it has, and answers it.
        """


class Packed:
    """A payload that is decoded when its handler takes it: what waits takes no more memory than it did on the wire.

    Of a message to many agents it is decoded once, for all of them: a copy for each would let one message of a megabyte
    fill the memory of a process with many agents.
    """

    __slots__ = ("_raw", "_value")

    def __init__(self, raw: bytes) -> None:
        self._raw, self._value = raw, _NOTHING

    def value(self, *, is_shared: bool) -> Any:
        """Return the payload."""
        if not is_shared:
            return decode_plain(self._raw, "payload")
        if self._value is _NOTHING:
            self._value = decode_plain(self._raw, "payload")
        return self._value


_NOTHING: Any = object()


def unpacked(message: Message) -> Message:
    """Return the message as its handler gets it."""
    payload = message.payload
    if type(payload) is not Packed:
        return message
    return attrs.evolve(message, payload=payload.value(is_shared=bool(message.topic or message.pool_id)))


class LocalOutcome:
    """Waits in this process for the end of a handler."""

    __slots__ = ("answer", "chain", "event", "is_dropped", "why")

    def __init__(self, chain: tuple[str, ...] = ()) -> None:
        self.event, self.chain = anyio.Event(), chain
        self.answer: bytes | None = None
        self.why, self.is_dropped = "", False

    def __call__(self, answer: bytes | None, why: str) -> None:
        """See `OnHandled`."""
        self.answer, self.why = answer, why
        self.event.set()

    def drop(self) -> None:
        """See `OnHandled`."""
        self.why, self.is_dropped = ENDING, True
        self.event.set()


class LocalAgent(Protocol):
    """An agent of this process: what decides which messages are for it."""

    id: str
    identity: Identity
    pools: tuple[str, ...]

    @property
    def topics(self) -> Sequence[str]: ...

    @property
    def capabilities(self) -> Sequence[str]: ...


class Inboxes(dict[str, LocalInbox]):
    """The inboxes by agent id, and who the agents are."""

    def __init__(self, host: PluginHost, monotonic: Callable[[], float] = SYSTEM.monotonic) -> None:
        super().__init__()
        self._quietly = Throttle(log, monotonic)  # others decide how many messages there are to refuse
        self.agents: dict[str, LocalAgent] = {}
        self._identities: dict[str, Identity] = {}  # also of agents that start
        self.is_closed_to_others = self._is_closed = False
        self._held = 0  # bytes in all inboxes, at most
        self._by_capability: dict[str, list[str]] = {}
        self._by_topic: dict[str, list[str]] = {}
        self._gates: dict[str, list[tuple[Message, OnHandled | None, int]]] = {}
        self._host = host
        self._is_guarded = host.has(RECEIVED)

    def identity(self, agent_id: str) -> Identity | None:
        """Return the identity of an agent of this process, also of one that starts."""
        return self._identities.get(agent_id)

    def introduce(self, agent_id: str, identity: Identity) -> None:
        """Register the identity of an agent that starts: it may sign what it sends."""
        self._identities[agent_id] = identity

    def add(self, agent: LocalAgent, inbox: LocalInbox) -> None:
        """Register an agent and its inbox."""
        self.agents[agent.id], self[agent.id] = agent, inbox
        self._identities[agent.id] = agent.identity
        if inbox.takes_messages:
            for index, names in self._indexes(agent):
                for name in names:
                    index.setdefault(str(name), []).append(agent.id)

    def close(self, agent_id: str) -> LocalInbox | None:
        """Accept nothing more for an agent that ends; return its inbox. It may still sign what it sends."""
        self.release(agent_id)
        inbox, identity = self.get(agent_id), self._identities.get(agent_id)
        self.remove(agent_id)
        if identity is not None:
            self.introduce(agent_id, identity)
        return inbox

    def remove(self, agent_id: str) -> None:
        """Forget an agent and its inbox."""
        agent, inbox = self.agents.pop(agent_id, None), self.pop(agent_id, None)
        self._identities.pop(agent_id, None)
        if agent is not None and inbox is not None and inbox.takes_messages:
            for index, names in self._indexes(agent):
                for name in names:
                    index[str(name)].remove(agent_id)

    def _indexes(self, agent: LocalAgent) -> list[tuple[dict[str, list[str]], set[str]]]:
        """Return the indexes with the agent's names in each; its pools change, so they are not indexed."""
        return [(self._by_capability, set(agent.capabilities)), (self._by_topic, set(agent.topics))]

    def hold(self, agent_id: str) -> None:
        """Hold messages back until `release`: an agent that starts handles its stored mail first."""
        self._gates[agent_id] = []

    def release(self, agent_id: str) -> None:
        """Deliver what was held back, in order."""
        inbox = self.get(agent_id)
        for message, answer, cost in self._gates.pop(agent_id, ()):
            if inbox is not None:
                inbox.put(message, answer, cost)

    def close_to_others(self) -> None:
        """Refuse messages from other nodes; agents of this one still talk to each other: tasks that end may need it."""
        self.is_closed_to_others = True

    async def drain(self, within_sec: float) -> int:
        """Refuse all messages and wait for handlers; after so many seconds drop the rest, cancel the handlers, and
        return how many were dropped.
        """
        self.is_closed_to_others = self._is_closed = True
        for agent_id in list(self._gates):
            self.release(agent_id)
        with anyio.move_on_after(within_sec):
            await self.ended()
            return 0
        dropped = [answer for inbox in self.values() for answer in inbox.abandon()]
        for answer in dropped:
            answer.drop()
        return len(dropped)

    async def ended(self) -> None:
        """Return when no handler has a message."""
        while not all(inbox.is_idle for inbox in self.values()):  # noqa: ASYNC110  # an event would cost each message, for the sake of one stop
            await anyio.sleep(POLL_SEC)

    def able(self, capability: str) -> Sequence[str]:
        """Return the agents that have the capability and take messages."""
        return self._by_capability.get(capability, ())

    def members(self, topic: str, pool_id: str) -> list[str]:
        """Return the agents that have the topic or, if there is none, are in the pool, and take messages."""
        if topic:
            return list(self._by_topic.get(topic, ()))
        return [one.id for one in self.agents.values() if pool_id in one.pools and self[one.id].takes_messages]

    def put(
        self, to: str, header: MessageHeader, payload: bytes, answer: OnHandled | None, *, token: int = 0
    ) -> tuple[str, str]:
        """Put a message into an agent's inbox; return how far it got, and why. `token`: a stored one's claim's."""
        inbox = self.get(to)
        if inbox is None:
            return UNKNOWN, ABSENT
        if self._is_closed:
            return REFUSED, STOPPING
        if not inbox.takes_messages:
            return REFUSED, "the agent takes no messages: it has no on_message"
        if header.chain and (cycle := cycle_of(to, header.chain, inbox.chain)):
            return CYCLE, cycle
        gate = self._gates.get(to) if self._gates and not token else None
        if inbox.is_full or (gate is not None and len(gate) >= GATE):
            return FULL, "its inbox is full"
        size = len(payload)
        cost = MESSAGE_COSTS + size * (SMALL_COSTS if size <= SMALL_BYTES else 1)
        held = inbox.held_bytes
        if (
            (held and held + cost > INBOX_BYTES) or self._held + cost > INBOXES_BYTES  # `_has_room` costs a call
        ) and not self._has_room(inbox, cost):
            return FULL, "its inbox holds as many bytes as it may"
        try:
            content = decode_plain(payload, "payload")
        except TornRecord as error:
            return REFUSED, str(error)
        if size > SMALL_BYTES and not self._is_guarded:
            content = Packed(payload)
        if self._is_guarded or gate is not None:
            return self._put(inbox, to_message(header, to, content, token), answer, cost, gate)
        self._held += cost
        inbox.put(to_message(header, to, content, token), answer, cost)
        return ACCEPTED, ""

    def _put(
        self,
        inbox: LocalInbox,
        message: Message,
        answer: OnHandled | None,
        cost: int,
        gate: list[tuple[Message, OnHandled | None, int]] | None,
    ) -> tuple[str, str]:
        if self._is_guarded:
            try:
                message = self._host.guard(RECEIVED, message)
            except Undeliverable as error:
                self._quietly.warning(message.sender, "message %s was refused: %s", message.id, error)
                return REFUSED, "a guard of the recipient's node refused it"  # why is the node's own business
        self._held += cost
        if gate is None:
            inbox.put(message, answer, cost)
        else:
            gate.append((message, answer, cost))
        return ACCEPTED, ""

    def _has_room(self, inbox: LocalInbox, cost: int) -> bool:
        if inbox.held_bytes and inbox.held_bytes + cost > INBOX_BYTES:
            return False
        if self._held + cost > INBOXES_BYTES:  # counted as it comes, and anew when that is too much
            self._held = sum([one.held_bytes for one in self.values()])
        return self._held + cost <= INBOXES_BYTES

    async def fan_out(self, header: MessageHeader, payload: bytes) -> tuple[int, int]:
        """Put a message into the inbox of each agent that it is for; return how many have it and how many have not.

        It is decoded once for all: what is short is copied for each, longer payloads are the same objects for all
        agents of a process, who are to change nothing in them. Others run in between: ten thousand agents would block
        the event loop. Two messages reach each agent in the order of the calls, since each goes through the agents at
        the same pace.
        """
        members = self.members(header.topic, header.pool)
        try:
            content = decode_plain(payload, "payload") if members else None
        except TornRecord as error:
            sender = header.sender
            self._quietly.warning(sender, "a message of agent %.16s to all was refused: %s", sender, error)
            return 0, len(members)
        if len(payload) > SMALL_BYTES and not self._is_guarded:
            content = Packed(payload)
        is_shared = isinstance(content, Packed | str | int | float | bytes | None)
        cost = MESSAGE_COSTS + len(payload) // max(1, len(members))
        taken = refused = 0
        for number, to in enumerate(members):
            if to != header.sender:
                own = content if is_shared else deepcopy(content)
                status, _ = self._offer(to, to_message(header, to, own), cost)
                taken += status == ACCEPTED
                refused += status != ACCEPTED
            if number % AT_A_TIME == AT_A_TIME - 1:
                await checkpoint()
        return taken, refused

    def _offer(self, to: str, message: Message, cost: int) -> tuple[str, str]:
        inbox, gate = self.get(to), self._gates.get(to)
        if inbox is None or self._is_closed:
            return UNKNOWN, STOPPING
        if inbox.is_full or (gate is not None and len(gate) >= GATE) or not self._has_room(inbox, cost):
            return FULL, "its inbox is full"
        return self._put(inbox, message, None, cost, gate)


def to_message(header: MessageHeader, to: str, content: Any, token: int = 0) -> Message:
    """Return what a guard and a handler see."""
    return Message(
        id=header.id,
        sender=header.sender,
        recipient=to,
        payload=content,
        task_id=header.task,
        topic=header.topic,
        pool_id=header.pool,
        sent_at=moment(header.sent_at),
        token=token,
    )


def raise_for_status(whom: str, status: str, text: str, chain: tuple[str, ...] = ()) -> None:
    """Raise unless the message was accepted. `chain`: the agents that wait for it.

    Raises:
        Backpressure, Undeliverable: It was not, and why.
    """
    if status == CYCLE:
        raise AskCycle(f"{whom}: {text}", chain)
    if status == FULL:
        raise Backpressure(f"{whom}: {text}; send again later, or slower")
    if status == DROPPED:
        raise Dropped(f"{whom}: {text}, and no handler has ended with the message")
    if status in (UNKNOWN, REFUSED, EARLY):
        raise Undeliverable(f"{whom}: {text}")
