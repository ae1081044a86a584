"""Inboxes: a bounded queue for each agent; messages are handled one at a time, in order, and an agent without any costs no task."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup

from converge.codec import encode_plain
from converge.errors import ConvergeError
from converge.model.message import Message
from converge.runtime.agent import Agent, is_async, takes_messages
from converge.runtime.supervision import RAISED

INBOX = 1_000
"""Messages that wait for one agent at most; the next one is answered with Backpressure."""

Answer = Callable[[bytes | None, str], Awaitable[None]]
"""Called when a handler has returned, with its answer (JSON), or None and why it failed."""


class Inbox:
    """The messages of one agent."""

    def __init__(self, agent: Agent, group: TaskGroup) -> None:
        self.agent = agent
        self.takes_messages = takes_messages(type(agent))
        self._group = group
        self._queue: deque[tuple[Message, Answer | None]] = deque()
        self._is_running = False
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether the next message would be one too many."""
        return len(self._queue) >= INBOX

    def put(self, message: Message, answer: Answer | None) -> None:
        """Put a message in; `answer` is told of its handler's end."""
        self._queue.append((message, answer))
        if not self._is_running:
            self._is_running = True
            self._group.start_soon(self._run)

    async def _run(self) -> None:
        try:
            while self._queue:
                if self.agent.health.is_troubled and (rest_sec := self.agent.health.rest_sec("on_message")):
                    await anyio.sleep(rest_sec)
                message, answer = self._queue.popleft()
                result, why = await self._handle(message)
                if answer is not None:
                    await answer(result, why)
        finally:
            self._is_running = False

    async def _handle(self, message: Message) -> tuple[bytes | None, str]:
        handler: Callable[..., Any] = self.agent.on_message
        try:
            result = await handler(message) if is_async(handler) else await anyio.to_thread.run_sync(handler, message, abandon_on_cancel=True)
            answer = encode_plain(result, "answer")
            if self.agent.health.is_troubled:
                self.agent.node.supervision.succeeded(self.agent, "on_message")
            return answer, ""
        except ConvergeError as error:
            self.agent.log.warning("message %s failed: %s", message.id, error)
            self.agent.node.supervision.failed(self.agent, "on_message", error)
            return None, f"{type(error).__name__}: {error}"
        except RAISED as error:  # a message's boundary: the agent goes on
            self.agent.log.exception("message %s failed", message.id)
            self.agent.node.supervision.failed(self.agent, "on_message", error)
            return None, f"{type(error).__name__}: {error}"
