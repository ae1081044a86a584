"""Restarts: quick ends wait longer each time and are a crash loop in the end, a long run begins anew."""

from __future__ import annotations

import pytest

from converge.machines.breaker import GREATEST_SEC, LEAST_SEC, QUICK_ENDS, WELL_SEC, Restarts


def test_quick_ends_wait_twice_as_long_each_time_and_then_are_a_crash_loop() -> None:
    restarts = Restarts()
    waits = [restarts.ended(0.1, 1.0) for _ in range(QUICK_ENDS)]
    assert waits == [LEAST_SEC, 2 * LEAST_SEC, 4 * LEAST_SEC, 8 * LEAST_SEC, None]


def test_a_process_that_ran_well_is_started_soon_and_its_quick_ends_are_forgotten() -> None:
    restarts = Restarts()
    for _ in range(50):
        assert restarts.ended(0.1, 1.0) == LEAST_SEC
        assert restarts.ended(0.1, 1.0) == 2 * LEAST_SEC
        assert restarts.ended(WELL_SEC, 1.0) == LEAST_SEC


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_the_jitter_spreads_starts(jitter: float) -> None:
    assert Restarts().ended(0.1, jitter) == pytest.approx(LEAST_SEC * (0.5 + jitter / 2))
    assert LEAST_SEC < GREATEST_SEC
