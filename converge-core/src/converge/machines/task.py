"""The task machine: `step(found, event, now, around)` says what to write when something happens to a task.

The only module that names a task state. It reads nothing and awaits nothing: whoever calls it has found the task's key
(its place), what stands around it (its lane, the row of its ordering key, the next task of that key), and gives the
time; it answers one atomic batch.

    PENDING --claim--> ASSIGNED --complete--> COMPLETED
       ^                  |----fail----------> FAILED
       |--retry/release/--|----cancel--------> CANCELLED    (also from PENDING)
       lease ended/hand back

A claim is not here: it is the store's `take`, which moves a key from `ready` to `held`.

What holds on every store, each clause tested by `converge.testing.TaskContract`:

T-1  A task is stored once: the same id or dedup key with the same content gives the same id; with other content it is
     `DedupConflict`, and nothing changes. What was acknowledged can be found by its id from then on.
T-2  A claim hands out ready tasks of the lanes that match its claimer and no others, the smallest rank first, each to
     one claimer.
T-3  The token of a claim is greater than every earlier token of its task.
T-4  A finish takes effect only if its token and nonce are those of the current claim; else it is `StaleClaim`, and
     nothing changes.
T-5  A finish that is repeated for the same attempt with the same content succeeds again; with other content it is
     `StaleClaim`.
T-6  A terminal state is never left; cancel wins or loses against a finish, and says which.
T-7  Failures and ended leases count as attempts, a release or hand-back does not; after `max_attempts` the task is
     FAILED, and says why.
T-8  A task is not claimed before its due time, be it `not_before` or the wait before a retry.
T-9  Tasks of one ordering key are attempted one at a time in the order of their submits; a task that retries holds its
     key, a terminal one frees the next, and the end of a waiting one moves nobody.
T-10 What a dead process held is ready again once its lease has ended, by anybody's sweep, also one that resumes a sweep
     which died half way; under an ended lease nothing is claimed.
T-11 Once a pause has returned nothing is claimed from the pool, until it is resumed.
T-12 A task that waits past its deadline fails; so does one whose attempt ends without a result after it.
T-13 A claim whose answer was lost holds nothing once its process claims again, and counts no attempt.
T-14 Retention removes a task with all that belongs to it, its dedup key included, and not before its time; earlier only
     what is more than its pool keeps, and never what has just ended, or whose dedup key is to be remembered.
T-23 While a task waits behind an ordering key, no submit to that key makes the end of its active task try again.
T-24 A failure may say what follows it: without a retry the task is FAILED whatever attempts are left; with a wait it is
     tried again no sooner than that, at most `RETRY_AFTER_GREATEST_SEC` later, and the attempt counts.

`machines.durable` says how a task waits, and has T-15 to T-22.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

from converge.codec import MOMENT_GREATEST, encode, parse_hash, stored_text
from converge.machines.attempt import wait_sec
from converge.machines.events import (
    CameDue,
    Cancelled,
    Completed,
    DeadlinePassed,
    Event,
    Failed,
    HandedBack,
    LeaseEnded,
    Released,
)  # fmt: skip
from converge.machines.lane import open_lane
from converge.model.batch import Batch, Check, Put
from converge.model.keys import (
    ACTIVE,
    CUT,
    DONE,
    ENDED,
    HELD,
    KEY,
    LATER,
    LIMIT,
    NOTICE,
    ORDER,
    READY,
    STATE,
    TOLD,
    Key,
)  # fmt: skip
from converge.model.place import SPLIT_KEYS, Around, Found, Held, KeyRow, Later, Place, Waiting, key_of, revision_of
from converge.model.pool import Pool
from converge.model.task import DURABLE, HISTORY, NULL, Attempt, Ended, Spec, State

WHY_LENGTH = 2_000
"""Characters of a reason that are kept: a full history of them leaves most of a value to the result."""

RESULT_BYTES = 768 * 1_024
"""The longest result (JSON): a quarter of a store's value is left to the history."""


class TaskState(StrEnum):
    """A task's state; the last three are terminal, never left again."""

    PENDING = "PENDING"
    ASSIGNED = "ASSIGNED"
    WAITING = "WAITING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


TERMINAL = frozenset((TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED))


def step(found: Found, event: Event, now: int, around: Around) -> Batch:
    """Return the batch that does what `event` means for the task, or nothing if the store has changed since.

    Its first check is the task's own key at the revision found, so that of several steps that race one takes effect.
    """
    if isinstance(event, Completed):
        return _complete(found, event, now, around)
    match event:
        case Failed():
            return _fail(found, event, now, around)
        case Released():
            return _put_back(found, "released", event.by, event.why, now, around, counts=False)
        case HandedBack():
            return _make_ready(found, around)
        case LeaseEnded():
            why = "its process died or lost the store"
            return _put_back(found, "lease ended", event.by, why, now, around, counts=True)
        case Cancelled():
            return _end(found, TaskState.CANCELLED, event.by, event.why, now, around)
        case DeadlinePassed():
            return _end(found, TaskState.FAILED, "", DEADLINE, now, around)
        case CameDue():
            return _make_ready(found, around)
        case _:
            raise AssertionError(f"{type(event).__name__} is a step of `machines.durable`")


DEADLINE = "its deadline passed"
EXHAUSTED = "attempts exhausted"


def digest(event: Event) -> str:
    """Return the digest that a repeated finish of an attempt has, too. A completion's result tells by itself."""
    if isinstance(event, Completed):
        return ""
    data = repr(event[:1]).encode()
    # What keeps the digests of different events apart; blake2b takes at most 16 bytes.
    return hashlib.blake2b(data, digest_size=8, person=type(event).__name__.encode()).hexdigest()


def is_said_again(state: State | None, held: Held, event: Event) -> bool:
    """Return whether the attempt has already ended in just this way: the first answer may have been lost (G4)."""
    if state is None or state.nonce != held.nonce.hex():
        return False
    if type(event) is Completed:
        return state.state == TaskState.COMPLETED and bytes(state.result) == event.result
    return state.digest == digest(event)


def state_of(state: State | None, place: Place | None) -> TaskState:
    """Return the state that a task is in, from its record and its place (None: it has none, so it has ended)."""
    if state is not None and state.state in TERMINAL:
        return TaskState(state.state)
    if type(place) is Held:
        return TaskState.ASSIGNED
    return TaskState.WAITING if is_waiting(state, place) else TaskState.PENDING


def is_waiting(state: State | None, place: Place | None) -> bool:
    """Return whether the task is parked: its handler waits for something, and holds no slot meanwhile."""
    return type(place) is Later and state is not None and state.wait is not None


def history_of(state: State) -> tuple[Attempt, ...]:
    """Return all lines of a task's history: that of the attempt which ended it is made of the rest of the record."""
    if not state.rank or state.state not in TERMINAL:
        return state.history
    began = min(max(state.finished + state.rank, 0), MOMENT_GREATEST)  # the sum of a damaged record may be no moment
    last = Attempt(state.finished, state.state.lower(), state.by, state.error, state.token, began)
    return (*state.history, last)


def is_terminal(state: State | None) -> bool:
    """Return whether the task has ended for good."""
    return state is not None and state.state in TERMINAL


def _complete(found: Found, event: Completed, now: int, around: Around) -> Batch:
    """Return the batch that ends most tasks, written for speed: first attempt, no ordering key, no deadline."""
    spec, place = found.spec, found.place
    is_plain = spec.ordering_key is None and not spec.deadline and not spec.parent
    if found.state is not None or type(place) is not Held or not is_plain:
        return _end(found, TaskState.COMPLETED, event.by, "", now, around, result=event.result, ended_by=event)
    (lease, nonce, token, claimed_at), id_, by = place, found.id, event.by
    began = claimed_at - now if claimed_at else 0
    history = () if began else (Attempt(now, "completed", by, "", token, claimed_at),)
    result = NULL if event.result == b"null" else msgspec.Raw(event.result)
    state = State(_COMPLETED, 1, 0, began, nonce.hex(), "", token, by, result, "", history, now)
    own = (HELD, lease, spec.rank, id_, nonce)
    pool = around.pool
    until = (
        now + int(pool.keep_completed_sec * 1_000_000)
        if spec.dedup_key is None
        else _until(spec, TaskState.COMPLETED, now, pool)
    )
    puts = (((STATE, id_), encode(state)), ((DONE, spec.pool, _COMPLETED, until, id_), b""))
    return _batch(Batch, ([(own, token)], puts, (own,), None))


_batch = tuple.__new__  # in half of the time of `Batch(...)`


_COMPLETED = TaskState.COMPLETED.value


def is_last(found: Found, event: Failed) -> bool:
    """Return whether this attempt is the last."""
    return not event.is_retried or _attempts(found) + 1 >= found.spec.max_attempts


def is_given_up(found: Found, event: Failed | Released, now: int) -> bool:
    """Return whether the task fails for good with this: no attempt is left, or its deadline has passed."""
    return _is_late(found.spec, now) or (isinstance(event, Failed) and is_last(found, event))


def _fail(found: Found, event: Failed, now: int, around: Around) -> Batch:
    attempts = _attempts(found) + 1
    if is_last(found, event):
        why = event.error if not event.is_retried or attempts == 1 else f"{event.error} ({EXHAUSTED}: {attempts})"
        return _give_up(found, event, why, now, around)
    if _is_late(found.spec, now):
        return _give_up(found, event, f"{DEADLINE}; the last attempt failed: {event.error}", now, around)
    spec = found.spec
    due = now + int(wait_sec(attempts, spec.retry_delay_sec, event.jitter, event.after_sec) * 1_000_000)
    # What remains is the head start of its priority, which a retry keeps.
    rank = due - (spec.due - spec.rank)
    state = _state(
        found, TaskState.PENDING, "failed", event.by, event.error, now, attempts, due=due, rank=rank, ended_by=event
    )
    own = key_of(found)
    puts = ((STATE(found.id), encode(state)), (LATER(due, found.id), encode(spec.lane)))
    return Batch(((own, revision_of(found.place)),), puts, (own,))


def _give_up(found: Found, event: Failed | Released | LeaseEnded, why: str, now: int, around: Around) -> Batch:
    return _end(found, TaskState.FAILED, event.by, why, now, around, ended_by=event)


def _put_back(found: Found, what: str, by: str, why: str, now: int, around: Around, *, counts: bool) -> Batch:
    spec = found.spec
    attempts = _attempts(found) + counts
    event = LeaseEnded(by) if counts else Released(by, why)
    if counts and attempts >= spec.max_attempts:
        return _give_up(found, event, f"{EXHAUSTED}: {attempts}; the last one ended because {why}", now, around)
    if _is_late(spec, now):
        ended = f"{DEADLINE}; the last attempt ended without a result: {why or what}"
        return _give_up(found, event, ended, now, around)
    due, rank = (found.state.due, found.state.rank) if found.state is not None else (spec.due, spec.rank)
    state = _state(found, TaskState.PENDING, what, by, why, now, attempts, due=due, rank=rank, ended_by=event)
    own = key_of(found)
    checks: list[Check] = [(own, revision_of(found.place))]
    puts: list[Put] = [(STATE(found.id), encode(state)), (READY(parse_hash(spec.lane), rank, found.id), b"")]
    open_lane(spec, around.lane, checks, puts)
    return Batch(checks, puts, (own,))


def _make_ready(found: Found, around: Around) -> Batch:
    """Return the batch that puts the task from where it stands to those that are ready, and changes nothing else."""
    spec = found.spec
    rank = found.state.rank if found.state is not None else spec.rank
    own = key_of(found)
    checks: list[Check] = [(own, revision_of(found.place))]
    puts: list[Put] = [(READY(parse_hash(spec.lane), rank, found.id), b"")]
    open_lane(spec, around.lane, checks, puts)
    return Batch(checks, puts, (own,))


def _end(
    found: Found,
    to: TaskState,
    by: str,
    why: str,
    now: int,
    around: Around,
    *,
    result: bytes = b"null",
    ended_by: Event | None = None,
) -> Batch:
    """Return the batch of a terminal step; it frees the next task of an ordering key."""
    spec, place, own = found.spec, found.place, key_of(found)
    is_held = type(place) is Held
    attempts = _attempts(found) + (is_held and to is not TaskState.CANCELLED)
    event = (
        ended_by if ended_by is not None else Completed(result, by) if to is TaskState.COMPLETED else Cancelled(by, why)
    )
    state = _state(found, to, str(to).lower(), by, why, now, attempts, ended_by=event, result=result)
    checks: list[Check] = [(own, revision_of(place))]
    deletes: list[Key] = [own]
    puts: list[Put] = [
        (STATE(found.id), encode(state)),
        (DONE(spec.pool, to.value, _until(spec, to, now, around.pool), found.id), b""),
    ]
    if spec.deadline:
        deletes.append(LIMIT(spec.deadline, found.id))
    if type(place) is Held and to is TaskState.CANCELLED:
        puts.append((NOTICE(place.lease, found.id), encode(place.nonce.hex())))
    if spec.ordering_key is not None:
        free_next(found, now, around, checks, puts, deletes)
    if spec.parent or found.state is not None or (type(event) is Completed and event.also is not None):
        _tell_family(found, event, state, checks, puts, deletes)
    return Batch(checks, puts, deletes)


def _tell_family(
    found: Found, event: Event, state: State, checks: list[Check], puts: list[Put], deletes: list[Key]
) -> None:
    """Add what a task's end means for its parent, its children and its virtual agent: all in the same batch (T-19)."""
    old = found.state
    if found.spec.parent:
        parent = parse_hash(found.spec.parent)
        ended = Ended(state.state, state.result, state.error, state.finished)
        puts += ((ENDED(parent, found.id), encode(ended)), (TOLD(parent, found.id), b""))
    if old is not None and old.has_children:
        puts.append((CUT(found.id), b""))
    if old is not None and old.calling is not None and old.calling.until != found.spec.deadline:
        deletes.append(LIMIT(old.calling.until, found.id))
    if type(event) is Completed and event.also is not None:
        key, value, revision = event.also
        checks.append((key, revision))
        puts.append((key, value))


def free_next(found: Found, now: int, around: Around, checks: list[Check], puts: list[Put], deletes: list[Key]) -> None:
    """Free what waits behind the active task of an ordering key, which alone is ever ready, later or held; of a task
    that waits nothing but its own key goes.

    Where another waits, the row is left alone: no submit makes this step conflict, nor this step a submit. Where nobody
    waits the row goes, so of this step and a submit beside it one conflicts, and looks again.
    """
    if type(found.place) is Waiting:
        return
    spec, key, successor = found.spec, around.key, around.successor
    assert key is not None and spec.ordering_key is not None, (
        "the active task of an ordering key is stepped with the key's row"
    )
    row_key, active = KEY(spec.pool, spec.ordering_key), ACTIVE(spec.pool, spec.ordering_key)
    if successor is None:
        checks.append((row_key, key.revision))
        deletes += (row_key, active)
        return
    order = ORDER(spec.pool, spec.ordering_key, successor.spec.number)
    checks.append((order, successor.revision))
    deletes.append(order)
    if key.row.v >= SPLIT_KEYS:
        puts.append((active, encode(successor.id.hex())))
    else:
        checks.append((row_key, key.revision))
        puts.append((row_key, encode(KeyRow(key.row.next, successor.id.hex()))))
    entry = entry_of(successor.id, successor.spec, successor.spec.due, successor.spec.rank, now)
    puts.append(entry)
    if entry[0][0] is READY:
        open_lane(successor.spec, successor.lane, checks, puts)


def entry_of(id_: bytes, spec: Spec, due: int, rank: int, now: int) -> Put:
    """Return the key under which a task waits that nobody holds: ready, or later if it is not due."""
    # Who frees a successor may read store time a little behind its submitter: what was due when it was submitted is
    # never put off by that.
    if due > max(now, spec.submitted):
        return LATER(due, id_), encode(spec.lane)
    return READY(parse_hash(spec.lane), rank, id_), b""


def _attempts(found: Found) -> int:
    return found.state.attempts if found.state is not None else 0


def _is_late(spec: Spec, now: int) -> bool:
    return bool(spec.deadline) and now >= spec.deadline


def _until(spec: Spec, to: TaskState, now: int, pool: Pool) -> int:
    keep_sec = pool.keep_completed_sec if to is TaskState.COMPLETED else pool.keep_failed_sec
    until = now + int(keep_sec * 1_000_000)
    if spec.dedup_key is not None:
        until = max(until, spec.submitted + int(pool.dedup_window_sec * 1_000_000))
    return until


def _state(
    found: Found,
    to: TaskState,
    what: str,
    by: str,
    why: str,
    now: int,
    attempts: int,
    *,
    due: int = 0,
    rank: int = 0,
    ended_by: Event,
    result: bytes = b"null",
) -> State:
    place, old = found.place, found.state
    why, by = stored_text(why[: WHY_LENGTH + 1]), stored_text(by)
    if len(why) > WHY_LENGTH:
        why = f"{why[: WHY_LENGTH - 1]}…"
    if type(place) is Held:
        line = Attempt(now, what, by, why, place.token, place.claimed_at)
        nonce, token = place.nonce.hex(), place.token
    else:
        line, nonce, token = Attempt(now, what, by, why), "", 0
    history = (*old.history[-(HISTORY - 1) :], line) if old is not None else (line,)
    if to in TERMINAL and line.claimed_at and line.claimed_at != now:
        history, rank = history[:-1], line.claimed_at - now  # the record says all that the line would
    made = State(
        to.value,
        attempts,
        due,
        rank,
        nonce,
        digest(ended_by),
        token,
        by,
        NULL if result == b"null" else msgspec.Raw(result),
        why if to is not TaskState.COMPLETED else "",
        history,
        now if to in TERMINAL else 0,
    )
    return made if old is None or old.v < DURABLE else _kept(made, old)


def _kept(made: State, old: State) -> State:
    """Return the new state with what a durable task keeps over its attempts."""
    return msgspec.structs.replace(
        made,
        parks=old.parks,
        restarts=old.restarts,
        inputs=old.inputs,
        has_children=old.has_children,
        calling=old.calling,
        v=DURABLE,
    )
