"""The longest signal that is accepted is consumed."""

from __future__ import annotations

import pytest

from converge import Agent, MemoryStore, Node, Task
from converge.errors import ValueTooLarge
from converge.services.durable.limits import NAME_CHARS, STEP_BYTES

NAME = "🦭" * NAME_CHARS
LONGEST = "x" * (STEP_BYTES - 2)  # as JSON it has quotes


class Waits(Agent):
    async def on_task(self, task: Task) -> int:
        return len(await task.wait_for(NAME))


class WaitsForFirst(Agent):
    async def on_task(self, task: Task) -> int:
        return len((await task.wait_for("other", NAME))[1])


class Plain(Agent):
    def on_task(self, task: Task) -> int:
        return len(task.blocking.wait_for(NAME))


@pytest.mark.parametrize("agent", [Waits, WaitsForFirst, Plain])
async def test_the_longest_signal_that_is_accepted_is_consumed(agent: type[Agent]) -> None:
    async with Node(store=MemoryStore()) as node:
        await node.spawn(agent, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p"))
        with pytest.raises(ValueTooLarge):
            await node.tasks.signal(id_, NAME, LONGEST + "x")
        assert await node.tasks.signal(id_, NAME, LONGEST)
        done = await node.tasks.result(id_, timeout=60)
        assert done.result == len(LONGEST), done.error
