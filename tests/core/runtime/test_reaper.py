"""The reaper of a node is there when a task comes due, however seldom it looks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic

import pytest

from converge import Agent, Node, Task, TaskState


class Second(Agent):
    """Fails the first attempt of each task."""

    async def on_task(self, task: Task) -> str:
        if task.attempts == 1 and task.inputs.get("fails"):
            raise RuntimeError("once")
        return "done"


@pytest.fixture(params=["memory", "file"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An embedded store."""
    return "memory:" if request.param == "memory" else f"file:{tmp_path / 'state.db'}"


async def test_a_retry_and_a_task_that_was_put_off_are_ready_in_time_though_nobody_polls(store_url: str) -> None:
    async with Node(store=store_url, poll_sec=60.0) as node:
        await node.spawn(Second, count=2, pool="docs")
        await node.tasks.result(
            await node.tasks.submit(Task(pool_id="docs")), timeout=20
        )  # all sleep from now on, for a minute
        began = monotonic()
        due = datetime.now(UTC) + timedelta(seconds=0.4)
        later = await node.tasks.submit(Task(pool_id="docs", not_before=due))
        fails = await node.tasks.submit(Task(pool_id="docs", inputs={"fails": True}, retry_delay_sec=0.2))
        for task_id in (fails, later):
            assert (await node.tasks.result(task_id, timeout=20)).state == TaskState.COMPLETED
        assert datetime.now(UTC) >= due
        assert monotonic() - began < 30
