"""The task as users see it, and the two records that a store keeps of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NewType

import attrs
import msgspec

from converge.codec import FIRST, Channel, Count, Hash, Int, KeyText, Moment, Seconds, parse_hash
from converge.ids import is_name
from converge.model.keys import NAME, fits
from converge.model.working import Working

TaskId = NewType("TaskId", str)
"""The text of a UUIDv7."""

HISTORY = 20
"""How many ended attempts a task remembers: enough to see a pattern; it may be released any number of times."""


class Attempt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One line of a task's history: an ended attempt, or an operator's step. Moments: store time in microseconds.

    Attributes:
        at: When it ended.
        what: How it ended, as the task machine names it.
        by: Which agent or operator.
        why: The reason given, or empty.
        token: The claim's token; 0 where no claim was involved.
        claimed_at: When the attempt began; 0 as above.
    """

    at: Moment
    what: str
    by: str = ""
    why: str = ""
    token: Int = 0
    claimed_at: Moment = 0


@attrs.frozen(kw_only=True, slots=False)  # its dictionary is filled in one step
class Task(Working):
    """A piece of work: its submitter's specification and, once it is stored, its state.

    Attributes:
        pool_id: The pool whose agents may claim it.
        id: A UUID; empty: drawn by submit.
        type: What kind of work it is; an agent with `task_types` claims only those.
        topic: What it is about; empty: any agent.
        required_capabilities: An agent claims it only if it has all of them.
        inputs: A mapping of names to plain data (JSON types and bytes).
        priority: -1,000 to 1,000; each step is worth a head start of the pool's `priority_step_sec`.
        not_before: It is not claimed before this moment (aware).
        deadline: If it has not ended by this moment (aware), it fails.
        timeout_sec: An attempt that takes longer is cancelled, and counts as failed.
        max_attempts: Claims that may end without a hand-back.
        retry_delay_sec: The first retry waits up to this long, each later one up to twice as long, at most 300 s; drawn
            at random.
        dedup_key: Two submits to a pool with one key yield one task.
        ordering_key: Tasks of a pool with one key are attempted one at a time, in the order of their submits.
        trace: Passed on as it is.
        state, attempts, claimed_by, token, nonce, result, error, history, submitted_at, finished_at: Of a stored task;
        moments are aware UTC.
        claimed_at: When the current attempt began.
        parent_id: The task that spawned it, or empty.
        waiting_for, waiting_since, parks: What a WAITING task waits for, since when, and how often it has waited.
    """

    pool_id: str
    id: str = ""
    type: str = ""
    topic: str = ""
    required_capabilities: Sequence[str] = ()
    inputs: Mapping[str, Any] = attrs.field(factory=dict)
    priority: int = 0
    not_before: datetime | None = None
    deadline: datetime | None = None
    timeout_sec: float | None = None
    max_attempts: int = 3
    retry_delay_sec: float = 1.0
    dedup_key: str | None = None
    ordering_key: str | None = None
    trace: Mapping[str, str] = attrs.field(factory=dict)

    state: str = ""
    attempts: int = 0
    claimed_by: str = ""
    token: int = 0
    nonce: str = ""
    result: Any = None
    error: str = ""
    history: Sequence[Attempt] = ()
    submitted_at: datetime | None = None
    claimed_at: datetime | None = None
    finished_at: datetime | None = None
    parent_id: str = ""
    waiting_for: str = ""
    waiting_since: datetime | None = None
    parks: int = 0

    if not TYPE_CHECKING:  # for a type checker it has the attributes above and the initialiser that attrs would make

        def __init__(self, **given: Any) -> None:
            """Store only what is given: to store all 26 attributes would take four times as long."""
            if "pool_id" not in given or not _NAMES.issuperset(given):
                Task.__signature__.bind(**given)  # says what is wrong
            given.setdefault("inputs", {})
            given.setdefault("trace", {})
            object.__setattr__(self, "__dict__", given)

    @property
    def effect_key(self) -> str:
        """A name for this task's outside effects, the same in every attempt: for use as an idempotency key."""
        return f"{self.pool_id}/{self.id}"


_NAMES = frozenset(field.name for field in attrs.fields(Task))


def _give_defaults() -> None:
    parameters = []
    for field in attrs.fields(Task):
        default: Any = field.default
        if default is attrs.NOTHING:
            default = inspect.Parameter.empty
        elif isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # it is a class, whatever its type says
            default = {}
        else:
            setattr(Task, field.name, default)
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
        )
    Task.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by `help` and by editors


_give_defaults()


class Spec(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`task/<id>`: what was submitted, written once. Moments are store time in microseconds, 0 for none.

    `origin` names the channel of the process that submitted it, which is woken when it ends; `digest` is that of its
    content, if it has a dedup key.

    A msgspec Struct, not an attrs class: a claim decodes one a task, and this is the cheapest record there is.
    """

    pool: str
    lane: Hash
    due: Moment
    rank: Int
    submitted: Moment
    digest: str = ""
    type: str = ""
    topic: str = ""
    capabilities: tuple[str, ...] = ()
    inputs: msgspec.Raw = msgspec.Raw(b"{}")
    priority: Int = 0
    deadline: Moment = 0
    timeout_sec: Seconds | None = None
    max_attempts: Count = 3
    retry_delay_sec: Seconds = 1.0
    dedup_key: KeyText | None = None
    ordering_key: KeyText | None = None
    number: Int = 0
    trace: dict[str, str] = {}
    origin: Channel = ""
    parent: str = ""
    v: int = FIRST

    def check(self) -> None:
        """Raise ValueError for text that cannot be part of a key."""
        parse_hash(self.lane)
        if self.parent:
            parse_hash(self.parent)
        if not is_name(self.pool):
            raise ValueError("its pool is not a valid name")
        for key in (self.dedup_key, self.ordering_key):
            if key is not None and not fits(NAME, key):
                raise ValueError("its dedup key or ordering key is no part of a key")


NULL = msgspec.Raw(b"null")
"""A result that is null: records that have this very object leave it out."""

DURABLE = 4
"""The format of the records of a task that has recorded anything beside its end: steps, waits, children, output."""


class Wait(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a parked task waits for.

    Attributes:
        names: The signals any of which resumes it.
        need: How many of its children must have ended to resume it; 0: it waits for none.
        since: When it was parked (store time).
        text: What it waits for, for people.
    """

    names: tuple[str, ...]
    need: Count = 0
    since: Moment = 0
    text: str = ""


class Ended(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`ended/<parent>/<id>`: how a child ended, put in the batch that ended it."""

    state: str
    result: msgspec.Raw = NULL
    error: str = ""
    at: Moment = 0
    v: int = DURABLE


class Calling(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A cancel with grace: until when (store time) the handler may go on, who wanted it and why."""

    until: Moment
    by: str = ""
    why: str = ""


class State(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`state/<id>`: what has become of it; absent until an attempt or the task has ended.

    `due` and `rank` are those of the next attempt; `inputs` replace the submitted ones since a restart, `restarts`
    counts those; `nonce` and `digest` those of the last attempt that ended, so that a
    repeated finish is known.

    Where an attempt has ended the task for good, `history` lacks its line, which would repeat the record: `rank`, of
    which an ended task has no use, says by how much that attempt began after `finished`: it is less than 0, unless
    clocks differ. `machines.task.history_of` has all lines.
    """

    state: str
    attempts: Count
    due: Moment
    rank: Int
    nonce: str = ""
    digest: str = ""
    token: Int = 0
    by: str = ""
    result: msgspec.Raw = NULL
    error: str = ""
    history: tuple[Attempt, ...] = ()
    finished: Moment = 0
    wait: Wait | None = None
    parks: Count = 0
    restarts: Count = 0
    inputs: msgspec.Raw = msgspec.Raw(b"null")
    has_children: bool = False
    calling: Calling | None = None
    v: int = FIRST


class _Placed(msgspec.Struct, frozen=True):
    """Of a specification what says where its task belongs; other fields are passed over."""

    pool: str
    lane: Hash
    due: Moment
    rank: Int
    submitted: Moment
    type: str = ""
    topic: str = ""
    capabilities: tuple[str, ...] = ()
    deadline: Moment = 0
    ordering_key: KeyText | None = None
    number: Int = 0
    origin: Channel = ""
    parent: str = ""


_decode_placed = msgspec.json.Decoder(_Placed).decode


def placed(raw: bytes) -> Spec | None:
    """Return what a newer release's specification says of its task's place; None where that cannot be read."""
    try:
        spec = Spec(**msgspec.structs.asdict(_decode_placed(raw)))
        spec.check()
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return None
    return spec
