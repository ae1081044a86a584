"""Inboxes: a bounded queue for each agent, handled one message at a time, in order; an empty one costs no task."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import anyio

from converge.codec import encode_plain
from converge.errors import ConvergeError, MessageTooLarge
from converge.foreign import Raised, is_cancellation, tell
from converge.model.envelope import PAYLOAD_BYTES
from converge.model.message import Message
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.boundary import Boundary, Worker, handler_of
from converge.runtime.agents.context import MESSAGE, begin
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.supervision import Supervision
from converge.services.messages.chains import CHAIN
from converge.services.messages.inboxes import OnHandled, Packed, unpacked

INBOX = 1_000
"""Messages that wait for one agent at most; the next one is answered with Backpressure."""


class Inbox:
    """The messages of one agent."""

    def __init__(self, agent: Hosted, boundary: Boundary, supervision: Supervision) -> None:
        self.agent = agent
        self._supervision = supervision
        self.takes_messages = agent.kind.takes_messages
        self._boundary = boundary
        self._queue: deque[tuple[Message, OnHandled | None, int]] = deque()
        self._is_running = False
        self._answer: OnHandled | None = None  # of the message that the handler has
        self._worker: Worker | None = None  # that the handler runs in
        self.held_bytes = 0
        self.chain: tuple[str, ...] = ()

    @property
    def is_full(self) -> bool:
        """Whether the next message would be one too many."""
        return len(self._queue) >= INBOX

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and the handler has nothing."""
        return not self._is_running

    def abandon(self, *, but_current: bool = False) -> list[OnHandled]:
        """See `LocalInbox`."""
        answers = [answer for _, answer, _ in self._queue if answer is not None]
        self._queue.clear()
        self.held_bytes = 0
        if but_current:
            return answers
        if self._answer is not None:
            answers.insert(0, self._answer)
        self._answer = None
        if self._worker is not None:
            self._worker.scope.cancel()
        return answers

    def put(self, message: Message, answer: OnHandled | None, cost: int = 0) -> None:
        """Put a message in; `answer` is called when its handler ends."""
        self._queue.append((message, answer, cost))
        self.held_bytes += cost
        if not self._is_running:
            self._is_running = True
            self._boundary.start(self._serve)

    async def _serve(self, worker: Worker) -> bool:
        """Handle what waits; return whether something is left for another worker."""
        agent, self._worker = self.agent, worker
        handler = worker.awaitable(handler_of(agent, "on_message"))
        begin(agent)
        while self._queue:
            if agent.health.is_troubled and (rest_sec := agent.health.rest_sec("on_message")):
                await anyio.sleep(rest_sec)
                continue  # what waited may have been abandoned meanwhile
            message, self._answer, cost = self._queue.popleft()
            self.held_bytes -= cost
            MESSAGE.set(message.id)  # a handler that changes what `begin` has set, or any variable, spoils its worker
            asked_in = self._answer.chain if self._answer is not None else ()
            self.chain = (*(asked_in or (message.id,)), agent.id)
            CHAIN.set(self.chain)
            outcome = await worker.call(
                handler, message if type(message.payload) is not Packed else unpacked(message), encode_answer
            )
            outcome = b"null" if outcome is None else outcome
            result, why = (outcome, "") if type(outcome) is bytes else (None, self._failed(message, outcome))
            if result is not None and agent.health.is_troubled:
                self._supervision.succeeded(agent, "on_message")
            answer, self._answer, self.chain = self._answer, None, ()
            if answer is not None:
                answer(result, why)
            if worker.is_spoiled:
                return True
        self._is_running, self._worker = False, None
        return False

    def _failed(self, message: Message, outcome: Any) -> str:
        """Return what the sender is told."""
        if type(outcome) is not Raised:
            return "its node ended"
        if outcome.is_a(ConvergeError) or is_cancellation(outcome.error):
            tell(agent_log(self.agent), logging.WARNING, "message %s failed: %s", message.id, outcome.text)
        else:
            tell(agent_log(self.agent), logging.ERROR, "message %s failed", message.id, error=outcome.error)
        self._supervision.failed(self.agent, "on_message", outcome)
        return outcome.text


def encode_answer(answer: Any) -> bytes:
    """Return the answer of a handler as it is sent.

    Raises:
        InvalidValue: It is no JSON.
        MessageTooLarge: It is over the limit.
    """
    encoded = encode_plain(answer, "answer")
    if len(encoded) > PAYLOAD_BYTES:
        raise MessageTooLarge(f"an answer of {len(encoded):,} bytes; the limit is {PAYLOAD_BYTES:,}")
    return encoded
