"""Slots: what a handler does to itself stays its own trouble."""

from __future__ import annotations

from typing import Any

import anyio

from converge.machines.task import TaskState
from converge.model.task import Task
from converge.runtime.agent import Agent
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
    with anyio.fail_after(20):
        async with Node(poll_sec=0.05) as node:
            await node.spawn(Stray, pool="p")
            bad = await node.tasks.submit(Task(pool_id="p", inputs={"stray": True}, max_attempts=1))
            good = await node.tasks.submit(Task(pool_id="p"))
            assert (await node.tasks.result(bad, timeout=5)).state == TaskState.FAILED
            assert (await node.tasks.result(good, timeout=5)).state == TaskState.COMPLETED


async def test_an_error_or_a_result_that_does_not_fit_fails_its_task_and_nothing_else() -> None:
    with anyio.fail_after(20):
        async with Node(poll_sec=0.05) as node:
            await node.spawn(Verbose, pool="p")
            for inputs in ({}, {"answers": True}):
                task_id = await node.tasks.submit(Task(pool_id="p", inputs=inputs, max_attempts=1))
                task = await node.tasks.result(task_id, timeout=5)
                assert task.state == TaskState.FAILED and 0 < len(task.error) < 10_000
