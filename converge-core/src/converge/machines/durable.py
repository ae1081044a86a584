"""The steps before and between the attempts of a task: how it is stored, waits, goes on, and is called off with grace.

What its attempts record stands in keys of its own, each written together with a check of the claim (`held` at its
token). A parked task stands in `later`, put in one batch with its state, so both have one revision: whoever resumes it
checks the place at the revision of the state that it has read. A signal, the end of a child and a park all put the
record of the task's signals at the revision that they have read, so of two that race one looks again.

What holds on every store beside T-1 to T-14, each clause tested by `converge.testing.TaskContract`:

T-15 A recorded step never runs again, and a claim that is not current records nothing: no step, output, wait or child.
T-16 A signal that was acknowledged before its task's end is consumed at most once, in order for each name, whether it
     comes before or after the wait; a repeat with its key changes nothing.
T-17 A parked task holds no slot, claim or timeout, stands at one place, and is resumed once: by signal, child or time.
T-18 Output is ordered; a reader with a cursor misses no piece and is given none twice; each piece says whether its step
     ran again, and how many before it were removed.
T-19 A child is submitted once, in its parent's own batch, and not again after its retention; its end reaches the parent
     though the process dies that ended it; a parent's end reaches all of its descendants.
T-20 The answer of a virtual agent and its new state are one batch.
T-21 Retention and purge leave no key of a task behind, also where they are killed half way.
T-22 A park forgives the attempts before it; a crash loop without one is still FAILED.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from converge.codec import MOMENT_GREATEST, Int, Moment, encode, parse_hash
from converge.machines.events import (
    Cancelled,
    Completed,
    DeadlinePassed,
    Event,
    Failed,
    LeaseEnded,
    Parked,
    Released,
    Restarted,
    Resumed,
)
from converge.machines.lane import lane_of, open_lane
from converge.machines.task import TaskState, digest, entry_of
from converge.machines.task import step as plain_step
from converge.model.batch import ABSENT, Batch, Check, Put
from converge.model.keys import (
    ACTIVE,
    DEDUP,
    GONE,
    HELD,
    KEPT,
    KEY,
    LATER,
    LIMIT,
    NOTICE,
    ORDER,
    READY,
    SIGNALS,
    STATE,
    TASK,
    Key,
)  # fmt: skip
from converge.model.place import SPLIT_KEYS, Around, Found, Held, KeyRow, KeySeen, LaneSeen, key_of
from converge.model.task import DURABLE, Calling, Spec, State

PARKED = "?"
"""What stands behind the lane in `later` where the task waits for more than a time."""

FOREVER = MOMENT_GREATEST
"""Until when a wait without a timeout lasts."""

SIGNAL_KEYS = 64
"""How many keys of signals a task remembers: a repeat comes within moments, or after a restart of its sender."""


class Signals(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`signals/<id>`: how many signals came, how many were consumed, and the keys of the last ones."""

    next: Int = 0
    got: Int = 0
    keys: tuple[str, ...] = ()
    v: int = DURABLE


class Signal(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`signal/<id>/<number>`: one that nobody has consumed."""

    name: str
    payload: msgspec.Raw = msgspec.Raw(b"null")
    key: str = ""
    at: Moment = 0
    v: int = DURABLE


class Step(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`step/<id>/<restarts>/<label>`: what a step, a wait or a spawn came to.

    Attributes:
        number: Which one of the task's it is, from 0.
        at: When it was recorded.
        token: Of the claim that recorded it.
        result: What it returned.
        kind, text: What it raised, if that is final.
        until: A wait that has not ended lasts until then.
        is_begun: It was begun, and nothing says that it ended.
        ms: How long it took.
    """

    number: Int
    at: Moment
    token: Int = 0
    result: msgspec.Raw = msgspec.Raw(b"null")
    kind: str = ""
    text: str = ""
    until: Moment = 0
    is_begun: bool = False
    ms: Int = 0
    v: int = DURABLE

    @property
    def is_over(self) -> bool:
        """Whether it has ended, so that its value is final."""
        return not self.until and not self.is_begun


class Chunk(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`chunk/<id>/<token>/<number>`: a piece of output, of a step or of none; `progress` is a report of progress."""

    data: msgspec.Raw = msgspec.Raw(b"null")
    step: str = ""
    is_progress: bool = False
    v: int = DURABLE


def submit(id_: bytes, spec: Spec, lane: Check, key: KeySeen | None, now: int, *, is_open: bool = True) -> Batch:
    """Return the batch that stores a new task (S-4 makes it one task however often it is submitted).

    `lane` checks the lane of `spec` as it was seen, which the batch opens unless `is_open`; with an ordering key, `key`
    is its row or None if absent, and `spec.number` must be the row's next number.
    """
    task = (TASK, id_)
    checks: list[Check] = [(task, ABSENT), lane]
    puts: list[Put] = [(task, encode(spec))]
    if not is_open:
        puts.append((lane[0], encode(lane_of(spec))))
    if spec.dedup_key is not None:
        dedup = DEDUP(spec.pool, spec.dedup_key)
        checks.append((dedup, ABSENT))
        puts.append((dedup, encode((id_.hex(), spec.digest))))
    if spec.deadline:
        puts.append((LIMIT(spec.deadline, id_), b""))
    if spec.ordering_key is not None:
        row_key, active = KEY(spec.pool, spec.ordering_key), ACTIVE(spec.pool, spec.ordering_key)
        checks.append((row_key, key.revision if key else ABSENT))
        puts.append((row_key, encode(KeyRow(spec.number + 1, v=SPLIT_KEYS))))
        if key is None or key.row.v < SPLIT_KEYS:
            puts.append((active, encode(key.row.active if key else id_.hex())))
        if key is not None:
            puts.append((ORDER(spec.pool, spec.ordering_key, spec.number), encode(id_.hex())))
            return Batch(checks, puts)
    if spec.due > now:
        puts.append(entry_of(id_, spec, spec.due, spec.rank, now))
    else:
        puts.append(((READY, lane[0][2], spec.rank, id_), b""))
    return tuple.__new__(Batch, (checks, puts, (), None))


def step(found: Found, event: Event, now: int, around: Around) -> Batch:
    """Return the batch of any event, as `machines.task.step` does; a task that is being called off only ends, when its
    handler does or its grace time. A claim that ended without its handler, or whose handler cannot have been told, goes
    back: what was done is yet to be undone.
    """
    event = as_called_off(found, event)
    if found.state is not None and found.state.calling is not None and _is_ended_by(event, found, now):
        event = Cancelled(found.state.calling.by, found.state.calling.why)
    if isinstance(event, Parked):
        return _park(found, event)
    if isinstance(event, Resumed | Restarted):
        return _begin_again(found, event, now, around)
    return plain_step(found, event, now, around)


def as_called_off(found: Found, event: Event) -> Event:
    """Return what follows the event if the task is being called off: a handler that was told can neither park nor
    restart, so one that has done so was not. It begins again, and is told then.
    """
    if found.state is None or found.state.calling is None or not isinstance(event, Parked | Restarted):
        return event
    return Resumed(event.puts if isinstance(event, Parked) else ())


def _is_ended_by(event: Event, found: Found, now: int) -> bool:
    """Return whether a task that is being called off is cancelled by the event."""
    spec, state = found.spec, found.state
    assert state is not None and state.calling is not None, "it is being called off"
    match event:
        case DeadlinePassed():
            return not spec.deadline or now < spec.deadline  # it was the grace time that passed
        case Released() | Resumed():
            return now >= state.calling.until
        case LeaseEnded():
            return now >= state.calling.until or state.attempts + 1 >= spec.max_attempts
        case _:
            return isinstance(event, Completed | Failed)


def marked(found: Found) -> State:
    """Return the state of a task whose attempt records something: in the format that says so."""
    spec = found.spec
    state = found.state or State(TaskState.PENDING.value, 0, spec.due, spec.rank)
    return msgspec.structs.replace(state, v=DURABLE)


def mark(found: Found) -> list[Put]:
    """Return what is put with the first record of any of the task's attempts: that there is more to remove than its
    own records, once its retention has passed.
    """
    return [] if found.state is not None and found.state.v >= DURABLE else [(KEPT(found.id), b"")]


def _park(found: Found, event: Parked) -> Batch:
    spec, place, own = found.spec, found.place, key_of(found)
    assert isinstance(place, Held), "only a claim is parked"
    state = msgspec.structs.replace(
        marked(found),
        state=TaskState.PENDING.value,
        attempts=0,
        due=event.due,
        rank=event.due - _head_start(spec),
        nonce=place.nonce.hex(),
        digest=digest(event),
        token=place.token,
        error="",
        wait=event.wait,
        parks=(found.state.parks if found.state is not None else 0) + 1,
    )
    checks: list[Check] = [(own, place.token), (SIGNALS(found.id), event.revision or ABSENT)]
    puts: list[Put] = [
        (STATE(found.id), encode(state)),
        (LATER(event.due, found.id), encode(spec.lane + PARKED)),
        # Put again, also where it stays as it is: whoever has read it before looks again, and finds the task parked.
        (SIGNALS(found.id), event.signals or encode(Signals())),
        *event.puts,
        *mark(found),
    ]
    return Batch(checks, puts, (own,))


def _begin_again(found: Found, event: Resumed | Restarted, now: int, around: Around) -> Batch:
    place, own = found.place, key_of(found)
    assert isinstance(place, Held), "only a claim begins again"
    state = _ready_state(marked(found), found.spec, now)
    state = msgspec.structs.replace(state, nonce=place.nonce.hex(), digest=digest(event), token=place.token)
    checks: list[Check] = [(own, place.token)]
    puts = mark(found)
    if isinstance(event, Restarted):
        state = msgspec.structs.replace(
            state, restarts=state.restarts + 1, inputs=msgspec.Raw(event.inputs), parks=state.parks
        )
        puts.append((GONE(found.id), encode(state.restarts)))
    else:
        puts += event.puts
        if state.calling is not None:
            puts.append((LIMIT(state.calling.until, found.id), b""))
    puts += ((STATE(found.id), encode(state)), (READY(parse_hash(found.spec.lane), state.rank, found.id), b""))
    open_lane(found.spec, around.lane, checks, puts)
    return Batch(checks, puts, (own,))


def _ready_state(state: State, spec: Spec, now: int) -> State:
    """Return the state of a task that is ready from now on: behind what was ready before, so that a storm of resumed
    tasks does not starve new ones.
    """
    return msgspec.structs.replace(
        state, state=TaskState.PENDING.value, attempts=0, due=now, rank=now - _head_start(spec), error="", wait=None
    )


def _head_start(spec: Spec) -> int:
    """Return the head start of the task's priority, which each attempt keeps."""
    return spec.due - spec.rank


Parts = tuple[list[Check], list[Put], list[Key]]
"""Checks, puts and deletes that are to go into a batch with others."""


def resume(
    id_: bytes, spec: Spec, state: State, revision: int, lane: LaneSeen | None, now: int, calling: Calling | None = None
) -> Parts:
    """Return what resumes a parked task, whose state was read at this revision; with `calling`, to be called off."""
    place = LATER(state.due, id_)
    new = _ready_state(state, spec, now)
    checks: list[Check] = [(place, revision)]
    puts: list[Put] = [(READY(parse_hash(spec.lane), new.rank, id_), b"")]
    if calling is not None:
        new = msgspec.structs.replace(new, calling=calling)
        puts.append((LIMIT(calling.until, id_), b""))
    puts.append((STATE(id_), encode(new)))
    open_lane(spec, lane, checks, puts)
    return checks, puts, [place]


def call_off(found: Found, calling: Calling) -> Batch:
    """Return the batch that marks a held task as one that is being called off. Its place is put again, so that its
    holder, who records and ends under the token that it knows, looks and learns of it.
    """
    place, own = found.place, key_of(found)
    assert isinstance(place, Held), "only a claim is called off with grace"
    state = msgspec.structs.replace(marked(found), calling=calling)
    puts: list[Put] = [
        (own, str(place.claimed_at).encode()),
        (STATE(found.id), encode(state)),
        (NOTICE(place.lease, found.id), encode(calling)),
        (LIMIT(calling.until, found.id), b""),
        *mark(found),
    ]
    return Batch([(own, place.token)], puts)


def held_key(found: Found) -> Check:
    """Return the check that the claim is current."""
    assert isinstance(found.place, Held), "only a claim records anything"
    rank = found.state.rank if found.state is not None else found.spec.rank
    return HELD(found.place.lease, rank, found.id, found.place.nonce), found.place.token


def matching(signals: Sequence[tuple[int, Signal]], names: Sequence[str]) -> tuple[int, Signal] | None:
    """Return the oldest of the signals (number, signal) that has one of the names."""
    return next((one for one in signals if one[1].name in names), None)
