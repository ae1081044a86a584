"""The longest names of steps, waits and children: what is recorded under them fits into a key of every store."""

from __future__ import annotations

from typing import Any

import pytest

from converge import Agent, MemoryStore, Node, Task, TaskState
from converge.services.durable.limits import NAME_CHARS
from converge.testing import CheckedStore

RAN: list[int] = []


class Naming(Agent):
    """Uses one name for all that has one, again and again."""

    async def on_task(self, task: Task) -> Any:
        name, other = task.inputs["name"], f"{task.inputs['name'][:-1]}!"

        async def within() -> Any:
            return await task.step(name, ran, 3)

        found = [await task.step(name, ran, 1), await task.step(name, ran, 2), await task.step(other, within)]
        await task.sleep(0.001, name)
        child, twin = [await task.spawn(Task(pool_id="p", type="child"), name) for _ in range(2)]
        await task.gather(child, twin)
        await task.wait_for(name, other)
        return [*found, await task.wait_for(name), child.name == name, twin.name == f"{name}#2"]


class Ending(Agent):
    task_types = ("child",)

    async def on_task(self, task: Task) -> Any:
        return None


def ran(number: int) -> int:
    RAN.append(number)
    return number


@pytest.mark.parametrize("letter", ["a", "é", "步", "😀"])
async def test_the_longest_name_in_any_script_is_recorded_once(letter: str) -> None:
    RAN.clear()
    name = letter * NAME_CHARS
    async with Node(store=CheckedStore(MemoryStore()), poll_sec=0.1) as node:
        await node.spawn(Ending, pool="p")
        await node.spawn(Naming, pool="names")
        id_ = await node.tasks.submit(Task(pool_id="names", inputs={"name": name}, max_attempts=1))
        for payload in (4, 5):
            assert await node.tasks.signal(id_, name, payload)
        task = await node.tasks.result(id_, timeout=60)
    assert (task.state, task.result) == (TaskState.COMPLETED, [1, 2, 3, 5, True, True]), task.error
    assert RAN == [1, 2, 3]
