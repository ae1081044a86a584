"""When a feed takes, and how much."""

from __future__ import annotations

from converge.machines.pace import DOZE_SEC, PAUSE_SEC, Pace


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
