"""The actions of agents: one record for each kind, its outcome, and the limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from attrs import validators

from converge.errors import InvalidValue
from converge.machines.breaker import plain_number
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.messages.options import SendOptions


@attrs.frozen(kw_only=True)
class SendMessage(SendOptions):
    """Send a message to an agent; the outcome's value is its `Receipt`.

    Attributes:
        to: An agent's id, or `Capability("x")`: any one agent that has it.
        payload: Plain data.
        ack, timeout, mailbox, proof, task_id: As for `Node.send`.
    """

    to: str
    payload: Any


@attrs.frozen(kw_only=True)
class AskAgent:
    """Send a message to an agent and wait for its answer, which is the outcome's value. See `Node.ask`."""

    to: str
    payload: Any
    timeout: float = 10.0
    task_id: str = ""


@attrs.frozen(kw_only=True)
class PublishMessage:
    """Send a message to all other agents of a topic. See `Node.publish`."""

    topic: str
    payload: Any
    timeout: float = 10.0


@attrs.frozen(kw_only=True)
class BroadcastMessage:
    """Send a message to all other agents of a pool. See `Node.broadcast`."""

    pool_id: str
    payload: Any
    timeout: float = 10.0


@attrs.frozen(kw_only=True)
class AnswerMessage:
    """Answer a message that this `decide` was given: the payload is what its sender's `ask` returns."""

    message_id: str
    payload: Any


@attrs.frozen(kw_only=True)
class SubmitTask:
    """Submit a task; the outcome's value is its id."""

    task: Task


@attrs.frozen(kw_only=True)
class ReportTask:
    """End a task that `decide` was given: with its result, as failed (`error`), or handed back (`is_released`).

    Attributes:
        is_retried: False: it has failed for good, as after `NoRetry`.
        retry_after_sec: Seconds until it is tried again, as after `RetryAfter`; None: the task's own delay.
    """

    task_id: str
    result: Any = None
    error: str | None = attrs.field(default=None, validator=validators.optional(validators.instance_of(str)))
    is_retried: bool = True
    is_released: bool = False
    retry_after_sec: float | None = attrs.field(default=None, validator=validators.optional(validators.ge(0)))

    def __attrs_post_init__(self) -> None:
        if self.retry_after_sec is not None and (self.error is None or not self.is_retried or self.is_released):
            raise InvalidValue("ReportTask.retry_after_sec", self.retry_after_sec, "None without an error to retry")


@attrs.frozen(kw_only=True)
class JoinPool:
    """Become a member of a pool, and claim its tasks from now on; the outcome's value tells whether that is new."""

    pool_id: str
    secret: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class LeavePool:
    """Leave a pool, and claim its tasks no longer; the outcome's value tells whether the agent was a member."""

    pool_id: str


@attrs.frozen(kw_only=True)
class CreatePool:
    """Create a pool; the outcome's value tells whether it is new."""

    pool: Pool
    secret: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class InvokeTool:
    """Call one of the agent's `tools`; the outcome's value is its result. `timeout_sec` may only shorten its own."""

    name: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    timeout_sec: float | None = None


Messaging = SendMessage | AskAgent | PublishMessage | BroadcastMessage | AnswerMessage
"""The decisions that send something to other agents; `allowed_actions` names them together, or each by its type."""

Decision = Messaging | SubmitTask | ReportTask | JoinPool | LeavePool | CreatePool | InvokeTool
"""Core's decisions; plugins declare theirs through `converge_decisions`."""


@attrs.frozen(kw_only=True)
class Outcome:
    """The outcome of one decision of a `decide` call.

    Attributes:
        decision: The decision.
        is_ok: Whether it was carried out.
        value: What it gave, if it was.
        error: Why not, otherwise: a `ConvergeError`, or what a tool or a plugin's handler raised.
    """

    decision: Any
    is_ok: bool
    value: Any = None
    error: Exception | None = None


def _whole(_: object, __: object, value: object) -> None:
    if not isinstance(value, int):
        raise InvalidValue("Limits.decisions", value, "an int")


@attrs.frozen(kw_only=True)
class Limits:
    """How much one agent may do. The defaults stop a runaway agent, not a working one.

    Attributes:
        decisions: Decisions that one call of `decide` may return.
        in_flight: Actions under way at a time.
        per_sec: Actions a second, with as many saved up as come in one second; None: no limit.
    """

    decisions: int = attrs.field(default=100, validator=[_whole, validators.ge(1)])
    in_flight: int = attrs.field(default=1_000, validator=[plain_number, validators.ge(1)])
    per_sec: float | None = attrs.field(default=None, validator=validators.optional([plain_number, validators.gt(0)]))


@attrs.frozen
class Tool:
    """A function that an agent may call through `self.tool`, and its time limit; a sync one runs in a worker thread."""

    function: Callable[..., Any]
    timeout_sec: float = attrs.field(default=30.0, kw_only=True, validator=[plain_number, validators.gt(0)])
