"""Plain functions in threads, in the middle of other user code: what they return, raise and wait for."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any, ClassVar

import anyio
import pytest

from converge import Agent, Node, Task, TaskState
from converge.testing.fixtures import wait_until

MADE: list[Coroutine[Any, Any, str]] = []


async def fetched() -> str:
    return "fetched"


def interrupted() -> None:
    raise KeyboardInterrupt


class Fetching(Agent):
    """Its step is a plain function that returns a coroutine, as `lambda: client.fetch(url)` does."""

    async def on_task(self, task: Task) -> Any:
        return await task.step("fetch", partial(fetched) if task.inputs["is_partial"] else lambda: fetched())


class Delegating(Agent):
    """Its handler is a plain function that returns a coroutine, as a decorator without `async` makes one."""

    def on_task(self, task: Task) -> Any:
        MADE.append(fetched())
        return MADE[0]


class Interrupted(Agent):
    tools: ClassVar[Any] = {"tool": interrupted}

    async def on_task(self, task: Task) -> Any:
        if task.inputs["is_tool"]:
            return await self.tool("tool")
        return await task.step("step", interrupted)


class Both(Agent):
    """Has a plain handler of tasks beside one of messages."""

    def on_ask(self, state: Any, message: Any) -> tuple[Any, Any]:
        return state, message

    def on_task(self, task: Task) -> Any:
        return task.blocking.wait_for("word")


async def ended(agent: type[Agent], **inputs: Any) -> Task:
    async with Node(store="memory:") as node:
        await node.spawn(agent, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p", inputs=inputs, max_attempts=1))
        return await node.tasks.result(id_, timeout=60)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_coroutine_that_a_plain_function_returns_is_a_value_on_each_event_loop(backend: str) -> None:
    for is_partial in (True, False):
        task = anyio.run(partial(ended, Fetching, is_partial=is_partial), backend=backend)
        assert (task.state, task.result) == (TaskState.COMPLETED, "fetched"), task.error
    task = anyio.run(partial(ended, Delegating), backend=backend)
    MADE.pop().close()  # else it tells that nobody has awaited it
    assert task.error.startswith("InvalidValue: result: a value of type coroutine")


@pytest.mark.parametrize("is_tool", [True, False])
async def test_a_thread_that_raises_what_ctrl_c_raises_fails_its_task_alone(is_tool: bool) -> None:
    task = await ended(Interrupted, is_tool=is_tool)
    assert (task.state, "KeyboardInterrupt" in task.error) == (TaskState.FAILED, True), task.error


async def test_a_plain_handler_beside_one_of_messages_waits_parked() -> None:
    async with Node(store="memory:") as node:
        await node.spawn(Both, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p", max_attempts=1))

        async def waits_or_ended() -> bool:
            return (await node.tasks.get(id_)).state in (TaskState.WAITING, TaskState.FAILED)

        await wait_until(waits_or_ended, timeout=60)
        assert await node.tasks.signal(id_, "word", 5), (await node.tasks.get(id_)).error
        assert (await node.tasks.result(id_, timeout=60)).result == 5
