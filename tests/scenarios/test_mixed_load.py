"""Everything that happens to tasks at once, while lanes are closed under it and processes die: each task ends, once,
and none is lost.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Store
from converge.errors import LeaseEnded
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.services.tasks.lanes import LaneCloser

SUBMITS = 40
DEATHS = 3


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Embedded stores run on both."""
    return str(request.param)


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An embedded store with the pool `docs`."""
    async with open_store("memory:" if request.param == "memory" else f"file:{tmp_path / 'state.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        yield store


class Moody(Agent):
    """Fails one attempt of five."""

    concurrency = 8
    draw: random.Random

    async def on_task(self, task: Task) -> int:
        if self.draw.random() < 0.2:
            raise RuntimeError("a bad day")
        await anyio.sleep(self.draw.random() * 0.01)
        return int(task.inputs["n"])


class Load:
    """What is going on beside the nodes, drawn from one seed."""

    def __init__(self, store: Store, draw: random.Random) -> None:
        self.store, self.draw = store, draw
        self.ids: list[str] = []
        self.closed = 0

    async def submit(self) -> None:
        """Submit tasks of several kinds, now and then behind a key, and cancel some."""
        draw = self.draw
        async with self.store.reopen() as handle:
            tasks = TaskManager(handle)
            for n in range(SUBMITS):
                self.ids += await tasks.submit_many([self._task(n) for _ in range(draw.randrange(1, 4))])
                if draw.random() < 0.2:
                    await tasks.cancel(draw.choice(self.ids))
                await anyio.sleep(draw.random() * 0.01)

    def _task(self, n: int) -> Task:
        draw = self.draw
        return Task(
            pool_id="docs",
            type=f"type-{draw.randrange(5)}",
            topic=draw.choice(["", "news"]),
            inputs={"n": n},
            priority=draw.randrange(3),
            max_attempts=6,
            retry_delay_sec=0.02,
            ordering_key=draw.choice([None, None, "a", "b"]),
        )

    async def die(self) -> None:
        """Claim, and be heard of no more: one process after the other."""
        for _ in range(DEATHS):
            async with self.store.reopen() as handle:
                opened = StoreHandle.of(handle, lease_settings=LeaseSettings(lease_sec=0.5))  # short: it is to end
                with suppress(LeaseEnded):  # the machine was busy for as long
                    await TaskManager(handle).claim("dying", ["docs"], limit=3)
                if (lease := opened.lease_opened) is not None:
                    lease.abandon()
                await anyio.sleep(0.1)

    async def close_lanes(self) -> None:
        """Close whatever lane is empty, until cancelled."""
        async with self.store.reopen() as handle:
            closer = LaneCloser(StoreHandle.of(handle), idle_sec=0.0)
            while True:
                self.closed += await closer.page()
                await anyio.sleep(0.001)


async def test_each_task_ends_once_whatever_happens_beside_it(store: Store) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201 - shown by pytest where the test fails
    load = Load(store, random.Random(seed))

    class Mine(Moody):
        draw = load.draw

    async with anyio.create_task_group() as beside, store.reopen() as one, store.reopen() as two:
        beside.start_soon(load.close_lanes)
        async with (
            Node(store=one, poll_sec=0.2) as first,
            Node(store=two, poll_sec=0.2) as second,
        ):
            for node in (first, second):
                await node.spawn(Mine, count=2, pool="docs")
            async with anyio.create_task_group() as group:
                group.start_soon(load.submit)
                group.start_soon(load.submit)
                group.start_soon(load.die)
            tasks = TaskManager(store, poll_sec=0.2)
            with anyio.fail_after(60):
                ended = [await tasks.result(task_id) for task_id in load.ids]
        beside.cancel_scope.cancel()
    states = Counter(task.state for task in ended)
    assert set(states) <= {TaskState.COMPLETED, TaskState.CANCELLED, TaskState.FAILED}
    assert [task.id for task in ended if task.state == TaskState.COMPLETED and task.result != task.inputs["n"]] == []
    assert [task.id for task in ended if task.state == TaskState.FAILED and "exhausted" not in task.error] == []
    assert [task.id for task in ended for line in task.history[:-1] if line.what in ("completed", "cancelled")] == []
    assert states[TaskState.COMPLETED] > SUBMITS
    assert load.closed > 0, "no lane was closed under the load"
