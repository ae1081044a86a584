"""F4, and kill -9 at random moments: nothing acknowledged is lost, nothing completes twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import preloaded
import pytest

from converge import Task, TaskManager
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, all_terminal, until_started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

IS_FULL = os.environ.get("FULL_TESTS") == "1"
KILLS = 15
LEAST_KILLS = KILLS if IS_FULL else 6
"""In a short run the kills end here, once one has hit a process that held a claim."""
PARTS = {"file": 4, "redis": 2} if IS_FULL else {"file": 1, "redis": 1}
LEASE_SEC = 5.0


@pytest.mark.parametrize(
    ("fleet", "agents"),
    [("file", 10), ("redis", 1), *([("file", 1), ("redis", 10)] if IS_FULL else [])],
    indirect=["fleet"],
)
async def test_f4_no_task_is_claimed_by_two_processes(fleet: Fleet, tasks: TaskManager, agents: int) -> None:
    """Four processes, tasks that are there before the first claim, with FULL_TESTS 2,000, batches of 1 and of 10. No
    task ends before each process has begun some.
    """
    gate = fleet.folder / "gate"
    wanted = [
        Task(pool_id=fleet.pool, inputs={"gate": str(gate)})
        for _ in range((2_000 if agents > 1 else 400) if IS_FULL else 200)
    ]
    ids = await tasks.submit_many(wanted)
    for _ in range(4):
        fleet.start(agents=agents, lease_sec=10.0)
    await wait_until(lambda: len(pids(fleet)) == 4, timeout=60, what="each process has begun a task")
    gate.touch()
    await all_terminal(tasks, ids, timeout=120)
    starts = fleet.starts()
    assert sorted(starts) == sorted(ids)
    assert Counter(len(lines) for lines in starts.values()) == {1: len(ids)}


@pytest.mark.parametrize(
    ("fleet", "part"),
    [(place, part) for place, parts in PARTS.items() for part in range(parts)],
    indirect=["fleet"],
)
async def test_kill_9_at_any_moment_loses_nothing_and_completes_nothing_twice(
    fleet: Fleet, tasks: TaskManager, part: int
) -> None:
    """With FULL_TESTS 60 kills on a file and 30 on Redis, 15 at a time: of three processes that work and one that
    submits. Load outlasts the kills.
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"part {part}, seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    for _ in range(3):
        fleet.start(lease_sec=LEASE_SEC)
    submitter = start_submitter(fleet)
    await until_started(fleet, 10)
    kills = 0
    while kills < LEAST_KILLS or (kills < KILLS and not began_again(fleet)):
        await anyio.sleep(chance.random() * 0.5)  # the random moment itself
        if kills % 6 == 5:
            await until_acknowledged(fleet, submitter)
            await anyio.sleep(chance.random() * 0.05)  # the random moment itself
            victim = submitter
        else:
            victim = choose(fleet, submitter, chance)
        victim.kill()
        victim.wait()
        kills += 1
        if victim is submitter:
            submitter = start_submitter(fleet)
        else:
            fleet.start(lease_sec=LEASE_SEC)
    submitter.kill()
    submitter.wait()
    for process in fleet.processes:
        if process.poll() is None:
            await fleet.until_running(process)  # how long Python takes to start is not what is bounded
    acknowledged = [line["task"] for line in fleet.ledger() if line["what"] == "acknowledged"]
    assert len(acknowledged) > kills, "nearly nothing was submitted, so the test shows nothing"
    ended = await _all_within_the_bound(tasks, acknowledged)
    assert {task.state for task in ended} == {"COMPLETED"}, "an acknowledged task was lost, or failed"
    for task in ended:
        completions = [line for line in task.history if line.what == "completed"]
        assert len(completions) == 1, f"task {task.id} completed {len(completions)} times"
        assert task.result == {"token": task.token} and task.token == completions[0].token, (
            "the result is not of the claim that completed"
        )
        tokens = [line.token for line in task.history]
        assert tokens == sorted(set(tokens)), "tokens did not rise"
    repeated = began_again(fleet)
    taken_back = {task.id for task in ended if any(line.what == "lease ended" for line in task.history)}
    assert repeated & set(acknowledged) <= taken_back, "a task ran again though nobody had died with it"
    assert repeated, "no kill hit a process that held a claim, so the test shows nothing"


def began_again(fleet: Fleet) -> set[str]:
    """Return the tasks that were begun more than once."""
    return {task_id for task_id, lines in fleet.starts().items() if len(lines) > 1}


def pids(fleet: Fleet) -> set[int]:
    """Return which processes have begun tasks."""
    return {line["pid"] for lines in fleet.starts().values() for line in lines}


def start_submitter(fleet: Fleet) -> subprocess.Popen[bytes]:
    """Start one more process of the fleet, which submits."""
    command = [sys.executable, str(Path(__file__).with_name("submitter.py")), fleet.url, fleet.network, *fleet.plugins]
    with (fleet.folder / f"log{len(fleet.processes)}.txt").open("wb") as log:
        process = preloaded.start(command, stdout=log, stderr=log, env={**os.environ, "LEDGER": str(fleet.ledger_path)})
    fleet.processes.append(process)
    return process


async def until_acknowledged(fleet: Fleet, submitter: subprocess.Popen[bytes]) -> None:
    """Return when a submit of this process was acknowledged."""
    await wait_until(
        lambda: any(line["pid"] == submitter.pid for line in fleet.ledger()),
        timeout=30,
        what="a submit is acknowledged",
    )


def choose(fleet: Fleet, submitter: subprocess.Popen[bytes], chance: random.Random) -> subprocess.Popen[bytes]:
    """Choose a process that works: mostly one that is past its start, since the start takes long and holds nothing."""
    living = [process for process in fleet.processes if process.poll() is None and process is not submitter]
    running = [process for process in living if ": running " in fleet.log_of(process)]
    return chance.choice(running if running and chance.random() < 0.8 else living)


async def _all_within_the_bound(tasks: TaskManager, ids: list[str]) -> list[Task]:
    """After the last fault everything is terminal within two leases and 5 s; beside other tests the machine is slow."""
    with anyio.fail_after(2 * LEASE_SEC + (5 if IS_FULL else 40)):
        return [await tasks.result(task_id) for task_id in ids]
