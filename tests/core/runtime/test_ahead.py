"""Claims ahead of the slots: made while handlers are quick, never kept from others for long."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from converge import Agent, MemoryStore, Node, Pool, PoolManager, Task, TaskManager, TaskState
from converge.contracts.store import Store
from converge.machines import pace
from converge.machines.events import HandedBack
from converge.model.place import Found, Held
from converge.model.task import Spec
from converge.runtime.agents.hosted import hosted_of
from converge.runtime.claiming import ahead
from converge.runtime.claiming.feed import Feed
from converge.runtime.claiming.finishing import Finishing
from converge.runtime.claiming.slots import Slots
from converge.services.store.handle import StoreHandle
from converge.testing.fixtures import wait_until

pytestmark = pytest.mark.timeout(60)

SLOTS = 4


class Remote(MemoryStore):
    """A store that passes for another process."""

    is_remote = True

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        yield Remote(core=self._core, bell=self._bell)


class Gated(Agent):
    """Returns at once, or waits until the gate is opened; notes what has begun."""

    concurrency = SLOTS
    gate = anyio.Event()
    begun: list[Any] = []  # noqa: RUF012  # each test begins with an empty one

    async def on_task(self, task: Task) -> str:
        Gated.begun.append(task.inputs.get("n"))
        if task.inputs.get("waits"):
            await Gated.gate.wait()
        return self.id


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine has as much time as it needs: batches always count as quick, and nothing goes back by itself."""
    monkeypatch.setattr("converge.machines.pace.QUICK_SEC", 30.0)
    monkeypatch.setattr("converge.machines.pace.LATE_SEC", 60.0)
    monkeypatch.setattr("converge.machines.pace.DOZE_SEC", 60.0)


@pytest.fixture
async def store() -> Store:
    """A store with the pool; the gate is shut."""
    Gated.gate, Gated.begun = anyio.Event(), []
    found = Remote()
    await PoolManager(found).create_pool(Pool(id="docs"))
    return found


async def submit(tasks: TaskManager, count: int, **inputs: object) -> list[str]:
    """Submit tasks that are numbered."""
    return await tasks.submit_many([Task(pool_id="docs", inputs={"n": n, **inputs}) for n in range(count)])


async def filled(
    node: Node, ordering: Sequence[str | None] = (None,) * SLOTS, *, waits: bool = False
) -> tuple[Feed, list[str], list[str]]:
    """Fill the slots with tasks that wait for the gate, and a batch ahead with others, of these ordering keys; return
    the ids of both.
    """
    (feed,) = node.feeds
    while not feed.ahead.is_on:
        for id_ in await submit(node.tasks, 3 * SLOTS):
            await node.tasks.result(id_, timeout=30)
    running = await submit(node.tasks, SLOTS, waits=True)
    await wait_until(lambda: feed.slots.busy - feed.slots.queued == SLOTS, timeout=30)
    queued = await node.tasks.submit_many(
        [Task(pool_id="docs", inputs={"n": n, "waits": waits}, ordering_key=key) for n, key in enumerate(ordering)]
    )
    await wait_until(lambda: feed.slots.queued == SLOTS, timeout=30, what="a batch was claimed ahead")
    return feed, running, queued


def grow_late(node: Node, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is queued be late soon."""
    monkeypatch.setattr("converge.machines.pace.LATE_SEC", 0.02)
    node.feeds[0].ahead.expect_late()
    node.feeds[0].add(hosted_of(agent), 0)  # it looks again


async def test_one_batch_is_claimed_ahead_and_no_more(store: Store) -> None:
    async with Node(store=store, poll_sec=0.05, grace_sec=0.0) as node:
        await node.spawn(Gated, pool="docs")
        feed, running, queued = await filled(node)
        more = await submit(node.tasks, SLOTS)
        await anyio.sleep(0.2)  # it polls a few times, and takes nothing
        assert feed.slots.busy == 2 * SLOTS
        Gated.gate.set()
        for id_ in (*running, *queued, *more):
            assert (await node.tasks.result(id_, timeout=30)).attempts == 1


async def test_nothing_is_claimed_ahead_of_a_store_in_this_process() -> None:
    Gated.gate, Gated.begun = anyio.Event(), []
    async with Node(poll_sec=0.05, grace_sec=0.0) as node:
        await node.pools.create_pool(Pool(id="docs"))
        await node.spawn(Gated, pool="docs")
        for id_ in await submit(node.tasks, 10 * SLOTS):
            await node.tasks.result(id_, timeout=30)
        await submit(node.tasks, 2 * SLOTS, waits=True)
        (feed,) = node.feeds
        await wait_until(lambda: feed.slots.busy == SLOTS)
        await anyio.sleep(0.2)  # it polls a few times, and takes nothing
        assert feed.slots.busy == SLOTS


async def test_what_waits_too_long_goes_back_as_it_was_and_another_node_is_woken_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        store.reopen() as second,
        Node(store=store, poll_sec=60.0, grace_sec=0.0) as node,
        Node(store=second, poll_sec=60.0, grace_sec=0.0) as other,
    ):
        (agent,) = await node.spawn(Gated, pool="docs")
        _, running, queued = await filled(node)
        (helper,) = await other.spawn(Gated, pool="docs")  # nobody polls within the test: only a wake-up brings it work
        grow_late(node, agent, monkeypatch)
        for id_ in queued:
            task = await node.tasks.result(id_, timeout=30)
            assert (task.result, task.attempts, len(task.history)) == (helper.id, 1, 1), (
                "nothing tells of the first claim"
            )
        assert not (await node.tasks.get(running[0])).history


async def test_the_head_of_an_ordering_key_that_is_handed_back_keeps_its_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Node(store=store, poll_sec=0.05, grace_sec=0.0) as node:
        (agent,) = await node.spawn(Gated, pool="docs")
        feed, _, queued = await filled(node, [*"abcd", *"abcd"])
        grow_late(node, agent, monkeypatch)
        await wait_until(lambda: feed.slots.queued == 0, timeout=30, what="all went back")
        Gated.begun.clear()
        Gated.gate.set()
        for id_ in queued:
            assert (await node.tasks.result(id_, timeout=30)).attempts == 1
        for n in range(SLOTS):
            assert Gated.begun.index(n) < Gated.begun.index(n + SLOTS), "first what was submitted first"


async def test_a_queued_claim_that_is_cancelled_never_begins(store: Store) -> None:
    async with Node(store=store, poll_sec=60.0, grace_sec=0.0) as node:
        await node.spawn(Gated, pool="docs")
        feed, _, queued = await filled(node)
        Gated.begun.clear()
        assert await node.tasks.cancel(queued[1])
        await wait_until(lambda: feed.slots.queued == SLOTS - 1, timeout=30, what="its notice was read")
        Gated.gate.set()
        for id_ in (queued[0], *queued[2:]):
            await node.tasks.result(id_, timeout=30)
        assert sorted(Gated.begun) == [0, 2, 3] and feed.finishing.stale == 0


async def test_queued_claims_of_a_pool_that_is_paused_go_back_with_the_next_take(store: Store) -> None:
    async with Node(store=store, poll_sec=0.05, grace_sec=0.0) as node:
        await node.spawn(Gated, pool="docs")
        feed, running, queued = await filled(node, waits=True)
        await node.pools.set_paused("docs", is_paused=True)
        await node.tasks.cancel(running[0])  # a slot comes free: the feed looks for more

        async def waiting() -> list[Task]:
            tasks = [await node.tasks.get(id_) for id_ in queued]
            return [task for task in tasks if task.state is TaskState.PENDING]

        async def are_back() -> bool:  # all but one, if it got the free slot before the feed had seen the pause
            return len(await waiting()) >= SLOTS - 1

        await wait_until(are_back, timeout=30, what="they went back")
        assert not any(task.history for task in await waiting()) and not feed.slots.queued


async def test_with_one_slow_task_in_a_hundred_hardly_anything_goes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the times that count in earnest, five times as long: a busy machine stands still for 20 ms
    for name in ("QUICK_SEC", "LATE_SEC", "DOZE_SEC", "REST_LEAST_SEC"):
        monkeypatch.setattr(pace, name, 5 * getattr(pace, name))
    monkeypatch.setattr(ahead, "LATE_SEC", pace.LATE_SEC)
    handed_back = 0
    finish = Finishing.finish_slowly

    async def counted(self: Finishing, slow: list[Any]) -> None:
        nonlocal handed_back
        handed_back += sum(type(event) is HandedBack for _, event in slow)
        await finish(self, slow)

    monkeypatch.setattr(Finishing, "finish_slowly", counted)

    class Mixed(Agent):
        concurrency = 100

        async def on_task(self, task: Task) -> None:
            if task.inputs["n"] % 100 == 7:
                await anyio.sleep(1.0)

    async with Node(store=store) as node:
        await node.spawn(Mixed, pool="docs")
        shares: list[float] = []
        while not shares or (min(shares) > 0.01 and len(shares) < 4):  # a machine that stands still adds to it
            handed_back = 0
            ids = [id_ for _ in range(4) for id_ in await submit(node.tasks, 1_000)]
            for id_ in ids:
                await node.tasks.result(id_, timeout=30)
            shares.append(handed_back / len(ids))
    assert min(shares) <= 0.01


async def test_what_is_urgent_begins_before_what_waits_though_the_feed_claims_ahead(store: Store) -> None:
    async with Node(store=store) as node:
        await node.spawn(Gated, pool="docs")
        for _ in range(4):
            await submit(node.tasks, 500)
        await wait_until(lambda: node.feeds[0].ahead.is_on, timeout=30)
        begun = len(Gated.begun)
        urgent = await node.tasks.submit(Task(pool_id="docs", inputs={"n": "urgent"}, priority=1_000))
        await node.tasks.result(urgent, timeout=30)
        if begun < 1_900:  # a node that had nearly done already shows nothing
            # What was here, and what was on its way here, may begin before; the submit itself takes a moment.
            assert Gated.begun.index("urgent") - begun <= 400


def test_claims_that_wait_begin_by_rank() -> None:
    def found(rank: int) -> Found:
        return Found(bytes(16), Spec("docs", "0" * 32, 0, rank, 0), None, Held(bytes(16), bytes(16), 1))

    nobody: Callable[..., Any] = lambda *_: None  # noqa: E731
    slots = Slots(StoreHandle(MemoryStore()), None, nobody, nobody)  # type: ignore[arg-type]  # nothing begins: it has no slot
    slots.give([found(3), found(5)])
    slots.give([found(1), found(4)])
    assert [one.spec.rank for one in slots.waiting(4)] == [5, 4, 3, 1]
    assert [one.spec.rank for one in slots.take_back(2)] == [5, 4]
