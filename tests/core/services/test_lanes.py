"""Lanes that stay empty are closed, and no task is lost by it."""

from __future__ import annotations

import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState
from converge.codec import decode, encode
from converge.contracts.store import Batch, Range, Store
from converge.errors import TooManyLanes
from converge.machines.lane import LANES, Lane, lane_id
from converge.model.keys import LANE
from converge.services.store.handle import StoreHandle
from converge.services.tasks.lanes import LaneCloser, close_lane
from converge.testing.fixtures import wait_until


async def lanes_of(store: Store, pool_id: str) -> set[str]:
    """The types of the lanes that the pool has."""
    (page,) = await store.scan([Range(LANE(pool_id), None, 1_000)])
    return {decode(entry.value, Lane, "lane").type for entry in page}


async def test_a_lane_that_stays_empty_is_closed_and_one_with_a_task_is_not(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit_many([Task(pool_id="docs", type="emptied"), Task(pool_id="docs", type="waits")])
    (task,) = await tasks.claim("a", ["docs"], types=["emptied"])
    await tasks.complete(task)
    closer = LaneCloser(StoreHandle.of(store), idle_sec=0.0)
    assert await closer.page() == 1
    assert await lanes_of(store, "docs") == {"waits"}


async def test_a_lane_is_not_closed_before_it_was_seen_empty_for_its_time(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="docs", type="emptied"))
    (task,) = await tasks.claim("a", ["docs"])
    await tasks.complete(task)
    closer = LaneCloser(StoreHandle.of(store), idle_sec=60.0)
    assert [await closer.page() for _ in range(3)] == [0, 0, 0]
    assert await lanes_of(store, "docs") == {"emptied"}


async def test_a_submit_to_a_lane_that_is_closing_opens_it_again(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="docs", type="x"))
    (task,) = await tasks.claim("a", ["docs"])
    await tasks.complete(task)
    key = LANE("docs", lane_id("docs", "", "x", ()))
    (entry,) = await store.get([key])
    assert entry is not None
    await store.commit(
        [Batch([(key, entry.revision)], [(key, encode(Lane("docs", "", "x", (), True)))])]
    )  # as a process that dies just then leaves it
    (closing,) = await store.get([key])
    assert closing is not None
    task_id = await tasks.submit(Task(pool_id="docs", type="x"))
    assert not await close_lane(StoreHandle.of(store), closing)
    assert [task.id for task in await tasks.claim("a", ["docs"])] == [task_id]


async def test_a_closing_lane_in_which_a_task_was_found_is_opened_again(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="docs", type="x"))
    key = LANE("docs", lane_id("docs", "", "x", ()))
    (entry,) = await store.get([key])
    assert entry is not None
    assert not await close_lane(StoreHandle.of(store), entry)
    (after,) = await store.get([key])
    assert after is not None
    assert not decode(after.value, Lane, "lane").is_closing


async def test_what_waits_for_its_time_is_claimed_though_its_lane_was_closed_meanwhile(store: Store) -> None:
    tasks = TaskManager(store, poll_sec=0.0)
    await tasks.submit(Task(pool_id="docs", retry_delay_sec=0.0))
    (task,) = await tasks.claim("a", ["docs"])
    await tasks.fail(task, "once")
    assert await LaneCloser(StoreHandle.of(store), idle_sec=0.0).page() == 1
    claimed: list[Task] = []

    async def claims_one() -> bool:
        claimed.extend(await tasks.claim("b", ["docs"]))
        return bool(claimed)

    await wait_until(claims_one, what="the retry of a task whose lane is gone")
    assert claimed[0].id == task.id


async def test_what_is_released_or_freed_is_claimed_though_its_lane_was_closed_meanwhile(store: Store) -> None:
    tasks = TaskManager(store)
    first, second = await tasks.submit_many([Task(pool_id="docs", ordering_key="k") for _ in range(2)])
    (task,) = await tasks.claim("a", ["docs"])
    assert await LaneCloser(StoreHandle.of(store), idle_sec=0.0).page() == 1
    await tasks.release(task)
    (task,) = await tasks.claim("b", ["docs"])
    assert task.id == first
    assert await LaneCloser(StoreHandle.of(store), idle_sec=0.0).page() == 1
    await tasks.complete(task)
    assert [task.id for task in await tasks.claim("c", ["docs"])] == [second]


async def test_a_pool_whose_lanes_are_all_in_use_refuses_another_and_takes_it_once_one_is_empty(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit_many([Task(pool_id="docs", type=f"t{number}") for number in range(LANES)])
    with pytest.raises(TooManyLanes):
        await tasks.submit(Task(pool_id="docs", type="one-more"))
    (task,) = await tasks.claim("a", ["docs"], types=["t7"])
    await tasks.complete(task)
    other = TaskManager(store)  # the first one looks for room at most once a second
    task_id = await other.submit(Task(pool_id="docs", type="one-more"))
    assert (await other.get(task_id)).state == TaskState.PENDING
    types = await lanes_of(store, "docs")
    assert "one-more" in types and "t7" not in types


async def test_lanes_of_a_crowded_pool_are_closed_sooner(store: Store) -> None:
    await PoolManager(store).create_pool(Pool(id="few"))
    tasks = TaskManager(store)
    await tasks.submit_many(
        [Task(pool_id="docs", type=f"t{number}") for number in range(100)] + [Task(pool_id="few", type="x")]
    )
    for task in await tasks.claim("a", ["docs", "few"], limit=32) + await tasks.claim("a", ["few"]):
        await tasks.complete(task)
    closer = LaneCloser(StoreHandle.of(store), idle_sec=3_600.0, crowded_idle_sec=0.0)
    for _ in range(12):  # the first round counts, the second closes
        await closer.page()
    assert await lanes_of(store, "few") == {"x"}
    assert len(await lanes_of(store, "docs")) == 100 - 32


async def test_agents_that_sleep_are_woken_for_a_lane_that_was_closed_and_comes_again(store: Store) -> None:
    class Echo(Agent):
        async def on_task(self, task: Task) -> int:
            return int(task.inputs["n"])

    async with Node(store=store, poll_sec=60.0) as node, store.reopen() as other:
        await node.spawn(Echo, pool="docs")
        tasks = TaskManager(other)  # another process's
        await node.tasks.result(await tasks.submit(Task(pool_id="docs", inputs={"n": 1})), timeout=20)
        assert await LaneCloser(StoreHandle.of(other), idle_sec=0.0).page() == 1
        assert await lanes_of(store, "docs") == set()
        task_id = await tasks.submit(Task(pool_id="docs", inputs={"n": 2}))
        assert (await tasks.result(task_id, timeout=20)).result == 2
        await StoreHandle.of(other).close()
