"""Work spreads over idle processes, and a wake-up is not lost to a busy one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import preloaded
import pytest
from anyio import to_thread

from converge import Agent, MemoryStore, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Channel, Committed, Conflict, Take, Turned
from converge.testing.fixtures import wait_until

CHILD = Path(__file__).with_name("spreading.py")
IS_FULL = os.environ.get("FULL_TESTS") == "1"
ROUNDS, LEAST = (20, 19) if IS_FULL else (10, 2)
"""Rounds at most, and in how many of them both must have some of the work. A busy machine often wakes the second too
late; without spreading both have some in one round of ten at most.
"""

TASK_SEC = 0.5
IDLE = 50
"""Idle nodes, each with four slots."""

PLUGINS = {"redis": ["redis"], "postgresql": ["sql"]}


@pytest.fixture(scope="module", params=["file", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that processes share."""
    if request.param == "file":
        return f"file:{tmp_path_factory.mktemp('store') / 'state.db'}"
    return str(request.getfixturevalue("redis_url" if request.param == "redis" else "postgres_url"))


@contextmanager
def process(url: str) -> Iterator[None]:
    """Run a process with four slots, which has been idle for a while."""
    command = [sys.executable, str(CHILD), url, *PLUGINS.get(url.partition(":")[0], [])]
    with preloaded.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            yield
        finally:
            child.terminate()
            child.communicate(timeout=30)


async def submit_many(tasks: TaskManager, wanted: Sequence[Task]) -> list[str]:
    """Submit all at once."""
    return await tasks.submit_many(list(wanted))


async def submit_each(tasks: TaskManager, wanted: Sequence[Task]) -> list[str]:
    """Submit one after another."""
    return [await tasks.submit(one) for one in wanted]


async def are_shared(tasks: TaskManager, submit: Callable[..., AsyncIterator[str]]) -> bool:
    """Return whether more than one worker did some of four tasks, in enough of the rounds."""
    spread = 0
    for _ in range(ROUNDS):
        ids = await submit(tasks, [Task(pool_id="docs", inputs={"sec": TASK_SEC}) for _ in range(4)])  # type: ignore[misc]
        workers = {(await tasks.result(id_, timeout=30)).result for id_ in ids}
        spread += len(workers) > 1
        if spread >= LEAST:
            return True
        await anyio.sleep(0.1)  # both are idle for longer than a doze
    return False


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("submit", [submit_many, submit_each] if IS_FULL else [submit_each])
async def test_two_idle_processes_share_four_tasks(
    url: str, submit: Callable[..., AsyncIterator[str]], anyio_backend: str
) -> None:
    plugins = PLUGINS.get(url.partition(":")[0], [])
    async with open_store(url, plugins=plugins) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        with ExitStack() as stack:
            for _ in range(2):
                await to_thread.run_sync(stack.enter_context, process(url))
            assert await are_shared(TaskManager(store), submit)


class Named(Agent):
    """Says who works."""

    concurrency = 4

    async def on_task(self, task: Task) -> str:
        await anyio.sleep(task.inputs["sec"])
        return self.id


@pytest.mark.parametrize("submit", [submit_many, submit_each])
async def test_two_nodes_of_one_process_share_four_tasks(submit: Callable[..., AsyncIterator[str]]) -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="docs"))
    async with (
        store.reopen() as one,
        store.reopen() as two,
        Node(store=one, poll_sec=5.0) as first,
        Node(store=two, poll_sec=5.0) as second,
    ):
        for node in (first, second):
            await node.spawn(Named, pool="docs")
        await anyio.sleep(0.1)  # they have looked, and doze no longer
        assert await are_shared(TaskManager(store), submit)


class Stuck(Agent):
    """Works until it is cancelled."""

    async def on_task(self, task: Task) -> None:
        await anyio.sleep_forever()


async def test_a_wake_up_that_finds_no_free_slot_is_passed_on() -> None:
    # Nobody polls within a minute, so only wake-ups bring the tasks to the nodes.
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="docs"))
    tasks = TaskManager(store)
    with anyio.fail_after(30):
        async with (
            store.reopen() as one,
            store.reopen() as two,
            Node(store=one, poll_sec=60.0, grace_sec=0.0) as full,
            Node(store=two, poll_sec=60.0, grace_sec=0.0) as free,
        ):
            await full.spawn(Stuck, pool="docs")
            await tasks.submit(Task(pool_id="docs"))
            while not full.feeds[0].slots.busy:  # noqa: ASYNC110  # nobody tells of a claim
                await anyio.sleep(0.01)
            assert full.feeds[0].hears, "the test is of a wake-up that reaches the full node"
            await free.spawn(Named, count=4, pool="docs")
            await anyio.sleep(0.1)  # it has looked, and sleeps
            for _ in range(4):
                id_ = await tasks.submit(Task(pool_id="docs", inputs={"sec": 0.0}))
                await tasks.result(id_, timeout=10)


class Counting(MemoryStore):
    """Counts the wake-ups of lanes that its handles ask for."""

    def __init__(self, first: Counting | None = None) -> None:
        super().__init__(core=first._core, bell=first._bell) if first else super().__init__()
        self.asked: list[str] = first.asked if first else []

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Counting]:
        yield Counting(self)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self.asked += [channel for channel in wake if channel.startswith("lane.")]
        return await super().commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        self.asked += [channel for channel in wake if channel.startswith("lane.")]
        return await super().turn(batches, take, wake=wake)


@pytest.mark.parametrize("how_many", [1, 50, 200])
async def test_fifty_idle_processes_are_woken_at_most_four_times_each(how_many: int) -> None:
    # Nobody polls within a minute, so wake-ups bring all that there is, and there is a slot for each task.
    store = Counting()
    await PoolManager(store).create_pool(Pool(id="docs"))
    async with AsyncExitStack() as stack:
        for _ in range(IDLE):
            handle = await stack.enter_async_context(store.reopen())
            node = await stack.enter_async_context(Node(store=handle, poll_sec=60.0, grace_sec=0.0))
            await node.spawn(Named, pool="docs")
            await wait_until(lambda feed=node.feeds[0]: feed.hears)  # type: ignore[misc]  # default binds the variable
        tasks = TaskManager(store)
        store.asked.clear()
        with anyio.fail_after(60):
            # Long enough that nobody is done, and takes another one, before a slow machine has woken the last.
            ids = await tasks.submit_many([Task(pool_id="docs", inputs={"sec": 4 * TASK_SEC}) for _ in range(how_many)])
            workers = {(await tasks.result(id_)).result for id_ in ids}
        assert len(workers) >= min(how_many, IDLE) // 4
        assert len(store.asked) <= 4 * IDLE
