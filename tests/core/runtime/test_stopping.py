"""A graceful stop: what runs may end, what is left goes back uncounted, and nothing keeps the node longer than it
may.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import anyio
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Channel, Committed, Conflict, Range, Take, Turned
from converge.machines.task import TaskState
from converge.model.keys import AGENT, HELD, JOINED, LEASE, MEMBER
from converge.model.task import Task
from converge.runtime import stopping
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.starting import AT_A_TIME
from converge.runtime.node import Node
from converge.runtime.stopping import LAST_SEC
from converge.services.durable.manager import TaskManager
from converge.services.store import lease
from converge.services.store.opening import open_store
from converge.testing.fixtures import wait_until


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store, embedded."""
    return "memory:" if request.param == "memory" else f"file:{tmp_path}/state.db"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for its store for as long as that takes: what a busy machine leaves undone is not the question."""
    for name in ("RELEASE_SEC", "SETTLE_SEC", "LAST_SEC"):
        monkeypatch.setattr(stopping, name, 30.0)
    monkeypatch.setattr(lease, "CLOSE_SEC", 30.0)


class Waiting(Agent):
    """Works until it is told to end; says what befell it."""

    concurrency = 50
    gate: anyio.Event
    said: list[str]

    async def on_task(self, task: Task) -> str:
        """See the class."""
        self.said.append("began")
        if not task.inputs.get("is_short"):
            await anyio.sleep_forever()
        await self.gate.wait()
        self.said.append("ended")
        return "done"

    async def on_stop(self) -> None:
        """See the class."""
        self.said.append("stopped")


@pytest.fixture
def waiting() -> type[Waiting]:
    """A class of agents of this test's own."""
    return type("Waiting", (Waiting,), {"gate": anyio.Event(), "said": []})


@pytest.mark.usefixtures("patient")
async def test_what_ends_within_the_grace_time_counts_and_the_rest_goes_back_as_if_it_had_not_begun(
    url: str, waiting: type[Waiting]
) -> None:
    with anyio.fail_after(30):
        async with open_store(url) as store:
            node = Node(store=store, poll_sec=0.1, grace_sec=4.0)
            async with node:
                await node.spawn(waiting, pool="p")
                short, long = await node.tasks.submit_many(
                    [Task(pool_id="p", inputs={"is_short": is_short}) for is_short in (True, False)]
                )
                await wait_until(lambda: waiting.said.count("began") == 2)
                waiting.gate.set()
            tasks = TaskManager(store)
            assert (await tasks.get(short)).state == TaskState.COMPLETED
            left = await tasks.get(long)
            assert (left.state, left.attempts) == (TaskState.PENDING, 0)
            (again,) = await tasks.claim("other", pools=["p"], limit=10)
            assert (again.id, again.attempts) == (long, 1)
            await tasks.release(again)
    assert waiting.said == ["began", "began", "ended", "stopped"], "on_stop comes after the last handler"


@pytest.mark.usefixtures("patient")
async def test_nothing_of_the_node_is_left_in_the_store(url: str, waiting: type[Waiting]) -> None:
    with anyio.fail_after(30):
        async with open_store(url) as store:
            async with Node(store=store, poll_sec=0.1, grace_sec=0.1) as node:
                await node.spawn(waiting, count=5, pool="p")
                await node.tasks.submit_many([Task(pool_id="p") for _ in range(20)])
                await wait_until(lambda: len(waiting.said) == 20)
            found = await store.scan([Range(family(), None, 10) for family in (AGENT, HELD, JOINED, LEASE, MEMBER)])
    assert [list(page) for page in found] == [[]] * 5


class Counted(MemoryStore):
    """Counts the calls that write, and what they write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self._count(batches)
        return await super().commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        self._count(batches)
        return await super().turn(batches, take, wake=wake)

    def _count(self, batches: Sequence[Batch]) -> None:
        held = sum(any(key[0] is HELD for key in batch.deletes) for batch in batches)
        if held:
            self.calls["calls"] += 1
            self.calls["released"] += held


@pytest.mark.usefixtures("patient")
async def test_claims_go_back_in_batches_not_one_by_one(waiting: type[Waiting]) -> None:
    store = Counted()
    async with Node(store=store, poll_sec=0.1, grace_sec=0.1) as node:
        await node.spawn(waiting, count=10, pool="p")
        await node.tasks.submit_many([Task(pool_id="p") for _ in range(700)])
        await wait_until(lambda: len(waiting.said) == 500)
        store.calls.clear()
    assert store.calls["released"] >= 500
    assert store.calls["calls"] <= 10


async def test_on_stop_of_many_agents_runs_together_and_one_that_raises_stops_no_other(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    begun, stopped, all_begun = list[str](), list[str](), anyio.Event()

    class Slow(Agent):
        async def on_stop(self) -> None:
            begun.append(self.id)
            if len(begun) == AT_A_TIME:
                all_begun.set()
            await all_begun.wait()
            stopped.append(self.id)
            if len(stopped) == 3:
                raise ValueError("it cannot stop")

    async with Node(store=url, grace_sec=30.0) as node:
        agents = await node.spawn(Slow, count=AT_A_TIME)
    assert sorted(stopped) == sorted(agent.id for agent in agents)


async def test_a_plain_handler_that_does_not_return_is_left_behind_with_its_thread(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    begun, end, ended = threading.Event(), threading.Event(), threading.Event()

    class Stuck(Agent):
        def on_task(self, task: Task) -> None:
            begun.set()
            end.wait(60)
            ended.set()

    try:
        async with open_store(url) as store:
            async with Node(store=store, poll_sec=0.1, grace_sec=0.2) as node:
                await node.spawn(Stuck, pool="p")
                task_id = await node.tasks.submit(Task(pool_id="p"))
                await wait_until(begun.is_set)
                began = time.monotonic()
            assert time.monotonic() - began < 20 and not ended.is_set()
            assert (await TaskManager(store).get(task_id)).attempts == 0
    finally:
        end.set()


async def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_node(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    begun = anyio.Event()

    class Stubborn(Agent):
        async def on_task(self, task: Task) -> str:
            begun.set()
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                return "it ends all the same"
            raise AssertionError("nobody wakes it")

    with anyio.fail_after(30):
        async with Node(store=url, poll_sec=0.1, grace_sec=0.1) as node:
            await node.spawn(Stubborn, pool="p")
            await node.tasks.submit(Task(pool_id="p"))
            await begun.wait()


async def test_a_second_stop_returns_at_once_and_a_stop_may_name_its_own_grace(waiting: type[Waiting]) -> None:
    async with Node(store="memory:", grace_sec=60.0) as node:
        await node.spawn(waiting, pool="p")
        await node.tasks.submit(Task(pool_id="p"))
        await wait_until(lambda: len(waiting.said) == 1)
        with anyio.fail_after(30):
            await node.stop(grace_sec=0.0)
            await node.stop()
    assert waiting.said == ["began", "stopped"]


@pytest.mark.usefixtures("patient")
async def test_a_cancelled_block_stops_as_cleanly_as_one_that_ends(url: str, waiting: type[Waiting]) -> None:
    async with open_store(url) as store:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                async with Node(store=store, poll_sec=0.1, grace_sec=0.1) as node:
                    await node.spawn(waiting, pool="p")
                    await node.tasks.submit(Task(pool_id="p"))
                    await anyio.sleep_forever()

            group.start_soon(run)
            await wait_until(lambda: len(waiting.said) == 1)
            group.cancel_scope.cancel()
        (task,) = await TaskManager(store).list(pool_id="p")
        assert (task.state, task.attempts) == (TaskState.PENDING, 0)
    assert waiting.said == ["began", "stopped"]


class Slow(MemoryStore):
    """Takes its time for each write once it is told to, as a server does whose machine is busy."""

    is_immediate = False
    pause_sec = 0.0

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        await anyio.sleep(self.pause_sec)  # the time that it takes is what the test is about
        return await super().turn(batches, take, wake=wake)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return (await self.turn(batches, None, wake=wake)).outcomes


async def test_a_store_that_was_given_may_take_its_time_again_when_the_node_is_left(waiting: type[Waiting]) -> None:
    store = Slow()
    async with Node(store=store) as node:
        await node.spawn(waiting, pool="p")
    store.pause_sec = 2 * LAST_SEC
    task_id = await TaskManager(store).submit(Task(pool_id="p"))
    assert (await TaskManager(store).get(task_id)).state == TaskState.PENDING


async def test_agents_start_together(url: str) -> None:
    begun, all_begun = list[str](), anyio.Event()

    class Starting(Agent):
        async def on_start(self) -> None:
            begun.append(self.id)
            if len(begun) == AT_A_TIME:
                all_begun.set()
            await all_begun.wait()

    async with Node(store=url) as node:
        with anyio.fail_after(30):
            assert len(await node.spawn(Starting, count=AT_A_TIME)) == AT_A_TIME


async def test_what_on_start_raises_is_what_spawn_raises() -> None:
    class Failing(Agent):
        async def on_start(self) -> None:
            await anyio.sleep(0.1)
            raise ValueError("it cannot start")

    async with Node() as node:
        with pytest.raises(ValueError, match="it cannot start"):
            await node.spawn(Failing, count=5)
