"""A call of the store that is carried out and never answered: what it took goes back uncounted, what it finished counts
once.
"""

from __future__ import annotations

import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import preloaded
import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Range, Store
from converge.errors import OutcomeUnknown
from converge.model.keys import HELD
from converge.services.store.handle import StoreHandle
from converge.testing.faults import Fault, FaultPlan, FaultyStore
from converge.testing.fixtures import wait_until
from converge.testing.fleet import expire_leases

pytestmark = pytest.mark.timeout(90)

SCRIPT = Path(__file__).with_name("sweeper.py")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with the pool."""
    async with open_store(f"file:{tmp_path / 'state.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="faults"))
        yield store


class Counting(Agent):
    """Counts how often it is given each task."""

    concurrency = 4
    started: ClassVar[Counter[str]] = Counter()

    async def on_task(self, task: Task) -> dict[str, int]:
        self.started[task.id] += 1
        await anyio.sleep(0.002)
        return {"token": task.token}


async def held(store: Store) -> int:
    """How many claims there are, of anybody."""
    (page,) = await store.scan([Range(HELD(), None, 1_000)])
    return len(page)


async def test_a_take_whose_reply_was_lost_holds_nothing_and_counts_no_attempt(store: Store) -> None:
    """The claimer gets `OutcomeUnknown`; when it is back, nothing is held by anybody, and the next claim is a first
    attempt.
    """
    await TaskManager(store).submit_many([Task(pool_id="faults", max_attempts=1) for _ in range(5)])
    plan = FaultPlan(seed=1, likelihood={})
    async with store.reopen() as handle:
        faulty = FaultyStore(handle, plan)
        tasks = TaskManager(faulty)
        plan.script([Fault.NONE, Fault.LOSE_REPLY])  # the lease is opened; the take is carried out
        with pytest.raises(OutcomeUnknown):
            await tasks.claim("a", ["faults"], limit=3)
        assert ("turn", Fault.LOSE_REPLY) in plan.log, plan.log
        assert await held(store) == 0
        again = await tasks.claim("a", ["faults"], limit=5)
        assert [task.attempts for task in again] == [1] * 5, "an attempt was counted that nobody made"
        for task in again:
            await tasks.complete(task)
        await StoreHandle.of(faulty).close()


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.FAIL_BEFORE, Fault.REPEAT])
async def test_a_node_whose_calls_go_unanswered_completes_each_task_once(store: Store, fault: Fault) -> None:
    """A third of all calls, the renewals' too, for as long as the tasks last."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    plan = FaultPlan(seed=seed, likelihood={fault: 1 / 3, Fault.DELAY: 0.1})
    Counting.started = Counter()
    plan.is_calm = True
    async with (
        store.reopen() as handle,
        Node(store=FaultyStore(handle, plan), lease_sec=20.0, poll_sec=0.05, grace_sec=2.0) as node,
    ):
        await node.spawn(Counting, count=2, pool="faults")
        plan.is_calm = False
        ids = await TaskManager(store).submit_many([Task(pool_id="faults", max_attempts=1) for _ in range(200)])
        watching = TaskManager(store, poll_sec=0.05)
        with anyio.fail_after(60):
            ended = [await watching.result(task_id) for task_id in ids]
        plan.is_calm = True
        assert sum(happened is fault for _, happened in plan.log) > 10, "there were no faults to speak of"
        assert {task.state for task in ended} == {TaskState.COMPLETED}, "an attempt was counted that nobody made"
        for task in ended:
            assert [line.what for line in task.history if line.what != "released"] == ["completed"], task.history
            assert task.result == {"token": task.token}
        assert set(Counting.started.values()) == {1}, "a task ran again though nothing had happened to its process"
        await wait_until(lambda: _is_nothing_held(store), what="nothing is held")


async def _is_nothing_held(store: Store) -> bool:
    return await held(store) == 0


async def test_a_process_killed_between_its_take_and_the_answer_keeps_no_task(store: Store, tmp_path: Path) -> None:
    """Nobody knows of these claims but the store: they come back with the lease, as attempts that have ended."""
    tasks = TaskManager(store, poll_sec=0.3)
    ids = await tasks.submit_many([Task(pool_id="faults") for _ in range(10)])

    def take_and_die() -> int:
        command: list[Any] = [sys.executable, SCRIPT, f"file:{tmp_path / 'state.db'}", "take"]
        return preloaded.run(command, timeout=30, check=False).returncode

    assert await anyio.to_thread.run_sync(take_and_die) == -signal.SIGKILL
    assert await held(store) == len(ids)
    await expire_leases(store)
    back: list[Task] = []
    with anyio.fail_after(20):  # a poll interval, and time for a busy machine
        while len(back) < len(ids):
            back += await tasks.claim("another", ["faults"], limit=10)
            await anyio.sleep(0.05)
    assert {task.id for task in back} == set(ids)
    assert [task.attempts for task in back] == [2] * len(ids)
    for task in back:
        await tasks.complete(task)
