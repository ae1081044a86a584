"""F1, F2, F5, F7: work stays with those that live, comes back from those that do not, and ends once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from statistics import median

import anyio
import pytest

from converge import Task, TaskManager, open_store
from converge.contracts.store import Range, Store
from converge.model.keys import EXPIRY
from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, all_terminal, until_started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

IS_FULL = os.environ.get("FULL_TESTS") == "1"


def on(store: str) -> pytest.MarkDecorator:
    """On one store in a short run: whose the lease is makes no difference to a process."""
    return pytest.mark.parametrize("fleet", ["file", "redis"] if IS_FULL else [store], indirect=True)


@on("redis")
async def test_f1_a_long_task_of_a_live_process_starts_once(fleet: Fleet, tasks: TaskManager) -> None:
    """A lease of 5 s, a task of 13 s, three processes."""
    processes = [fleet.start(lease_sec=5.0) for _ in range(3)]
    task_id = await tasks.submit(Task(pool_id=fleet.pool, inputs={"sleep": 13}))
    task = await tasks.result(task_id, timeout=60)
    assert task.state == "COMPLETED"
    assert [line["attempt"] for line in fleet.starts()[task_id]] == [1]
    assert all(process.poll() is None for process in processes)
    held_sec = task.history[-1].at - task.history[-1].claimed_at
    assert held_sec >= 2.5 * 5_000_000, "the task ran for hardly longer than a lease, so it shows no renewal"


@on("file")
async def test_f2_code_that_blocks_the_loop_keeps_its_task(
    fleet: Fleet, tasks: TaskManager, lateness: Callable[[], AbstractAsyncContextManager[list[float]]]
) -> None:
    """The handler blocks the event loop for two leases, then holds the interpreter's lock in bursts for more than
    one.
    """
    lease_sec = 4.0  # short: the block outlasts it twice
    blocking = fleet.start(agents=1, lease_sec=lease_sec)
    task_id = await tasks.submit(Task(pool_id=fleet.pool, inputs={"block": 8, "hold": 5}))
    await until_started(fleet, 1)
    async with (
        open_store(fleet.url, plugins=fleet.plugins, network=fleet.network) as store,
        anyio.create_task_group() as group,
        lateness() as late,
    ):
        seen: list[int] = []
        group.start_soon(_see_expiries, store, seen)
        await wait_until(lambda: len(seen) > 0, what="its lease is seen")
        fleet.start(agents=1)
        task = await tasks.result(task_id, timeout=60)
        group.cancel_scope.cancel()
    assert task.state == "COMPLETED"
    assert len(fleet.starts()[task_id]) == 1, "a process that blocks was taken for dead"
    log = fleet.log_of(blocking)
    assert "blocked" in log and "time.sleep" in log, "the warning does not show the stack that blocks"
    gaps = [(later - earlier) / 1_000_000 for earlier, later in pairwise(seen)]
    assert len(gaps) > 5 and max(gaps) < lease_sec, f"renewals came late: {gaps}"
    assert median(gaps) < lease_sec / 2 + sum(late) / len(gaps), f"renewals came late: {gaps}"


async def _see_expiries(store: Store, seen: list[int]) -> None:
    """Note when the first lease is renewed: each of its expiries is a whole lease later."""
    (page,) = await store.scan([Range(EXPIRY(), None, 1)])
    while True:
        (entry,) = await store.get([page[0].key])
        if entry is not None and (not seen or int(entry.value) > seen[-1]):
            seen.append(int(entry.value))
        await anyio.sleep(0.02)


@on("file")
async def test_f5_a_paused_process_that_wakes_overwrites_nothing(fleet: Fleet, tasks: TaskManager) -> None:
    """SIGSTOP for longer than the lease; another process completes the task meanwhile."""
    gate = fleet.folder / "gate"
    paused = fleet.start(agents=1, lease_sec=3.0)  # short: it is to end
    task_id = await tasks.submit(Task(pool_id=fleet.pool, inputs={"gate": str(gate)}))
    await until_started(fleet, 1)
    stand_still(paused.pid)
    other = fleet.start(agents=1)
    await until_started(fleet, 2)
    gate.touch()
    task = await tasks.result(task_id, timeout=60)
    paused.send_signal(signal.SIGCONT)
    first, second = fleet.starts()[task_id]
    assert (first["pid"], second["pid"]) == (paused.pid, other.pid)
    assert second["token"] > first["token"]
    assert task.result == {"token": second["token"]}
    await wait_until(
        lambda: "lost" in fleet.log_of(paused) or "ended" in fleet.log_of(paused),
        timeout=20,
        what="the paused process says so",
    )
    again = await tasks.get(task_id)
    assert (again.result, again.token) == (task.result, second["token"]), "the first result did not stay"
    assert [line.what for line in again.history] == ["lease ended", "completed"], (
        "the history hides the attempt that was taken back"
    )


@on("redis")
async def test_f7_a_task_that_kills_its_process_becomes_a_dead_letter(fleet: Fleet, tasks: TaskManager) -> None:
    """Three attempts, no more; the good tasks beside it finish."""
    poison = await tasks.submit(Task(pool_id=fleet.pool, inputs={"die": True}, max_attempts=3))
    good = await tasks.submit_many(
        [Task(pool_id=fleet.pool, inputs={"sleep": 0.01}, max_attempts=10) for _ in range(50)]
    )
    async with anyio.create_task_group() as group:
        group.start_soon(_keep_running, fleet)
        await all_terminal(tasks, [poison, *good], timeout=180)
        group.cancel_scope.cancel()
    dead = await tasks.get(poison)
    assert (dead.state, dead.attempts) == ("FAILED", 3)
    assert "exhausted" in dead.error
    assert len(fleet.starts()[poison]) == 3
    assert {(await tasks.get(task_id)).state for task_id in good} == {"COMPLETED"}


async def _keep_running(fleet: Fleet) -> None:
    """What an orchestrator does: start a process for each that has died."""
    running = [fleet.start(lease_sec=1.0)]  # short: it is to end, three times
    while len(fleet.processes) < 12:
        await wait_until(lambda: running[-1].poll() is not None, timeout=90, what="a process dies")
        running.append(fleet.start(lease_sec=1.0))  # short: as above
