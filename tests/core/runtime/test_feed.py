"""The feed: when finishes go out."""

from __future__ import annotations

import anyio

from converge import Agent, Node, Pool, Task, TaskState


class Mixed(Agent):
    """Ends at once, or waits until it is cancelled."""

    async def on_task(self, task: Task) -> None:
        if task.inputs["waits"]:
            await anyio.sleep_forever()


async def test_a_result_is_known_at_once_though_other_tasks_of_its_take_go_on_for_ever() -> None:
    # A node polls every minute here, so nothing but the end of the queue can send the one finish.
    async with Node(poll_sec=60.0, grace_sec=0.0) as node:
        await node.pools.create_pool(Pool(id="docs"))
        short, *_ = await node.tasks.submit_many([Task(pool_id="docs", inputs={"waits": number > 0}) for number in range(8)])
        await node.spawn(Mixed, count=8, pool="docs")
        assert (await node.tasks.result(short, timeout=10)).state is TaskState.COMPLETED
