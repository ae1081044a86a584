"""What one agent raises, what it does not know, and what its host's clock says harm neither its process nor the tasks
of others.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest

from converge import Task, TaskManager, TaskState
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, all_terminal, until_started

pytestmark = pytest.mark.timeout(90)

IS_FULL = os.environ.get("FULL_TESTS") == "1"
SKEW = Path(__file__).with_name("skew")

on_file = pytest.mark.parametrize("fleet", ["file"], indirect=True)


@on_file
@pytest.mark.parametrize("agent", ["worker_agents:Troubled"])
async def test_whatever_a_handler_raises_fails_its_task_and_the_agent_goes_on(
    fleet: Fleet, tasks: TaskManager, agent: str
) -> None:
    """One agent, one task at a time: after each failure the same agent works on."""
    process = fleet.start(agents=1)
    for name in (
        "ValueError",
        "MemoryError",
        "AssertionError",
        "StopAsyncIteration",
        "TimeoutError",
        "SystemExit",
        "KeyboardInterrupt",
        "Silly",
        "recurse",
    ):
        inputs = {"recurse": True} if name == "recurse" else {"raise": name}
        bad = await tasks.submit(Task(pool_id=fleet.pool, inputs=inputs, max_attempts=1))
        good = await tasks.submit(Task(pool_id=fleet.pool))
        failed, completed = await tasks.result(bad, timeout=20), await tasks.result(good, timeout=20)
        assert (failed.state, completed.state) == (TaskState.FAILED, TaskState.COMPLETED), name
        assert ("RecursionError" if name == "recurse" else name) in failed.error, failed.error
        assert process.poll() is None, fleet.log_of(process)
    assert len({task.claimed_by for task in [completed, failed]}) == 1


@on_file
@pytest.mark.parametrize("agent", ["worker_agents:Typed"])
async def test_a_type_that_no_agent_knows_is_not_claimed_and_waits_for_one_that_does(
    fleet: Fleet, tasks: TaskManager, agent: str
) -> None:
    """It is passed over at no cost to itself: no attempt, no start, no line of history."""
    process = fleet.start(agents=2)
    unknown = await tasks.submit_many(
        [Task(pool_id=fleet.pool, type=type_, priority=10) for type_ in ("unknown", "", "Known", "known2")]
    )
    known = await tasks.submit_many([Task(pool_id=fleet.pool, type="known") for _ in range(20)])
    await all_terminal(tasks, known, timeout=20)
    await anyio.sleep(1.0)  # some poll intervals
    passed = [await tasks.get(task_id) for task_id in unknown]
    assert [(task.state, task.attempts, tuple(task.history)) for task in passed] == [(TaskState.PENDING, 0, ())] * len(
        unknown
    )
    assert set(fleet.starts()) == set(known)
    claimed = await tasks.claim("one-that-does", [fleet.pool], types=["unknown"])
    assert [(task.id, task.attempts) for task in claimed] == [(unknown[0], 1)]
    await tasks.complete(claimed[0])
    assert process.poll() is None


@pytest.mark.parametrize(
    ("fleet", "skew_sec"),
    [("file", 3_600), ("redis", -3_600), *([("file", -3_600), ("redis", 3_600)] if IS_FULL else [])],
    indirect=["fleet"],
)
async def test_a_host_whose_clock_is_an_hour_off_changes_nothing(
    fleet: Fleet, tasks: TaskManager, skew_sec: int
) -> None:
    """Leases, due times and deadlines run on store time: both processes work, none loses its lease, nothing runs twice,
    nothing too early.
    """
    path = os.pathsep.join([str(SKEW), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": path, "SKEW_SEC": str(skew_sec)}
    if not fleet.url.startswith("file:"):
        # A file is shared by the processes of one host, whose kernel has one clock: the store follows that one when it
        # is set (tests/core/builtin/test_file_clock.py), and never what a process makes of it.
        environment["SKEW_KERNEL"] = "1"
    skewed = fleet.start(agents=2, lease_sec=5.0, environment=environment)
    right = fleet.start(agents=2, lease_sec=5.0)
    for process in (skewed, right):
        await fleet.until_running(process)
    assert abs(hour_of(fleet.log_of(skewed)) - hour_of(fleet.log_of(right))) in (1, 23), (
        "its clock is right, so the test shows nothing"
    )
    now = datetime.now(UTC)
    long = await tasks.submit_many(
        [Task(pool_id=fleet.pool, inputs={"sleep": 7.0}) for _ in range(4)]
    )  # more than a lease
    await until_started(fleet, 4)
    soon = now + timedelta(seconds=2)
    due = Task(
        pool_id=fleet.pool,
        inputs={"sleep": 0.02},
        deadline=now + timedelta(seconds=600),
        max_attempts=1,
        not_before=soon,
    )
    later = await tasks.submit(Task(pool_id=fleet.pool, not_before=now + timedelta(seconds=1_800)))
    short = await tasks.submit_many([due] * 40)
    await all_terminal(tasks, [*long, *short], timeout=60)
    ended = [await tasks.get(task_id) for task_id in [*long, *short]]
    assert [[line.what for line in task.history] for task in ended] == [["completed"]] * len(ended)
    starts = fleet.starts()
    assert {len(lines) for lines in starts.values()} == {1} and later not in starts
    assert {starts[task_id][0]["pid"] for task_id in long} == {skewed.pid, right.pid}, "one of the two did nothing"
    assert min(task.history[0].claimed_at for task in ended[len(long) :]) >= soon.timestamp() * 1_000_000, (
        "a task was claimed before it was due"
    )
    await wait_until(lambda: skewed.poll() is None and right.poll() is None, what="both live")
    lines = (fleet.log_of(skewed) + fleet.log_of(right)).splitlines()
    # A machine that stands still blocks a loop, too.
    assert not [line for line in lines if "lease" in line and "the lease goes on" not in line]


def hour_of(log: str) -> int:
    """The hour that the first line of a log has."""
    return int(log.split(" ", 2)[1][:2])
