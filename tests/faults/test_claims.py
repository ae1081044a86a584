"""F4, and kill -9 at random moments: nothing acknowledged is lost, nothing completes twice."""

from __future__ import annotations

import random
from collections import Counter

import anyio
import pytest

from converge import Task, TaskManager
from converge.testing.fleet import Fleet, all_terminal, until_started

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

KILLS = 30
LEASE_SEC = 2.0


@pytest.mark.parametrize("agents", [1, 10])
async def test_f4_no_task_is_claimed_by_two_processes(fleet: Fleet, tasks: TaskManager, agents: int) -> None:
    """Four processes, 2,000 tasks that are there before the first claim, batches of 1 and of 10."""
    ids = await tasks.submit_many([Task(pool_id=fleet.pool) for _ in range(2_000 if agents > 1 else 400)])
    for _ in range(4):
        fleet.start(agents=agents, lease_sec=10.0)
    await all_terminal(tasks, ids, timeout=120)
    starts = fleet.starts()
    assert sorted(starts) == sorted(ids)
    assert Counter(len(lines) for lines in starts.values()) == {1: len(ids)}
    assert len({line["pid"] for lines in starts.values() for line in lines}) > 1, "one process did all, so the test shows nothing"


async def test_kill_9_at_random_moments_loses_nothing_and_completes_nothing_twice(fleet: Fleet, tasks: TaskManager) -> None:
    """30 kills among three processes under load; the seed is printed. Load outlasts the kills."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    chance = random.Random(seed)
    ids: list[str] = []
    for _ in range(3):
        fleet.start(lease_sec=LEASE_SEC)
    ids += await tasks.submit_many([Task(pool_id=fleet.pool, inputs={"sleep": 0.05}, max_attempts=100) for _ in range(40)])
    await until_started(fleet, 3)
    for _ in range(KILLS):
        ids += await tasks.submit_many([Task(pool_id=fleet.pool, inputs={"sleep": chance.random() * 0.2}, max_attempts=100) for _ in range(8)])
        await anyio.sleep(chance.random() * 0.5)  # the random moment itself
        living = [process for process in fleet.processes if process.poll() is None]
        victim = chance.choice(living)
        victim.kill()
        victim.wait()
        fleet.start(lease_sec=LEASE_SEC)
    ended = await _all_within_the_bound(tasks, ids)
    assert {task.state for task in ended} == {"COMPLETED"}, "an acknowledged task was lost, or failed"
    for task in ended:
        completions = [line for line in task.history if line.what == "completed"]
        assert len(completions) == 1, f"task {task.id} completed {len(completions)} times"
        assert task.result == {"token": task.token} and task.token == completions[0].token, "the result is not of the claim that completed"
        tokens = [line.token for line in task.history]
        assert tokens == sorted(set(tokens)), "tokens did not rise"
    repeated = sum(len(lines) - 1 for lines in fleet.starts().values())
    assert repeated > 0, "no kill hit a process that held a claim, so the test shows nothing"


async def _all_within_the_bound(tasks: TaskManager, ids: list[str]) -> list[Task]:
    """After the last fault everything is terminal within two leases and 5 s."""
    with anyio.fail_after(2 * LEASE_SEC + 5):
        return [await tasks.result(task_id) for task_id in ids]
