"""The loop of an agent with `decide`: it gives the agent what has come, and has carried out what the agent decided."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio

from converge.errors import (
    ConvergeError,
    InvalidValue,
    NoRetry,
    Release,
    RetryAfter,
    StaleClaim,
    TooManyDecisions,
)
from converge.foreign import Raised, as_exception, describe, guarded, is_a, is_cancellation, name_of, tell
from converge.machines.attempt import word_of
from converge.model.message import Message
from converge.model.task import Task
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.boundary import Boundary, handler_of
from converge.runtime.agents.context import begin
from converge.runtime.agents.decisions import Outcome, ReportTask
from converge.runtime.agents.executor import Executor
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.inbox import encode_answer
from converge.runtime.agents.supervision import Supervision
from converge.services.messages.inboxes import OnHandled, unpacked
from converge.services.tasks.records import encode_result

BATCH = 100
"""Messages given to one call of `decide` at most: the rest wait for the next one."""

INBOX = 1_000
"""Messages that wait for one agent at most, as for one with `on_message`."""


class Reported(Exception):
    """How a task that `decide` holds ends without a result: as if a handler had raised `error`, with the text."""

    def __init__(self, text: str, error: BaseException | None = None) -> None:
        super().__init__(text)
        self.error = error


class _Hold:
    """A task that the agent holds until it reports it."""

    __slots__ = ("end", "ended", "is_new", "result", "task")

    def __init__(self, task: Task) -> None:
        self.task, self.is_new = task, True
        self.ended = anyio.Event()
        self.result: Any = None
        self.end: Reported | None = None

    def finish(self, result: Any, end: Reported | None) -> None:
        """End it with the result or, if it has another end, with that."""
        if not self.ended.is_set():
            self.result, self.end = result, end
            self.ended.set()


class DecideLoop:
    """The loop of one agent, no task while there is nothing to decide on; messages are handed over in batches."""

    takes_messages = True
    chain: tuple[str, ...] = ()

    def __init__(self, agent: Hosted, boundary: Boundary, executor: Executor, supervision: Supervision) -> None:
        self._agent, self._boundary, self._executor, self._supervision = agent, boundary, executor, supervision
        self._messages: deque[tuple[Message, OnHandled | None, int]] = deque()
        self.held_bytes = 0
        self._given: list[tuple[Message, OnHandled | None]] = []  # to the running call
        self._call_scope: anyio.CancelScope | None = None  # of the running call
        self._answers: dict[str, bytes] = {}  # of the messages that the running call was given
        self._asking: set[str] = set()
        self._holds: dict[str, _Hold] = {}
        self._has_new = False
        self._is_ticked = False
        self._is_running = False
        self._failures = 0  # of `decide`, in a row

    @property
    def is_full(self) -> bool:
        """Whether the next message would be one too many."""
        return len(self._messages) >= INBOX

    @property
    def is_idle(self) -> bool:
        """Whether no message waits, and no call runs."""
        return not self._messages and self._call_scope is None

    def abandon(self, *, but_current: bool = False) -> list[OnHandled]:
        """See `LocalInbox`. It has no current message: the call, which has several, is cancelled."""
        answers = [answer for _, answer in self._given if answer is not None]
        answers += [answer for _, answer, _ in self._messages if answer is not None]
        self._messages.clear()
        self.held_bytes, self._given, self._has_new, self._is_ticked = 0, [], False, False
        if self._call_scope is not None:
            self._call_scope.cancel()
        return answers

    def put(self, message: Message, answer: OnHandled | None, cost: int = 0) -> None:
        """Take a message; `answer` is told when the call that was given it is over, with the answer decided on."""
        self._messages.append((message, answer, cost))
        self.held_bytes += cost
        self._wake()

    def tick(self) -> bool:
        """Let `decide` be called without new messages or tasks; return whether it is not running yet."""
        self._is_ticked = True
        is_idle = not self._is_running
        self._wake()
        return is_idle

    async def hold(self, task: Task) -> Any:
        """Give a claimed task to the agent; return the result that it reports.

        Raises:
            Reported: It reported another end, or `decide` failed.
        """
        hold = self._holds[task.id] = _Hold(task)
        self._has_new = True
        self._wake()
        try:
            await hold.ended.wait()
        finally:
            del self._holds[task.id]
        if hold.end is not None:
            raise Reported(str(hold.end), hold.end.error)  # one of its own: several tasks may have the same end
        return hold.result

    def report(self, report: ReportTask) -> None:
        """End a task that the agent holds.

        Raises:
            StaleClaim: It holds it no longer, or never did.
            InvalidValue, ValueTooLarge: The result cannot be stored; the task has failed, and is not tried again.
        """
        hold = self._holds.get(report.task_id)
        if hold is None or hold.ended.is_set():
            raise StaleClaim(
                report.task_id,
                token=0,
                why="this agent holds it no longer, or never did: it was reported, timed out, or cancelled",
            )
        if report.is_released:
            hold.finish(None, Reported(report.error or "", Release(report.error or "")))
        elif report.error is not None:
            hold.finish(None, _end_of(report, report.error))
        else:
            encoded = guarded(encode_result, report.result)
            if type(encoded) is Raised:
                hold.finish(None, Reported(encoded.text, NoRetry(encoded.text)))
                raise as_exception(encoded)
            hold.finish(report.result, None)

    def answer(self, message_id: str, payload: Any) -> None:
        """Answer a message that the running call of `decide` was given.

        Raises:
            InvalidValue: It was given none with that id, or the payload is not plain data.
            MessageTooLarge: The payload is over the limit of an answer.
        """
        if message_id not in self._asking:
            raise InvalidValue(
                "AnswerMessage.message_id", message_id, "the id of a message that this call of decide was given"
            )
        self._answers[message_id] = encode_answer(payload)

    def _wake(self) -> None:
        if not self._is_running:
            self._is_running = True
            self._boundary.background.loop(self._run)

    async def _run(self) -> None:
        begin(self._agent)
        agent = self._agent
        while self._messages or self._has_new or self._is_ticked:
            if agent.health.is_troubled and (rest_sec := agent.health.rest_sec("decide")):
                await anyio.sleep(rest_sec)
                continue
            try:
                with anyio.CancelScope() as self._call_scope:
                    await self._call()
            except Exception as error:  # nothing expected it: what the agent holds must not wait for the loop
                self._end_all(Reported(describe(error)), list(self._holds.values()))
                raise
            finally:
                self._call_scope = None
        self._is_running = False

    def _next(self) -> tuple[Message, OnHandled | None]:
        message, answer, cost = self._messages.popleft()
        self.held_bytes -= cost
        return unpacked(message), answer

    async def _call(self) -> None:
        """Call `decide` once, and do what follows from it."""
        given = self._given = [self._next() for _ in range(min(BATCH, len(self._messages)))]
        holds = list(self._holds.values())
        new = [hold for hold in holds if hold.is_new]
        for hold in new:
            hold.is_new = False
        self._has_new = self._is_ticked = False
        self._asking = {message.id for message, _ in given}
        raised = await self._decide(
            [message for message, _ in given], [hold.task for hold in holds if not hold.ended.is_set()]
        )
        why = ""
        if raised is not None:
            why = raised.text
            self._failed(raised, new)
        else:
            self._failures = 0
            if self._agent.health.is_troubled:
                self._supervision.succeeded(self._agent, "decide")
        self._asking = set()
        answers, self._answers = self._answers, {}
        for message, answer in self._given:
            if answer is not None:
                answer(None if why else answers.get(message.id, b"null"), why)
        self._given = []

    def _failed(self, raised: Raised, new: Sequence[_Hold]) -> None:
        """End the tasks that this call was the first to be given as it ended; after several failures in a row, those
        that the agent held before fail, too. An `AttemptEnd` is its word on the new ones, and no failure.
        """
        agent, word = self._agent, word_of(raised.error)
        if word is not None and is_a(word, Release):
            tell(agent_log(agent), logging.WARNING, "decide released its new tasks: %s", raised.text)
        elif raised.is_a(ConvergeError) or is_cancellation(raised.error):
            tell(agent_log(agent), logging.WARNING, "decide failed: %s", raised.text)
        else:
            tell(agent_log(agent), logging.ERROR, "decide failed", error=raised.error)
        self._supervision.failed(agent, "decide", raised)
        self._end_all(Reported(raised.text, raised.error), new)
        if word is None:
            self._failures += 1
            if self._failures >= agent.kind.breaker.failures:
                self._end_all(Reported(raised.text), list(self._holds.values()))

    def _end_all(self, end: Reported, holds: Sequence[_Hold]) -> None:
        for hold in holds:
            hold.finish(None, end)

    async def _decide(self, messages: Sequence[Message], tasks: Sequence[Task]) -> Raised | None:
        """Call the agent's `decide`, carry out its decisions, and report the outcomes; return how a call failed, if
        any.
        """
        agent, before = self._agent, partial(begin, self._agent)
        decisions = await self._boundary.call(handler_of(agent, "decide"), list(messages), list(tasks), before=before)
        if type(decisions) is Raised:
            return decisions
        decisions = guarded(_listed, decisions)
        if type(decisions) is Raised:
            return decisions
        most = agent.kind.limits.decisions
        results = await self._boundary.each(partial(self._executor.execute, agent), decisions[:most], before)
        outcomes = [self._outcome(*one) for one in zip(decisions, results, strict=False)]
        if len(decisions) > len(outcomes):
            refusal = TooManyDecisions(agent.id, len(decisions), most)
            tell(agent_log(agent), logging.WARNING, "%s", refusal)
            outcomes += [
                Outcome(decision=decision, is_ok=False, error=refusal) for decision in decisions[len(outcomes) :]
            ]
        if not outcomes:
            return None
        told = await self._boundary.call(handler_of(agent, "on_outcomes"), outcomes, before=before)
        return told if type(told) is Raised else None

    def _outcome(self, decision: Any, result: Any) -> Outcome:
        """Return the outcome of one decision for its agent; a failure stops none of the others."""
        if type(result) is not Raised:
            return Outcome(decision=decision, is_ok=True, value=result)
        tell(agent_log(self._agent), logging.WARNING, "%s failed: %s", name_of(type(decision)), result.text)
        return Outcome(decision=decision, is_ok=False, error=as_exception(result))


def _end_of(report: ReportTask, text: str) -> Reported:
    """Return how a task ends that was reported as failed."""
    if not report.is_retried:
        return Reported(text, NoRetry(text))
    if report.retry_after_sec is not None:
        return Reported(text, RetryAfter(report.retry_after_sec, text))
    return Reported(text)


def _listed(decisions: Any) -> list[Any]:
    """Return what `decide` returned as a list.

    Raises:
        TypeError: It is none, nor None.
    """
    if decisions is None:
        return []
    if isinstance(decisions, str | bytes) or not isinstance(decisions, Sequence):
        raise TypeError(f"decide returned {name_of(type(decisions))}, expected a list of decisions")
    return list(decisions)
