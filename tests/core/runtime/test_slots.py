"""Slots: what a handler does to itself stays its own trouble."""

from __future__ import annotations

from typing import Any

import anyio

from converge.machines.task import TaskState
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.claiming.slots import ENDED_GREATEST
from converge.runtime.node import Node


class Stray(Agent):
    """Raises what only a cancelled task should see, though nobody has cancelled it."""

    async def on_task(self, task: Task) -> Any:
        """See the class."""
        cancelled = anyio.get_cancelled_exc_class()
        if task.inputs.get("stray"):
            raise cancelled() if cancelled.__name__ != "Cancelled" else RuntimeError("trio lets nobody make one")
        return "done"


class Verbose(Agent):
    """Fails with a very long story, or answers more than fits."""

    async def on_task(self, task: Task) -> Any:
        """See the class."""
        if task.inputs.get("answers"):
            return "x" * 1_100_000
        raise ValueError("x" * 1_100_000)


async def test_a_cancellation_that_a_handler_brings_about_itself_fails_its_task_and_nothing_else() -> None:
    with anyio.fail_after(60):
        async with Node(poll_sec=0.05) as node:
            await node.spawn(Stray, pool="p")
            bad = await node.tasks.submit(Task(pool_id="p", inputs={"stray": True}, max_attempts=1))
            good = await node.tasks.submit(Task(pool_id="p"))
            assert (await node.tasks.result(bad, timeout=30)).state == TaskState.FAILED
            assert (await node.tasks.result(good, timeout=30)).state == TaskState.COMPLETED


async def test_an_error_or_a_result_that_does_not_fit_fails_its_task_and_nothing_else() -> None:
    with anyio.fail_after(60):
        async with Node(poll_sec=0.05) as node:
            await node.spawn(Verbose, pool="p")
            for inputs in ({}, {"answers": True}):
                task_id = await node.tasks.submit(Task(pool_id="p", inputs=inputs, max_attempts=1))
                task = await node.tasks.result(task_id, timeout=30)
                assert task.state == TaskState.FAILED and 0 < len(task.error) < 10_000


class Sleeper(Agent):
    """Sleeps as long as it is told to."""

    concurrency = 10

    async def on_task(self, task: Task) -> None:
        """See the class."""
        await anyio.sleep(task.inputs.get("sec", 0))


async def test_timeouts_of_tasks_that_have_ended_are_forgotten_and_those_of_others_kept() -> None:
    with anyio.fail_after(60):
        async with Node(poll_sec=0.05) as node:
            await node.spawn(Sleeper, pool="p")
            (slow,) = await node.tasks.submit_many(
                [Task(pool_id="p", inputs={"sec": 50}, timeout_sec=2.0, max_attempts=1)]
            )
            for _ in range(3):
                ids = await node.tasks.submit_many([Task(pool_id="p", timeout_sec=3_600) for _ in range(1_000)])
                for id_ in ids:
                    await node.tasks.result(id_, timeout=30)
            (feed,) = node.feeds
            assert len(feed.slots._timeouts) <= ENDED_GREATEST + 2 * 10 + 1
            task = await node.tasks.result(slow, timeout=10)
            assert (task.state, task.error) == (TaskState.FAILED, "timed out after 2 s")
