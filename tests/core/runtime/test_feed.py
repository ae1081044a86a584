"""The feed: when finishes go out, and who hears of work."""

from __future__ import annotations

import logging
from pathlib import Path

import anyio
import pytest

from converge import Agent, Node, Pool, Task, TaskState
from converge.model.place import Found
from converge.runtime.claiming.slots import Slots
from converge.testing.fixtures import wait_until


class Mixed(Agent):
    """Ends at once, or waits until it is cancelled."""

    async def on_task(self, task: Task) -> None:
        if task.inputs["waits"]:
            await anyio.sleep_forever()


async def test_a_result_is_known_at_once_though_other_tasks_of_its_take_go_on_for_ever() -> None:
    # A node polls every minute here, so nothing but the end of the queue can send the one finish.
    async with Node(poll_sec=60.0, grace_sec=0.0) as node:
        await node.pools.create_pool(Pool(id="docs"))
        short, *_ = await node.tasks.submit_many(
            [Task(pool_id="docs", inputs={"waits": number > 0}) for number in range(8)]
        )
        await node.spawn(Mixed, count=8, pool="docs")
        assert (await node.tasks.result(short, timeout=10)).state is TaskState.COMPLETED


async def test_a_node_that_is_full_or_stops_keeps_no_wake_up_from_one_that_is_free(tmp_path: Path) -> None:
    url = f"file:{tmp_path / 'state.db'}"
    with anyio.fail_after(30):
        async with Node(store=url, poll_sec=0.1, grace_sec=0.5) as full, Node(store=url, poll_sec=5.0) as free:
            (agent,) = await full.spawn(Mixed, pool="docs")
            long = await full.tasks.submit(Task(pool_id="docs", inputs={"waits": True}))
            await wait_until(lambda: full.feeds[0].slots.busy == 1)
            await free.spawn(Mixed, pool="docs")
            await wait_until(lambda: not full.feeds[0].hears, what="the full node has polled once")
            await _all_are_quick(free)
            async with anyio.create_task_group() as group:
                group.start_soon(full.stop)
                await wait_until(lambda: full.feeds[0].is_draining)
                await _all_are_quick(free, count=5)
            await wait_until(lambda: free.feeds[0].slots.busy == 1, what="the stopped node's task goes on here")
            assert (await free.tasks.get(long)).attempts == 1 and agent.id
            await free.stop(grace_sec=0.0)


async def _all_are_quick(node: Node, count: int = 8) -> None:
    took = list[float]()
    for _ in range(count):
        began = anyio.current_time()
        await node.tasks.result(await node.tasks.submit(Task(pool_id="docs", inputs={"waits": False})), timeout=10)
        took.append(anyio.current_time() - began)
    # By most of them, since a busy machine stands still now and then.
    assert sorted(took)[count // 2] < 0.7, f"they waited for a poll, of the node or of the store: {took}"


async def test_a_node_that_was_full_hears_again_when_a_slot_is_free(tmp_path: Path) -> None:
    class Gated(Agent):
        gate = anyio.Event()

        async def on_task(self, task: Task) -> None:
            if task.inputs["waits"]:
                await self.gate.wait()

    with anyio.fail_after(30):
        async with Node(store=f"file:{tmp_path / 'state.db'}", poll_sec=0.1) as node:
            await node.spawn(Gated, pool="docs")
            long = await node.tasks.submit(Task(pool_id="docs", inputs={"waits": True}))
            await wait_until(lambda: bool(node.feeds) and node.feeds[0].slots.busy == 1 and not node.feeds[0].hears)
            Gated.gate.set()
            await node.tasks.result(long)
            await wait_until(lambda: node.feeds[0].hears)
            await _all_are_quick(node)


async def test_what_ended_is_told_though_what_its_turn_has_taken_cannot_be_handed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    give, given = Slots.give, list[int]()

    def failing(self: Slots, claims: list[Found]) -> None:
        given.append(len(claims))
        if len(given) == 2:
            raise MemoryError
        give(self, claims)

    class Quick(Agent):
        async def on_task(self, task: Task) -> None:
            """Do nothing."""

    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(Slots, "give", failing)
    async with Node(poll_sec=0.1) as node:
        # The first waits, in the turn that takes the second, for what its end frees.
        tasks = [Task(pool_id="p", ordering_key="k", priority=1), Task(pool_id="p")]
        await node.pools.create_pool(Pool(id="p"))
        ids = await node.tasks.submit_many(tasks)
        await node.spawn(Quick, pool="p")
        for task_id in ids:
            assert (await node.tasks.result(task_id, timeout=20)).state == TaskState.COMPLETED
        assert len(given) > 2, "nothing has failed"
