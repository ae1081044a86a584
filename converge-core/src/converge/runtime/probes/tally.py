"""Counts of a node's attempts, kept where somebody may ask for them; read from another thread, exact enough."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from converge.ids import id_bytes
from converge.machines.events import Completed, Event, Failed, Released
from converge.machines.task import TaskState, is_last
from converge.model.place import Found
from converge.model.task import Task

BOUNDS_SEC = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3_600.0)
"""Upper bounds of the histograms: Prometheus's own defaults, then longer ones, which are common for agents."""


RETRIED, RELEASED = "retried", "released"
_COMPLETED, _FAILED = TaskState.COMPLETED.value.lower(), TaskState.FAILED.value.lower()

BEGUN_GREATEST = 1_000_000
"""Attempts whose beginning is remembered; an agent may have 1,000 at a time."""


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
        self.outcomes = dict.fromkeys((_COMPLETED, RETRIED, _FAILED, RELEASED), 0)
        """Attempts by what followed: `retried` will be tried again, `failed` has failed for good."""
        self.latencies = Histogram()
        """From when a task could be claimed to its first claim, by the store's clock."""
        self.durations = Histogram()
        """From the beginning of an attempt to when its end was in the store."""


class Tally:
    """Counts attempts as they begin and end, by pool."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._begun: dict[bytes, float] = {}
        self.pools: dict[str, PoolTally] = {}

    def claimed(self, task: Task) -> None:
        """Count an attempt that begins."""
        if len(self._begun) >= BEGUN_GREATEST:
            self._begun.clear()  # nobody runs so many: they are of leases that were lost
        self._begun[id_bytes("task", task.id)] = self._monotonic()
        if not task.history and task.claimed_at is not None and task.submitted_at is not None:
            due = max(task.submitted_at, task.not_before or task.submitted_at)
            self._of(task.pool_id).latencies.add(max(0.0, (task.claimed_at - due).total_seconds()))

    def finished(self, found: Found, event: Event) -> None:
        """Count an attempt that has ended, once the store knows."""
        if (began := self._begun.pop(found.id, None)) is None:
            return  # it went back before its handler began
        pool = self._of(found.spec.pool)
        pool.durations.add(self._monotonic() - began)
        if type(event) is Completed:
            pool.outcomes[_COMPLETED] += 1
        elif type(event) is Failed:
            pool.outcomes[_FAILED if is_last(found, event) else RETRIED] += 1
        elif type(event) is Released:
            pool.outcomes[RELEASED] += 1

    def _of(self, pool_id: str) -> PoolTally:
        pool = self.pools.get(pool_id)
        if pool is None:
            pool = self.pools[pool_id] = PoolTally()
        return pool
