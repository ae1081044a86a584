"""Which ended tasks of a pool are removed early, since its `keep_count` or `keep_bytes` is exceeded."""

from __future__ import annotations

import math
from collections.abc import Mapping

from converge.machines.task import TaskState
from converge.model.pool import Pool
from converge.model.task import Spec, State

FRESH_SEC = 10.0
"""A task that has ended is kept so long at least: who waits for its result looks each second."""

FIRST_TO_GO = (TaskState.COMPLETED, TaskState.CANCELLED, TaskState.FAILED)
"""Dead letters are what somebody still has to look at, so they go last."""


def excess(pool: Pool, counts: Mapping[TaskState, int], bytes_each: float) -> dict[TaskState, int]:
    """Return how many of each state are too many, given how many there are and what one weighs.

    Of both limits the narrower one counts. States with nothing to remove are left out.
    """
    limits = [pool.keep_count] if pool.keep_count else []
    if pool.keep_bytes and bytes_each > 0:
        limits.append(math.floor(pool.keep_bytes / bytes_each))
    if not limits:
        return {}
    left, found = sum(counts.values()) - min(limits), dict[TaskState, int]()
    for state in FIRST_TO_GO:
        goes = min(max(left, 0), counts.get(state, 0))
        if goes:
            found[state] = goes
        left -= goes
    return found


def may_go(pool: Pool, spec: Spec | None, state: State | None, now: int) -> bool:
    """Return whether an ended task may go before its time: what cannot be read stays, and so does one whose dedup key
    is to be remembered, or that has just ended.
    """
    if spec is None or state is None or now < state.finished + int(FRESH_SEC * 1_000_000):
        return False
    return spec.dedup_key is None or now >= spec.submitted + int(pool.dedup_window_sec * 1_000_000)
