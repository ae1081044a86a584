"""When a feed takes, and how much."""

from __future__ import annotations

from converge.machines.pace import (
    DOZE_SEC,
    LATE_SEC,
    PAUSE_SEC,
    QUICK_BATCHES,
    QUICK_SEC,
    REST_GREATEST_SEC,
    REST_LEAST_SEC,
    Ahead,
    Pace,
)


def risen(pace: Pace, free: int, now: float = 0.0) -> list[int]:
    """Return what a rising feed asks for, one full take after another, each after its pause."""
    asked = []
    while not pace.is_steady:
        asked.append(pace.wanted(free, now))
        pace.left(now)
        pace.came_back(asked[-1], asked[-1], now)
        free -= asked[-1]
        now += PAUSE_SEC
    return asked


def test_a_feed_that_was_idle_asks_for_one_task_then_for_twice_as_many_until_it_is_full() -> None:
    assert risen(Pace(), 100) == [1, 2, 4, 8, 16, 32, 37]


def test_the_only_free_slot_is_filled_at_once() -> None:
    pace = Pace()
    assert pace.wanted(1, 0.0) == 1 and pace.is_steady


def test_a_rising_feed_has_one_take_under_way_and_pauses_between_two() -> None:
    pace = Pace()
    assert pace.wanted(10, 0.0) == 1
    pace.left(1.0)
    assert pace.wanted(9, 1.0) == 0
    pace.came_back(1, 1, 1.0)
    assert pace.wanted(9, 1.0) == 0
    assert pace.wanted(9, 1.0 + 2 * PAUSE_SEC) == 2


def test_on_a_slow_store_the_pause_is_as_long_as_a_few_takes() -> None:
    pace = Pace()
    pace.wanted(10, 0.0)
    pace.left(0.0)
    pace.came_back(1, 1, 0.01)
    assert pace.wanted(9, 0.035) == 0
    assert pace.wanted(9, 0.045) == 2


def test_a_claim_that_ends_ends_the_pause() -> None:
    pace = Pace()
    pace.wanted(10, 0.0)
    pace.left(1.0)
    pace.came_back(1, 1, 1.0)
    pace.claim_ended()
    assert pace.wanted(10, 1.0) == 2


def test_a_take_that_was_not_full_does_not_raise_the_pace() -> None:
    pace = Pace()
    pace.wanted(10, 0.0)
    pace.left(0.0)
    pace.came_back(1, 0, 0.0)
    assert pace.wanted(10, 0.0) == 1


def test_a_steady_feed_asks_for_all_that_is_free_with_several_takes_under_way() -> None:
    pace = Pace()
    risen(pace, 100)
    pace.left(0.0)
    assert pace.wanted(60, 5.0) == 60
    assert pace.wanted(0, 5.0) == 0 and pace.wanted(-3, 5.0) == 0


def test_a_feed_that_found_nothing_for_a_while_begins_small_again() -> None:
    pace = Pace()
    risen(pace, 100)
    pace.found_nothing(5.0)
    pace.found_nothing(5.0 + DOZE_SEC / 2)  # still nothing: since the first time
    assert pace.wanted(60, 5.0 + 2 * DOZE_SEC) == 1


def test_a_feed_that_found_nothing_for_a_moment_goes_on_at_its_pace() -> None:
    pace = Pace()
    risen(pace, 100)
    pace.found_nothing(5.0)
    assert pace.wanted(60, 5.0 + DOZE_SEC / 2) == 60


def quick(ahead: Ahead, count: int, now: float = 0.0) -> None:
    """Let so many batches of one claim end at once."""
    for number in range(count):
        nonce = b"quick %d" % number
        ahead.given(nonce, 1, now)
        assert ahead.has_ended(nonce)
        ahead.batch_ended(nonce, now)


def test_a_batch_is_claimed_ahead_after_three_that_each_ended_soon() -> None:
    ahead = Ahead()
    quick(ahead, 2)
    assert not ahead.is_on
    quick(ahead, 1)
    assert ahead.is_on


def test_a_batch_that_took_longer_breaks_the_row() -> None:
    ahead = Ahead()
    quick(ahead, 2)
    ahead.given(b"1", 2, 0.0)
    assert not ahead.has_ended(b"1") and ahead.has_ended(b"1")
    ahead.batch_ended(b"1", 2 * QUICK_SEC)
    quick(ahead, 1, 1.0)
    assert not ahead.is_on


def test_the_time_of_a_batch_that_waited_for_another_begins_with_its_turn() -> None:
    ahead = Ahead()
    quick(ahead, QUICK_BATCHES)
    for nonce in (b"1", b"2"):
        ahead.given(nonce, 1, 0.0)
    for nonce in (b"1", b"2"):
        assert ahead.has_ended(nonce)
        ahead.batch_ended(nonce, 0.9 * LATE_SEC * int(nonce))
    assert ahead.is_on


def test_nothing_is_claimed_ahead_while_any_claim_takes_longer_than_one_may_wait() -> None:
    ahead = Ahead()
    quick(ahead, QUICK_BATCHES)
    ahead.given(b"1", 1, 0.0)
    quick(ahead, QUICK_BATCHES, 2 * LATE_SEC)
    assert not ahead.is_on


def test_after_a_hand_back_nothing_is_claimed_ahead_for_a_second_then_for_twice_as_long() -> None:
    ahead, now = Ahead(), 0.0
    for rest_sec in (1.0, 2.0, 4.0, 8.0, 16.0, REST_GREATEST_SEC, REST_GREATEST_SEC):
        ahead.went_back(now)
        quick(ahead, QUICK_BATCHES, now + 0.9 * rest_sec)
        assert not ahead.is_on
        now += rest_sec
        quick(ahead, QUICK_BATCHES, now)
        assert ahead.is_on
    ahead.went_back(now + 2 * REST_GREATEST_SEC)
    quick(ahead, QUICK_BATCHES, now + 2 * REST_GREATEST_SEC + REST_LEAST_SEC)
    assert ahead.is_on, "all went well for so long that the next rest is short again"


def test_only_a_steady_feed_asks_for_more_than_is_free() -> None:
    pace = Pace()
    assert pace.wanted(0, 0.0, ahead=10) == 0
    risen(pace, 100)
    assert pace.wanted(0, 5.0, ahead=10) == 10
    pace.found_nothing(5.0)
    assert pace.wanted(0, 5.0 + 2 * DOZE_SEC, ahead=10) == 0
