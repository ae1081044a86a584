"""When a process that ended is started again, and when that is no use any more."""

from __future__ import annotations

WELL_SEC = 10.0
"""A process that has run for so long had started well: its end begins a new count."""

LEAST_SEC, GREATEST_SEC = 0.5, 30.0
"""Waits before another start: twice as long after each quick end, less up to a half."""

QUICK_ENDS = 5
"""Quick ends in a row that are a crash loop."""


class Restarts:
    """The starts of one process. Pure: the times are arguments."""

    __slots__ = ("quick_ends",)

    def __init__(self) -> None:
        self.quick_ends = 0

    def ended(self, ran_sec: float, jitter: float) -> float | None:
        """Return how long to wait before the next start (seconds), or None in a crash loop. `jitter`: from 0 to 1."""
        self.quick_ends = self.quick_ends + 1 if ran_sec < WELL_SEC else 0
        if self.quick_ends >= QUICK_ENDS:
            return None
        return float(min(LEAST_SEC * 2 ** max(0, self.quick_ends - 1), GREATEST_SEC) * (0.5 + jitter / 2))
