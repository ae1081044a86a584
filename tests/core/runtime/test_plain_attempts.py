"""An attempt that uses nothing durable pays nothing for it: no function of steps, waits and output runs for it."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from converge import Agent, Node, Task, TaskState
from converge.runtime import attempts
from converge.services.durable import ledger

COUNT = 50

PLACES = (*attempts.__path__, ledger.__file__)
"""Where `task.step` and the like are written, and what they record."""


class Durable(Agent):
    """Uses a step."""

    async def on_task(self, task: Task) -> Any:
        return await task.step("one", int)


class Plain(Agent):
    """Uses nothing."""

    async def on_task(self, task: Task) -> Any:
        return task.inputs["number"]


class PlainFailing(Agent):
    """Uses nothing, and fails."""

    async def on_task(self, task: Task) -> Any:
        raise ValueError(task.inputs["number"])


class PlainSync(Agent):
    """Uses nothing, in a thread."""

    def on_task(self, task: Task) -> Any:  # both kinds are handlers
        return task.inputs["number"]


async def calls(agent: type[Agent], expected: TaskState) -> Counter[str]:
    """Return which functions of durable tasks run, on the loop's thread, from the submit of tasks to their ends."""
    found = Counter[str]()

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PLACES):
            found[frame.f_code.co_qualname] += 1

    async with Node(store="memory:") as node:
        await node.spawn(agent, pool="p")
        some = [Task(pool_id="p", inputs={"number": number}, max_attempts=1) for number in range(COUNT)]
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            ended = [await node.tasks.result(id_, timeout=60) for id_ in await node.tasks.submit_many(some)]
        finally:
            sys.setprofile(before)
    assert {one.state for one in ended} == {expected}
    return found


@pytest.mark.parametrize(
    ("agent", "expected"),
    [(Plain, TaskState.COMPLETED), (PlainFailing, TaskState.FAILED), (PlainSync, TaskState.COMPLETED)],
)
async def test_nothing_durable_runs_for_an_attempt_that_uses_nothing_durable(
    agent: type[Agent], expected: TaskState
) -> None:
    assert await calls(agent, expected) == Counter()


async def test_what_runs_for_durable_attempts_is_seen() -> None:
    found = await calls(Durable, TaskState.COMPLETED)
    assert found["Attempt.step"] >= COUNT and found["Desk.close"] >= COUNT
