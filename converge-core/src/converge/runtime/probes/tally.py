"""Counts of a node's attempts, kept where somebody may ask for them; read from another thread, exact enough."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from converge.machines.events import Completed, Event, Failed, Released
from converge.machines.task import TaskState, is_given_up
from converge.model.place import Found, Held

BOUNDS_SEC = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0)
"""Upper bounds of the histograms: Prometheus's own defaults, then longer ones, which are common for agents."""


RETRIED, RELEASED, LOST = "retried", "released", "lost"
_COMPLETED, _FAILED = TaskState.COMPLETED.value.lower(), TaskState.FAILED.value.lower()


class Histogram:
    """How often a duration fell between two bounds, the last beyond all; and the sum."""

    __slots__ = ("counts", "sum_sec")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_SEC) + 1)
        self.sum_sec = 0.0

    def add(self, sec: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS_SEC, sec)] += 1
        self.sum_sec += sec


class PoolTally:
    """The outcomes of attempts at a pool's tasks in this node."""

    __slots__ = ("durations", "latencies", "outcomes")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys((_COMPLETED, RETRIED, _FAILED, RELEASED, LOST), 0)
        """Attempts by what followed: `retried` will be tried again, `failed` has failed for good, `lost` counts for
        nothing: the task was cancelled meanwhile, or the lease was lost.
        """
        self.latencies = Histogram()
        """From when a task was due to its first claim, by the store's clock."""
        self.durations = Histogram()
        """From the beginning of an attempt to when its end was in the store."""


class Tally:
    """Counts attempts as they begin and end, by pool."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._begun: dict[bytes, float] = {}
        self.pools: dict[str, PoolTally] = {}

    def claimed(self, found: Found) -> None:
        """Count an attempt that begins."""
        self._begun[found.id] = self._monotonic()
        # A task without a state has never been attempted, nor waited.
        if found.state is None and type(found.place) is Held and found.place.claimed_at:
            latency_sec = (found.place.claimed_at - found.spec.due) / 1_000_000
            self._of(found.spec.pool).latencies.add(max(0.0, latency_sec))

    def finished(self, found: Found, event: Event, now: int) -> None:
        """Count an attempt that has ended, once the store knows."""
        if (began := self._begun.pop(found.id, None)) is None:
            return  # it went back before its handler began
        pool = self._of(found.spec.pool)
        pool.durations.add(self._monotonic() - began)
        if type(event) is Completed:
            pool.outcomes[_COMPLETED] += 1
        elif isinstance(event, Failed | Released) and is_given_up(found, event, now):
            pool.outcomes[_FAILED] += 1
        elif isinstance(event, Failed | Released):
            pool.outcomes[RETRIED if type(event) is Failed else RELEASED] += 1

    def dropped(self, found: Found) -> None:
        """Count an attempt whose end the store does not take."""
        if self._begun.pop(found.id, None) is not None:
            self._of(found.spec.pool).outcomes[LOST] += 1

    def _of(self, pool_id: str) -> PoolTally:
        pool = self.pools.get(pool_id)
        if pool is None:
            pool = self.pools[pool_id] = PoolTally()
        return pool
