"""A claim, or the block of a node, is cancelled at each step: what was taken goes back, what was returned counts."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import ClassVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState
from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Range, Take, Turned
from converge.services.store.handle import StoreHandle

MOMENTS = 40
"""Steps of the event loop, more than a claim or a finish takes on the store below."""


class Stepping(MemoryStore):
    """Each call waits for a step of the loop before it is carried out, and for one before it is answered."""

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        await checkpoint()
        entries = await super().get(keys)
        await checkpoint()
        return entries

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        await checkpoint()
        pages = await super().scan(ranges)
        await checkpoint()
        return pages

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        await checkpoint()
        outcomes = await super().commit(batches, wake=wake)
        await checkpoint()
        return outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        await checkpoint()
        turned = await super().turn(batches, take, wake=wake)
        await checkpoint()
        return turned


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_claim_cancelled_by_plain_asyncio_at_any_step_holds_nothing(anyio_backend: str) -> None:
    store = Stepping()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=60)
    await tasks.submit_many([Task(pool_id="p", max_attempts=1) for _ in range(3)])
    await tasks.claim("a", ["p"], types=["none"])
    cancelled = 0
    for moment in range(MOMENTS):
        tasks._polling._claims.clear()  # so that it looks as well as takes
        claim = asyncio.ensure_future(tasks.claim("a", ["p"], limit=3))
        for _ in range(moment):
            await asyncio.sleep(0)
        claim.cancel()
        try:
            for task in await claim:
                await tasks.release(task)
        except asyncio.CancelledError:
            cancelled += 1
        await tasks.claim("a", ["p"], types=["none"])
        states = [(task.state, task.attempts) for task in await tasks.list()]
        assert states == [(TaskState.PENDING, 0)] * 3, f"cancelled at step {moment}: {states}"
    assert 3 < cancelled < MOMENTS, "the steps reach from before the claim to after it"
    await StoreHandle.of(store).close()


class Counting(Agent):
    """Returns at once."""

    returned: ClassVar[list[str]] = []

    async def on_task(self, task: Task) -> str:
        """See the class."""
        self.returned.append(task.id)
        return "done"


@pytest.mark.parametrize("ordering_key", [None, "k"])
async def test_a_node_whose_block_is_cancelled_at_any_step_keeps_what_was_returned(ordering_key: str | None) -> None:
    returned: list[int] = []
    for moment in range(0, MOMENTS, 2):
        store = Stepping()
        await PoolManager(store).create_pool(Pool(id="p"))
        tasks = TaskManager(store)
        ids = await tasks.submit_many([Task(pool_id="p", ordering_key=ordering_key, max_attempts=1) for _ in range(3)])
        Counting.returned.clear()
        with anyio.CancelScope() as scope:
            async with Node(store=store, poll_sec=0.05, grace_sec=5.0) as node:
                await node.spawn(Counting, pool="p")
                for _ in range(moment):
                    await checkpoint()
                scope.cancel()
                await checkpoint()
        for task in [await tasks.get(task_id) for task_id in ids]:
            ran = Counting.returned.count(task.id)
            found = (task.state, task.attempts)
            assert found == ((TaskState.COMPLETED, 1) if ran else (TaskState.PENDING, 0)), f"at step {moment}: {found}"
            assert ran < 2
        returned.append(len(Counting.returned))
    assert returned[0] == 0 and max(returned) > 1, "the steps reach from before the first handler to after a finish"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("again", [0, 1, 3, 9])
async def test_a_node_that_plain_asyncio_cancels_at_any_step_keeps_what_was_returned(
    anyio_backend: str, again: int
) -> None:
    """Once, or once more while it stops: as a server does that has lost patience."""

    async def run(store: MemoryStore) -> None:
        async with Node(store=store, poll_sec=0.05, grace_sec=5.0) as node:
            await node.spawn(Counting, pool="p")
            await anyio.sleep_forever()

    for moment in range(4, 2 * MOMENTS, 4):
        store = Stepping()
        await PoolManager(store).create_pool(Pool(id="p"))
        tasks = TaskManager(store)
        ids = await tasks.submit_many([Task(pool_id="p", ordering_key="k", max_attempts=1) for _ in range(3)])
        Counting.returned.clear()
        running = asyncio.ensure_future(run(store))
        for steps in (moment, again):
            for _ in range(steps):
                await asyncio.sleep(0)
            if steps:
                running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        for task in [await tasks.get(task_id) for task_id in ids]:
            ran = Counting.returned.count(task.id)
            found = (task.state, task.attempts)
            assert found == ((TaskState.COMPLETED, 1) if ran else (TaskState.PENDING, 0)), f"at step {moment}: {found}"
