"""The task machine without a store: what one step checks, puts and deletes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from converge.codec import MOMENT_GREATEST, decode
from converge.contracts.store import ABSENT, Batch
from converge.machines import task as machine
from converge.machines.attempt import RETRY_GREATEST_SEC
from converge.machines.durable import submit
from converge.machines.events import CameDue, Cancelled, Completed, DeadlinePassed, Event, Failed, LeaseEnded, Released
from converge.machines.lane import Lane, lane_id
from converge.machines.task import RESULT_BYTES, WHY_LENGTH, TaskState, history_of, is_said_again, state_of, step
from converge.model.keys import (
    ACTIVE,
    DEDUP,
    DONE,
    HELD,
    KEY,
    LANE,
    LATER,
    LIMIT,
    NOTICE,
    ORDER,
    READY,
    STATE,
    TASK,
    Key,
)
from converge.model.place import (
    SPLIT_KEYS,
    Around,
    Found,
    Held,
    KeyRow,
    KeySeen,
    LaneSeen,
    Later,
    Ready,
    Successor,
    Waiting,
)
from converge.model.pool import Pool
from converge.model.task import HISTORY, Attempt, Spec, State

SEC = 1_000_000
NOW = 1_000 * SEC
ID, OTHER = b"i" * 16, b"o" * 16
LEASE, NONCE, TOKEN = b"l" * 16, b"n" * 16, 77
CLAIMED_AT = NOW - 10
POOL = Pool(id="docs")
LANE_ID = lane_id("docs", "", "", ())
LANE_SEEN = LaneSeen(5)
LANE_CHECK = (LANE("docs", LANE_ID), 5)
AROUND = Around(POOL, LANE_SEEN)
ROW = KeySeen(11, KeyRow(3, v=SPLIT_KEYS))
ENDS: tuple[Event, ...] = (Completed(b"1"), Failed("no", is_retried=False), Cancelled(), Released(), LeaseEnded())


def spec(**changes: Any) -> Spec:
    """A task that is due since a second."""
    given: dict[str, Any] = {
        "pool": "docs",
        "lane": LANE_ID.hex(),
        "due": NOW - SEC,
        "rank": NOW - SEC,
        "submitted": NOW - SEC,
        "digest": "d",
    }
    return Spec(**(given | changes))


def held(state: State | None = None, **changes: Any) -> Found:
    """A task whose attempt is under way."""
    return Found(ID, spec(**changes), state, Held(LEASE, NONCE, TOKEN, CLAIMED_AT))


def put_by(batch: Batch) -> dict[Key, bytes]:
    """What the batch puts, by key."""
    return dict(batch.puts)


def state_after(batch: Batch) -> State:
    """The state's record that the batch puts."""
    return decode(put_by(batch)[STATE(ID)], State, "state")


def own(found: Found) -> Key:
    """The key of a held task."""
    assert isinstance(found.place, Held)
    return HELD(LEASE, found.spec.rank, ID, NONCE)


@pytest.mark.parametrize("event", ENDS, ids=lambda event: type(event).__name__)
def test_every_step_of_a_claim_checks_its_key_at_its_token_and_deletes_it(event: Event) -> None:
    found = held()
    batch = step(found, event, NOW, AROUND)
    assert batch.checks[0] == (own(found), TOKEN)
    assert own(found) in batch.deletes


@pytest.mark.parametrize(
    ("event", "attempts"),
    [(Completed(b"1"), 1), (Failed("no"), 1), (LeaseEnded(), 1), (Released(), 0), (Cancelled(), 0)],
    ids=str,
)
def test_failures_and_ended_leases_count_as_attempts_and_a_release_does_not(event: Event, attempts: int) -> None:
    assert state_after(step(held(), event, NOW, AROUND)).attempts == attempts


@pytest.mark.parametrize("event", [Failed("no"), LeaseEnded()], ids=str)
def test_the_last_attempt_ends_the_task_and_says_why(event: Event) -> None:
    before = State(state="PENDING", attempts=2, due=NOW, rank=NOW - SEC)
    after = state_after(step(held(before), event, NOW, AROUND))
    assert (after.state, after.attempts) == (TaskState.FAILED, 3)
    assert "attempts exhausted: 3" in after.error


def test_a_retry_waits_twice_as_long_each_time_up_to_a_limit_and_keeps_its_head_start() -> None:
    waits = []
    for attempts in range(12):
        before = State(state="PENDING", attempts=attempts, due=NOW, rank=NOW - SEC - 50)
        found = held(before, rank=NOW - SEC - 50, max_attempts=100, retry_delay_sec=1.0)
        after = state_after(step(found, Failed("no"), NOW, AROUND))
        assert after.due - after.rank == 50
        waits.append((after.due - NOW) / SEC)
    assert waits == [min(2.0**attempts, RETRY_GREATEST_SEC) for attempts in range(12)]


def test_a_released_task_is_ready_again_at_its_old_rank() -> None:
    batch = step(held(rank=NOW - 60 * SEC), Released("me", "busy"), NOW, AROUND)
    assert put_by(batch)[READY(LANE_ID, NOW - 60 * SEC, ID)] == b""
    assert (LANE(POOL.id, LANE_ID), LANE_SEEN.revision) in batch.checks


@pytest.mark.parametrize(("seen", "revision"), [(None, ABSENT), (LaneSeen(9, is_closing=True), 9)])
def test_a_task_that_becomes_ready_opens_its_lane_again(seen: LaneSeen | None, revision: int) -> None:
    batch = step(Found(ID, spec(), None, Later(3)), CameDue(), NOW, Around(POOL, seen))
    assert (LANE(POOL.id, LANE_ID), revision) in batch.checks
    assert not decode(put_by(batch)[LANE(POOL.id, LANE_ID)], Lane, "lane").is_closing


@pytest.mark.parametrize("event", [Failed("no"), Released(), LeaseEnded()], ids=str)
def test_an_attempt_that_ends_without_a_result_after_the_deadline_fails_the_task(event: Event) -> None:
    batch = step(held(deadline=NOW), event, NOW, AROUND)
    assert state_after(batch).state == TaskState.FAILED
    assert "its deadline passed" in state_after(batch).error
    assert LIMIT(NOW, ID) in batch.deletes


def test_a_result_counts_also_after_the_deadline() -> None:
    assert state_after(step(held(deadline=NOW - SEC), Completed(b"7"), NOW, AROUND)).state == TaskState.COMPLETED


@pytest.mark.parametrize(
    ("place", "key"), [(Ready(4), READY(LANE_ID, NOW - SEC, ID)), (Later(4), LATER(NOW - SEC, ID))]
)
def test_a_waiting_task_whose_deadline_passed_fails_without_an_attempt(place: Ready | Later, key: Key) -> None:
    batch = step(Found(ID, spec(deadline=NOW), None, place), DeadlinePassed(), NOW, AROUND)
    assert batch.checks[0] == (key, 4)
    assert (state_after(batch).state, state_after(batch).attempts) == (TaskState.FAILED, 0)


def test_the_process_that_holds_a_cancelled_task_is_told() -> None:
    assert put_by(step(held(), Cancelled(), NOW, AROUND))[NOTICE(LEASE, ID)] == msgspec.json.encode(NONCE.hex())
    waiting = step(Found(ID, spec(), None, Ready(4)), Cancelled(), NOW, AROUND)
    assert not [key for key in put_by(waiting) if key[0] is NOTICE]


@pytest.mark.parametrize("event", [Completed(b"1"), Cancelled(), Failed("no", is_retried=False)], ids=str)
def test_the_end_of_a_task_frees_the_next_of_its_ordering_key(event: Event) -> None:
    after = Successor(OTHER, spec(ordering_key="k", number=2), 12, LANE_SEEN)
    batch = step(held(ordering_key="k", number=1), event, NOW, Around(POOL, LANE_SEEN, ROW, after))
    assert (ORDER("docs", "k", 2), 12) in batch.checks
    assert put_by(batch)[ACTIVE("docs", "k")] == msgspec.json.encode(OTHER.hex())
    assert READY(LANE_ID, NOW - SEC, OTHER) in put_by(batch)


@pytest.mark.parametrize("event", [Completed(b"1"), Cancelled(), Failed("no", is_retried=False)], ids=str)
def test_while_others_wait_neither_the_end_of_a_task_nor_a_submit_touches_what_the_other_does(event: Event) -> None:
    after = Successor(OTHER, spec(ordering_key="k", number=2), 12, LANE_SEEN)
    end = step(held(ordering_key="k", number=1), event, NOW, Around(POOL, LANE_SEEN, ROW, after))
    more = submit(b"\x07" * 16, spec(ordering_key="k", number=3), LANE_CHECK, ROW, NOW)
    assert not _written(end) & (_written(more) | {key for key, _ in more.checks})
    assert not _written(more) & {key for key, _ in end.checks}


def _written(batch: Batch) -> set[Key]:
    return {*put_by(batch), *batch.deletes}


def test_the_end_of_the_last_task_of_an_ordering_key_meets_a_submit_beside_it() -> None:
    end = step(held(ordering_key="k", number=1), Completed(b"1"), NOW, Around(POOL, LANE_SEEN, ROW))
    assert (KEY("docs", "k"), 11) in end.checks
    assert {KEY("docs", "k"), ACTIVE("docs", "k")} <= set(end.deletes)
    more = submit(OTHER, spec(ordering_key="k", number=3), LANE_CHECK, ROW, NOW)
    assert (KEY("docs", "k"), 11) in more.checks and KEY("docs", "k") in put_by(more)


def test_a_row_of_the_first_format_is_kept_by_finishes_and_brought_up_by_a_submit() -> None:
    old = KeySeen(11, KeyRow(3, ID.hex()))
    after = Successor(OTHER, spec(ordering_key="k", number=2), 12, LANE_SEEN)
    end = step(held(ordering_key="k", number=1), Completed(b"1"), NOW, Around(POOL, LANE_SEEN, old, after))
    assert (KEY("docs", "k"), 11) in end.checks
    assert put_by(end)[KEY("docs", "k")] == msgspec.json.encode({"next": 3, "active": OTHER.hex()})
    assert ACTIVE("docs", "k") not in put_by(end)
    more = put_by(submit(OTHER, spec(ordering_key="k", number=3), LANE_CHECK, old, NOW))
    assert more[KEY("docs", "k")] == msgspec.json.encode({"next": 4, "v": 2})
    assert more[ACTIVE("docs", "k")] == msgspec.json.encode(ID.hex())


def test_a_retry_holds_its_ordering_key() -> None:
    after = Successor(OTHER, spec(ordering_key="k", number=2), 12, LANE_SEEN)
    batch = step(
        held(ordering_key="k", number=1),
        Failed("no"),
        NOW,
        Around(POOL, LANE_SEEN, ROW, after),
    )
    assert {key[0] for key in put_by(batch)} == {STATE, LATER}


def test_the_end_of_a_task_that_waits_behind_its_key_moves_nobody() -> None:
    found = Found(ID, spec(ordering_key="k", number=2), None, Waiting(12))
    batch = step(found, Cancelled(), NOW, Around(POOL, LANE_SEEN))
    assert {key[0] for key in put_by(batch)} == {STATE, DONE}
    assert batch.deletes == [ORDER("docs", "k", 2)]


def test_a_submit_is_one_task_however_often_it_is_sent() -> None:
    batch = submit(ID, spec(dedup_key="once"), LANE_CHECK, None, NOW)
    assert {(TASK(ID), ABSENT), (DEDUP("docs", "once"), ABSENT), (LANE("docs", LANE_ID), LANE_SEEN.revision)} == set(
        batch.checks
    )


def test_a_task_that_is_not_due_is_not_made_ready() -> None:
    keys = put_by(submit(ID, spec(due=NOW + 1), LANE_CHECK, None, NOW))
    assert LATER(NOW + 1, ID) in keys
    assert not [key for key in keys if key[0] is READY]


def test_a_task_behind_another_of_its_ordering_key_waits_in_its_order() -> None:
    keys = put_by(submit(ID, spec(ordering_key="k", number=4), LANE_CHECK, KeySeen(11, KeyRow(4, v=SPLIT_KEYS)), NOW))
    assert ORDER("docs", "k", 4) in keys
    assert not [key for key in keys if key[0] in (READY, LATER)]


@pytest.mark.parametrize("said", ENDS, ids=lambda event: type(event).__name__)
def test_a_finish_is_known_again_by_its_attempt_and_content_only(said: Event) -> None:
    place = Held(LEASE, NONCE, TOKEN)
    state = state_after(step(held(), said, NOW, AROUND))
    assert [event for event in ENDS if is_said_again(state, place, event)] == [said]
    assert not is_said_again(state, place._replace(nonce=OTHER), said)
    assert not is_said_again(None, place, said)


def test_a_finish_with_other_content_is_not_the_same_said_again() -> None:
    said: list[Event] = [
        Completed(b"1"),
        Completed(b"2"),
        Failed("1"),
        Failed("2"),
        Released("a"),
        Released("b"),
        Cancelled("a"),
    ]
    for first in said:
        state = state_after(step(held(), first, NOW, AROUND))
        assert [event for event in said if is_said_again(state, Held(LEASE, NONCE, TOKEN), event)] == [first]


@pytest.mark.parametrize("changes", [{}, {"dedup_key": "once"}], ids=str)
def test_the_end_of_a_first_attempt_is_the_same_by_the_short_way_and_by_the_long(changes: dict[str, Any]) -> None:
    found, event = held(**changes), Completed(b'{"words":3}', "me")
    short, long = (
        step(found, event, NOW, AROUND),
        machine._end(found, TaskState.COMPLETED, "me", "", NOW, AROUND, result=event.result),
    )
    assert (list(short.checks), put_by(short), list(short.deletes)) == (
        list(long.checks),
        put_by(long),
        list(long.deletes),
    )


def test_a_terminal_record_decides_whatever_the_place() -> None:
    ended = State(state="CANCELLED", attempts=0, due=0, rank=0)
    assert state_of(ended, Held(LEASE, NONCE, TOKEN)) == TaskState.CANCELLED
    assert state_of(None, Held(LEASE, NONCE, TOKEN)) == TaskState.ASSIGNED
    assert state_of(None, Ready(1)) == TaskState.PENDING


def test_ended_tasks_are_kept_as_long_as_the_pool_says_and_no_shorter_than_their_dedup_key() -> None:
    pool = Pool(id="docs", keep_completed_sec=10.0, keep_failed_sec=20.0, dedup_window_sec=60.0)
    around = Around(pool, LANE_SEEN)
    assert DONE("docs", "COMPLETED", NOW + 10 * SEC, ID) in put_by(step(held(), Completed(b"1"), NOW, around))
    assert DONE("docs", "CANCELLED", NOW + 20 * SEC, ID) in put_by(step(held(), Cancelled(), NOW, around))
    assert DONE("docs", "COMPLETED", NOW + 59 * SEC, ID) in put_by(
        step(held(dedup_key="once"), Completed(b"1"), NOW, around)
    )


@pytest.mark.parametrize("deadline", [0, NOW + SEC], ids=["the short way", "the long way"])
@pytest.mark.parametrize(
    ("event", "what", "why"),
    [
        (Completed(b"null", "agent"), "completed", ""),
        (Failed("broken", "agent", is_retried=False), "failed", "broken"),
        (Cancelled("agent", "unwanted"), "cancelled", "unwanted"),
    ],
)
def test_the_record_of_an_ended_task_repeats_nothing_and_its_history_is_whole(
    event: Event, what: str, why: str, deadline: int
) -> None:
    batch = step(held(deadline=deadline), event, NOW, AROUND)
    state = state_after(batch)
    last = Attempt(NOW, what, "agent", why, TOKEN, CLAIMED_AT)
    assert (state.history, history_of(state)) == ((), (last,))
    stored = put_by(batch)[STATE(ID)]
    assert stored.count(b"agent") == stored.count(str(NOW).encode()) == stored.count(str(TOKEN).encode()) == 1
    assert b"null" not in stored and (not why or stored.count(why.encode()) == 1)


def test_the_history_of_a_task_that_was_tried_again_and_of_one_that_an_earlier_release_ended_is_whole() -> None:
    first = state_after(step(held(), Failed("once", "one"), NOW, AROUND))
    lines = (Attempt(NOW, "failed", "one", "once", TOKEN, CLAIMED_AT), Attempt(NOW, "completed", "two", "", TOKEN, 5))
    ended = Found(ID, spec(), first, Held(LEASE, NONCE, TOKEN, 5))
    state = state_after(step(ended, Completed(b"1", "two"), NOW, AROUND))
    assert (history_of(first), state.history, history_of(state)) == (lines[:1], lines[:1], lines)
    earlier = State("COMPLETED", 2, 0, 0, token=TOKEN, by="two", history=lines, finished=NOW)
    assert history_of(earlier) == lines
    for rank, began in ((-(2**63), 0), (2**63 - 1, MOMENT_GREATEST)):
        damaged = State("COMPLETED", 1, 0, rank, finished=NOW)
        assert [line.claimed_at for line in history_of(damaged)] == [began]


@pytest.mark.parametrize(
    ("place", "event"),
    [
        (Held(LEASE, NONCE, TOKEN), Completed(b"1", "agent")),
        (Held(LEASE, NONCE, TOKEN), Cancelled("agent")),
        (Held(LEASE, NONCE, TOKEN, NOW), Completed(b"1", "agent")),
        (Held(LEASE, NONCE, TOKEN, NOW), Cancelled("agent")),
        (Held(LEASE, NONCE, TOKEN, NOW + 5), Completed(b"1", "agent")),
        (Held(LEASE, NONCE, TOKEN, NOW + 5), Cancelled("agent")),
        (Ready(3), Cancelled("agent")),
    ],
)
def test_the_history_is_whole_whenever_the_last_attempt_began(place: Held | Ready, event: Event) -> None:
    (line,) = history_of(state_after(step(Found(ID, spec(), None, place), event, NOW, AROUND)))
    began = place.claimed_at if isinstance(place, Held) else 0
    assert (line.at, line.by, line.claimed_at) == (NOW, "agent", began)


def test_a_long_life_with_long_reasons_leaves_room_for_the_result() -> None:
    state: State | None = None
    for _ in range(HISTORY + 10):
        state = state_after(step(held(state, max_attempts=10**6), Failed("\x00" * 10_000), NOW, AROUND))
    assert state is not None
    assert len(state.history) == HISTORY
    assert all(len(one.why) == WHY_LENGTH for one in state.history)
    whole = step(held(state, max_attempts=10**6), Completed(b'"' + b"x" * (RESULT_BYTES - 2) + b'"'), NOW, AROUND)
    assert len(put_by(whole)[STATE(ID)]) <= 1_048_576
