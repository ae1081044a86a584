"""What of a pool is too many goes in order, and nothing of what has to stay."""

from __future__ import annotations

import pytest

from converge.machines.retention import FRESH_SEC, excess, may_go
from converge.machines.task import TaskState
from converge.model.pool import Pool
from converge.model.task import Spec, State

DONE, GONE, BAD = TaskState.COMPLETED, TaskState.CANCELLED, TaskState.FAILED
SEC = 1_000_000


@pytest.mark.parametrize(
    ("pool", "counts", "bytes_each", "goes"),
    [
        (Pool(id="p"), {DONE: 9}, 10.0, {}),
        (Pool(id="p", keep_count=9), {DONE: 9}, 10.0, {}),
        (Pool(id="p", keep_count=5), {DONE: 9, BAD: 2}, 10.0, {DONE: 6}),
        (Pool(id="p", keep_count=5), {DONE: 3, GONE: 3, BAD: 4}, 10.0, {DONE: 3, GONE: 2}),
        (Pool(id="p", keep_count=1), {DONE: 3, BAD: 4}, 10.0, {DONE: 3, BAD: 3}),
        (Pool(id="p", keep_bytes=55), {DONE: 9}, 10.0, {DONE: 4}),
        (Pool(id="p", keep_bytes=55, keep_count=2), {DONE: 9}, 10.0, {DONE: 7}),
        (Pool(id="p", keep_bytes=55, keep_count=8), {DONE: 9}, 10.0, {DONE: 4}),
        (Pool(id="p", keep_bytes=5), {DONE: 9}, 10.0, {DONE: 9}),
        (Pool(id="p", keep_bytes=5), {DONE: 9}, 0.0, {}),
    ],
)
def test_what_is_too_many_goes_completed_first_failed_last(
    pool: Pool, counts: dict[TaskState, int], bytes_each: float, goes: dict[TaskState, int]
) -> None:
    assert excess(pool, counts, bytes_each) == goes


def test_what_has_just_ended_or_has_a_dedup_key_to_remember_stays() -> None:
    pool, fresh = Pool(id="p", keep_count=1, dedup_window_sec=100.0), int(FRESH_SEC * SEC)
    spec, keyed = Spec("p", "0" * 32, 0, 5, 0), Spec("p", "0" * 32, 0, 5, 0, dedup_key="k")
    state = State(DONE.value, 1, 0, 0, finished=1_000)
    assert not may_go(pool, spec, state, 1_000 + fresh - 1)
    assert may_go(pool, spec, state, 1_000 + fresh)
    assert not may_go(pool, keyed, state, 1_000 + fresh)
    assert may_go(pool, keyed, state, keyed.submitted + 100 * SEC)
    assert not may_go(pool, None, state, 10**15) and not may_go(pool, spec, None, 10**15)
