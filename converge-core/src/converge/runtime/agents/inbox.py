"""Inboxes: a bounded queue for each agent; messages are handled one at a time, in order, and an agent without any costs
no task.
"""

from __future__ import annotations

from collections import deque

import anyio
from anyio.abc import TaskGroup

from converge.codec import encode_plain
from converge.errors import ConvergeError
from converge.model.message import Message
from converge.runtime.agents.agent import Agent, call_handler, takes_messages
from converge.runtime.agents.context import begin
from converge.runtime.agents.supervision import is_contained
from converge.services.messages.inboxes import OnHandled

INBOX = 1_000
"""Messages that wait for one agent at most; the next one is answered with Backpressure."""


class Inbox:
    """The messages of one agent."""

    def __init__(self, agent: Agent, group: TaskGroup) -> None:
        self.agent = agent
        self.takes_messages = takes_messages(type(agent))
        self._group = group
        self._queue: deque[tuple[Message, OnHandled | None]] = deque()
        self._is_running = False
        self._answer: OnHandled | None = None  # of the message that the handler has

    @property
    def is_full(self) -> bool:
        """Whether the next message would be one too many."""
        return len(self._queue) >= INBOX

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and the handler has nothing."""
        return not self._is_running

    def abandon(self) -> list[OnHandled]:
        """Forget what waits; return the answers of all that the handler has not ended."""
        answers = [answer for answer in (self._answer, *(answer for _, answer in self._queue)) if answer is not None]
        self._queue.clear()
        return answers

    def put(self, message: Message, answer: OnHandled | None) -> None:
        """Put a message in; `answer` is told of its handler's end."""
        self._queue.append((message, answer))
        if not self._is_running:
            self._is_running = True
            self._group.start_soon(self._run)

    async def _run(self) -> None:
        try:
            await self._serve()
        except Exception as error:  # the inbox's own end, which nothing expected: the other agents go on
            self.agent.node.supervision.died(self.agent, error)
            return  # as if it were running: nothing starts it again
        self._is_running = False

    async def _serve(self) -> None:
        while self._queue:
            if self.agent.health.is_troubled and (rest_sec := self.agent.health.rest_sec("on_message")):
                await anyio.sleep(rest_sec)
                continue  # what waited may have been abandoned meanwhile
            message, answer = self._queue.popleft()
            self._answer = answer
            begin(self.agent, message.id)
            result, why = await self._handle(message)
            self._answer = None
            if answer is not None:
                await answer(result, why)

    async def _handle(self, message: Message) -> tuple[bytes | None, str]:
        try:
            answer = encode_plain(await call_handler(self.agent.on_message, message), "answer")
            if self.agent.health.is_troubled:
                self.agent.node.supervision.succeeded(self.agent, "on_message")
            return answer, ""
        except ConvergeError as error:
            self.agent.log.warning("message %s failed: %s", message.id, error)
            self.agent.node.supervision.failed(self.agent, "on_message", error)
            return None, f"{type(error).__name__}: {error}"
        except BaseException as error:  # a message's boundary: the agent goes on
            if not is_contained(error):
                raise
            self.agent.log.exception("message %s failed", message.id)
            self.agent.node.supervision.failed(self.agent, "on_message", error)
            return None, f"{type(error).__name__}: {error}"
