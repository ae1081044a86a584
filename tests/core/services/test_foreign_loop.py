"""Managers are used from the thread and event loop of their store; another one is told so at once, on every store."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.errors import ForeignLoop


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_another_loop_gets_a_typed_error_and_work_goes_on(kind: str, tmp_path: Path) -> None:
    async with open_store("memory:" if kind == "memory" else f"file:{tmp_path / 's.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        tasks = TaskManager(store)
        await tasks.submit(Task(pool_id="p"))

        async def use() -> None:
            for call in (tasks.submit(Task(pool_id="p")), tasks.claim("a", ["p"]), PoolManager(store).pools()):
                with pytest.raises(ForeignLoop):
                    await call

        await anyio.to_thread.run_sync(asyncio.run, use())
        assert len(await tasks.claim("a", ["p"], limit=5)) == 1


class HandsOn(Agent):
    """Submits from a thread: first the wrong way, then as the error says."""

    def on_task(self, task: Task) -> str:
        """See the class."""
        if not task.inputs:
            return "done"
        try:
            asyncio.run(self.node.tasks.submit(Task(pool_id="p")))
        except ForeignLoop:
            return anyio.from_thread.run(self.node.tasks.submit, Task(pool_id="p"))
        return "nothing was said"


async def test_a_plain_handler_is_told_how_it_submits_and_does() -> None:
    with anyio.fail_after(30):
        async with Node() as node:
            await node.spawn(HandsOn, pool="p")
            task = await node.tasks.result(await node.tasks.submit(Task(pool_id="p", inputs={"next": 1})))
            assert (await node.tasks.result(task.result)).result == "done"
