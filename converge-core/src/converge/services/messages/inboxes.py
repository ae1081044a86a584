"""The inboxes of one process, and how a message gets into one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import anyio
from anyio.lowlevel import checkpoint

from converge.codec import decode_plain
from converge.errors import Backpressure, Dropped, TornRecord, Undeliverable
from converge.model.envelope import ACCEPTED, DROPPED, EARLY, FULL, REFUSED, UNKNOWN, MessageHeader
from converge.model.identity import Identity
from converge.model.message import Message
from converge.plugins import PluginHost
from converge.services.tasks.records import moment

log = logging.getLogger("converge.post")

AT_A_TIME = 64
"""Inboxes that are put into before others run."""

GATE = 500
"""Messages that wait for an agent which starts and has mail to read first: with what the inbox holds no more than twice
its bound.
"""

RECEIVED = "converge_message_received"

STOPPING = "its node is stopping"

DROP_SEC = 1.0
"""How long it may take to tell senders that their messages were dropped."""

POLL_SEC = 0.01
"""How often a node that stops looks whether its agents have handled what they have."""


class OnHandled(Protocol):
    """Learns what became of a message that was accepted."""

    async def __call__(self, answer: bytes | None, why: str) -> None:
        """Note that the handler has ended: with an answer (JSON), or with None and the reason why it failed."""

    async def drop(self) -> None:
        """Note that the node stops: no handler gets the message, or the one that has it is cancelled."""


class LocalInbox(Protocol):
    """The inbox of an agent of this process."""

    takes_messages: bool

    @property
    def is_full(self) -> bool: ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and no handler has anything."""

    def put(self, message: Message, answer: OnHandled | None) -> None: ...

    def abandon(self) -> list[OnHandled]:
        """Forget what waits; return the answers of all that no handler has ended."""


class LocalOutcome:
    """Waits in this process for the end of a handler."""

    __slots__ = ("answer", "event", "is_dropped", "why")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.answer: bytes | None = None
        self.why, self.is_dropped = "", False

    async def __call__(self, answer: bytes | None, why: str) -> None:
        """See `OnHandled`."""
        self.answer, self.why = answer, why
        self.event.set()

    async def drop(self) -> None:
        """See `OnHandled`."""
        self.why, self.is_dropped = STOPPING, True
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

    def __init__(self, host: PluginHost) -> None:
        super().__init__()
        self.agents: dict[str, LocalAgent] = {}
        self.is_closed_to_others = self._is_closed = False
        self._fanning = anyio.Lock()
        self._by_capability: dict[str, list[str]] = {}
        self._by_topic: dict[str, list[str]] = {}
        self._gates: dict[str, list[tuple[Message, OnHandled | None]]] = {}
        self._host = host
        self._is_guarded = host.has(RECEIVED)

    def identity(self, agent_id: str) -> Identity | None:
        """Return the identity of an agent of this process."""
        agent = self.agents.get(agent_id)
        return None if agent is None else agent.identity

    def add(self, agent: LocalAgent, inbox: LocalInbox) -> None:
        """Register an agent and its inbox."""
        self.agents[agent.id], self[agent.id] = agent, inbox
        if inbox.takes_messages:
            for index, names in self._indexes(agent):
                for name in names:
                    index.setdefault(str(name), []).append(agent.id)

    def remove(self, agent_id: str) -> None:
        """Forget an agent and its inbox."""
        agent, inbox = self.agents.pop(agent_id, None), self.pop(agent_id, None)
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
        for message, answer in self._gates.pop(agent_id, ()):
            if inbox is not None:
                inbox.put(message, answer)

    def close_to_others(self) -> None:
        """Refuse messages from other nodes; agents of this one still talk to each other: tasks that end may need it."""
        self.is_closed_to_others = True

    async def drain(self, within_sec: float) -> int:
        """Refuse all messages and wait for handlers; after so many seconds drop what is left, tell its senders, and
        return how many were dropped.
        """
        self.is_closed_to_others = self._is_closed = True
        for agent_id in list(self._gates):
            self.release(agent_id)
        with anyio.move_on_after(within_sec):
            while not all(inbox.is_idle for inbox in self.values()):  # noqa: ASYNC110  # an event would cost each message, for the sake of one stop
                await anyio.sleep(POLL_SEC)
            return 0
        dropped = [answer for inbox in self.values() for answer in inbox.abandon()]
        with anyio.move_on_after(DROP_SEC):
            for answer in dropped:
                await answer.drop()
        return len(dropped)

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
        """Put a message into an agent's inbox; return how far it got, and why not further. `token`: it was stored, and
        this is its claim's.
        """
        inbox = self.get(to)
        if inbox is None:
            return UNKNOWN, "no such agent in this process"
        if self._is_closed:
            return REFUSED, STOPPING
        if not inbox.takes_messages:
            return REFUSED, "the agent takes no messages: it has no on_message"
        gate = None if token else self._gates.get(to)
        if inbox.is_full or (gate is not None and len(gate) >= GATE):
            return FULL, "its inbox is full"
        try:
            content = decode_plain(payload, "payload")
        except TornRecord as error:
            return REFUSED, str(error)
        message = to_message(header, to, content, token)
        if self._is_guarded:
            try:
                message = self._host.guard(RECEIVED, message)
            except Undeliverable as error:
                log.warning("message %s was refused: %s", header.id, error)
                return REFUSED, "a guard of the recipient's node refused it"  # why is the node's own business
        if gate is None:
            inbox.put(message, answer)
        else:
            gate.append((message, answer))
        return ACCEPTED, ""

    async def fan_out(self, header: MessageHeader, payload: bytes) -> tuple[int, int]:
        """Put a message into the inbox of each agent that it is for; return how many have it and how many have not.

        One at a time, in the order of the calls, and others run in between: ten thousand agents would block the event
        loop.
        """
        taken = refused = 0
        async with self._fanning:
            for number, to in enumerate(self.members(header.topic, header.pool)):
                if to != header.sender:
                    status, _ = self.put(to, header, payload, None)
                    taken += status == ACCEPTED
                    refused += status != ACCEPTED
                if number % AT_A_TIME == AT_A_TIME - 1:
                    await checkpoint()
        return taken, refused

    async def fanned_out(self) -> None:
        """Wait until fan-outs that began before this call have ended."""
        async with self._fanning:
            pass


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


def raise_for_status(whom: str, status: str, text: str) -> None:
    """Return if the message was accepted.


    Raises:
        Backpressure, Undeliverable: It was not, and why.
    """
    if status == FULL:
        raise Backpressure(f"{whom}: {text}; send again later, or slower")
    if status == DROPPED:
        raise Dropped(f"{whom}: {text}, and no handler has ended with the message")
    if status in (UNKNOWN, REFUSED, EARLY):
        raise Undeliverable(f"{whom}: {text}")
