"""The calls of the README's Python, and what is said of tasks, as written: on a store in memory and in a file."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import anyio
import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState
from converge.contracts.store import Store
from converge.errors import DedupConflict, NoSuchPool, PoolClosed, ResultTimeout, StaleClaim
from converge.ids import id_bytes
from converge.machines.attempt import RETRY_GREATEST_SEC
from converge.model.task import HISTORY
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.services.tasks.surroundings import read_task
from converge.testing.fixtures import wait_until

AGENT = "agent-1"


async def sweep_all(tasks: TaskManager) -> None:
    """Sweep until nothing moves."""
    while await tasks._sweep.page():
        pass


async def test_the_calls_work_as_they_are_written(store: Store) -> None:
    pools, tasks = PoolManager(store), TaskManager(store)
    assert await pools.create_pool(Pool(id="p")) is True
    assert await pools.create_pool({"id": "p", "admission": "open"}) is False
    assert await pools.join_pool(AGENT, "p") is True
    assert await pools.join_pool(AGENT, "p") is False
    task_id = await tasks.submit(Task(pool_id="p", inputs={"text": "..."}, required_capabilities=["count-words"]))
    ids = await tasks.submit_many([Task(pool_id="p"), Task(pool_id="p"), Task(pool_id="p")])
    claimed = await tasks.claim(AGENT, pools=["p"], capabilities=["count-words"], topics=None, types=None, limit=10)
    assert [task.id for task in claimed] == [task_id, *ids]
    assert all(
        task.token > 0 and task.claimed_by == AGENT and task.state == TaskState.ASSIGNED and task.attempts == 1
        for task in claimed
    )
    await tasks.complete(claimed[0], {"words": 3})
    await tasks.fail(claimed[1], "why", retry=True)
    await tasks.release(claimed[2])
    await tasks.report(AGENT, claimed[3].id, {"words": 4})
    task = await tasks.result(task_id, timeout=10)
    assert (task.state, task.result, task.finished_at is not None) == (TaskState.COMPLETED, {"words": 3}, True)
    assert (await tasks.get(ids[2])).result == {"words": 4}
    assert {task.id for task in await tasks.list(state=TaskState.PENDING, pool_id="p", limit=100)} == {ids[0], ids[1]}
    assert len(await tasks.list(pool_id="p", limit=2)) == 2
    assert await tasks.cancel(ids[0]) is True
    assert await tasks.cancel(ids[0]) is False
    with pytest.raises(ResultTimeout) as caught:
        await tasks.result(ids[1], timeout=0.05)
    assert isinstance(caught.value, TimeoutError)


async def test_a_pool_with_a_secret_admits_whoever_knows_it(store: Store) -> None:
    pools = PoolManager(store)
    assert await pools.create_pool({"id": "closed", "admission": "secret"}, secret="open sesame")
    for wrong in (None, "open"):
        with pytest.raises(PoolClosed):
            await pools.join_pool(AGENT, "closed", secret=wrong)
    with pytest.raises(PoolClosed):
        await TaskManager(store).claim(AGENT, ["closed"])
    assert await pools.join_pool(AGENT, "closed", secret="open sesame")
    assert await TaskManager(store).claim(AGENT, ["closed"]) == []
    assert "sesame" not in repr(await pools.get("closed"))


async def test_a_pool_that_is_not_there_is_named_with_the_nearest_by_every_call(store: Store) -> None:
    pools, tasks = PoolManager(store), TaskManager(store)
    calls: Sequence[Callable[[], Awaitable[object]]] = (
        lambda: tasks.submit(Task(pool_id="dosc")),
        lambda: tasks.submit_many([Task(pool_id="dosc")]),
        lambda: tasks.claim(AGENT, ["dosc"]),
        lambda: tasks.list(pool_id="dosc"),
        lambda: pools.join_pool(AGENT, "dosc"),
        lambda: pools.get("dosc"),
        lambda: pools.set_paused("dosc", is_paused=True),
        lambda: pools.members("dosc"),
        lambda: pools.leave_pool(AGENT, "dosc"),
    )
    for call in calls:
        with pytest.raises(NoSuchPool, match='"docs"') as caught:
            await call()
        assert caught.value.nearest == "docs"


async def test_a_priority_is_worth_a_head_start_and_no_more(store: Store) -> None:
    pools, tasks = PoolManager(store), TaskManager(store)
    await pools.create_pool(Pool(id="quick", priority_step_sec=0.2))
    low, high = await tasks.submit_many([Task(pool_id="quick", priority=priority) for priority in (0, 1)])
    began = await store.time()
    await wait_until_time(store, began + 300_000)
    late = await tasks.submit(Task(pool_id="quick", priority=1))
    assert [task.id for task in await tasks.claim(AGENT, ["quick"], limit=3)] == [high, low, late]


async def wait_until_time(store: Store, at: int) -> None:
    """Return when the store's clock shows `at`."""

    async def has_come() -> bool:
        return await store.time() >= at

    await wait_until(has_come, timeout=20, what="the store's time")


async def test_what_is_not_due_is_not_claimed_and_then_is(store: Store, pass_time: Callable[[float], None]) -> None:
    tasks = TaskManager(store)
    due = datetime.now(UTC) + timedelta(seconds=10)
    task_id = await tasks.submit(Task(pool_id="docs", not_before=due))
    await sweep_all(tasks)
    assert await tasks.claim(AGENT, ["docs"]) == []
    pass_time(10)
    await sweep_all(tasks)
    assert [task.id for task in await tasks.claim(AGENT, ["docs"])] == [task_id]


async def test_the_end_of_the_active_task_of_a_key_frees_the_next_however_it_ends(store: Store) -> None:
    tasks = TaskManager(store)
    deadline = datetime.now(UTC) + timedelta(seconds=0.5)
    ids = await tasks.submit_many(
        [Task(pool_id="docs", ordering_key="k", deadline=deadline if at == 3 else None) for at in range(5)]
    )
    (first,) = await tasks.claim(AGENT, ["docs"], limit=5)
    await tasks.fail(first, "no", retry=False)
    (second,) = await tasks.claim(AGENT, ["docs"], limit=5)
    assert second.id == ids[1]
    assert await tasks.cancel(second.id)  # while it is held
    with pytest.raises(StaleClaim):
        await tasks.complete(second, 1)
    assert await tasks.cancel(ids[2])  # while it is ready
    await wait_until_time(store, int(deadline.timestamp() * 1_000_000) + 1)
    await sweep_all(tasks)  # its deadline passed while it was ready
    assert (await tasks.get(ids[3])).state == TaskState.FAILED
    assert [task.id for task in await tasks.claim(AGENT, ["docs"], limit=5)] == [ids[4]]


async def test_a_retry_waits_longer_each_time_at_random_and_holds_its_key(store: Store) -> None:
    tasks = TaskManager(store)
    first, second = await tasks.submit_many(
        [Task(pool_id="docs", ordering_key="k", retry_delay_sec=1_000.0, max_attempts=5) for _ in range(2)]
    )
    (task,) = await tasks.claim(AGENT, ["docs"], limit=2)
    began = await store.time()
    await tasks.fail(task, "once")
    waiting = await tasks.get(first)
    assert (waiting.state, waiting.error) == (TaskState.PENDING, "once")
    assert await tasks.claim(AGENT, ["docs"], limit=2) == []
    assert (await tasks.get(second)).state == TaskState.PENDING
    _, record = await read_task(store, id_bytes("task id", first))
    assert record is not None
    assert began <= record.due <= await store.time() + int(RETRY_GREATEST_SEC * 1_000_000)


async def test_a_dead_letter_is_listed_and_retried_as_a_copy_without_its_dedup_key(store: Store) -> None:
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="docs", dedup_key="k", max_attempts=1, inputs={"n": 1}))
    (task,) = await tasks.claim(AGENT, ["docs"])
    await tasks.fail(task, "broken")
    (dead,) = await tasks.list(state=TaskState.FAILED, pool_id="docs")
    assert (dead.id, dead.error, dead.attempts) == (task_id, "broken", 1)
    copy_id = await tasks.retry(task_id)
    assert await tasks.retry(task_id) == copy_id != task_id
    copy = await tasks.get(copy_id)
    assert (copy.dedup_key, copy.trace["retry_of"], copy.inputs, copy.state) == (
        None,
        task_id,
        {"n": 1},
        TaskState.PENDING,
    )
    assert await tasks.submit(Task(pool_id="docs", dedup_key="k", max_attempts=1, inputs={"n": 1})) == task_id


async def test_a_dedup_key_outlives_a_short_retention_for_its_window_and_is_free_after_it(
    store: Store, pass_time: Callable[[float], None]
) -> None:
    pools, tasks = PoolManager(store), TaskManager(store)
    await pools.create_pool(Pool(id="w", keep_completed_sec=0.0, dedup_window_sec=60.0))
    first = await tasks.submit(Task(pool_id="w", dedup_key="k"))
    (task,) = await tasks.claim(AGENT, ["w"])
    await tasks.complete(task, 1)
    await sweep_all(tasks)
    assert await tasks.submit(Task(pool_id="w", dedup_key="k")) == first
    with pytest.raises(DedupConflict):
        await tasks.submit(Task(pool_id="w", dedup_key="k", inputs={"other": 1}))
    pass_time(60)
    await sweep_all(tasks)
    assert await tasks.submit(Task(pool_id="w", dedup_key="k", inputs={"other": 1})) != first


async def test_a_history_says_who_when_and_why_and_stays_bounded(store: Store) -> None:
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="docs"))
    for at in range(HISTORY + 5):
        (task,) = await tasks.claim(AGENT, ["docs"])
        await tasks.release(task, f"reason {at}")
    history = (await tasks.get(task_id)).history
    assert len(history) == HISTORY
    assert (history[-1].what, history[-1].by, history[-1].why) == ("released", AGENT, f"reason {HISTORY + 4}")
    assert all(a.at <= b.at and a.token < b.token for a, b in pairwise(history))


async def test_another_process_waits_for_a_result_and_is_told(store: Store) -> None:
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="docs"))
    async with store.reopen() as other:
        waiting = TaskManager(other, poll_sec=30.0)
        results: list[Task] = []

        async def wait() -> None:
            results.append(await waiting.result(task_id, timeout=60))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await wait_until(lambda: waiting._results._has_leader, what="the other process to wait")
                (task,) = await tasks.claim(AGENT, ["docs"])
                await tasks.complete(task, 7)
        assert results[0].result == 7
        assert results[0].finished_at is not None
        assert datetime.now(UTC) - results[0].finished_at < timedelta(seconds=20), "it was told by a poll"


async def test_a_worker_that_claims_by_hand_gets_what_a_dead_process_held(
    store: Store, pass_time: Callable[[float], None]
) -> None:
    async with store.reopen() as other:
        dying = StoreHandle.of(other, lease_settings=LeaseSettings(lease_sec=60.0))
        tasks = TaskManager(store, poll_sec=0.1)
        task_id = await tasks.submit(Task(pool_id="docs"))
        assert len(await TaskManager(other).claim(AGENT, ["docs"])) == 1
        (await dying.lease()).abandon()
        pass_time(60)
        claimed: list[Task] = []

        async def is_claimed() -> bool:
            claimed.extend(await tasks.claim("agent-2", ["docs"]))
            return bool(claimed)

        await wait_until(is_claimed, timeout=20, what="the work of the dead process")
        assert (claimed[0].id, claimed[0].attempts) == (task_id, 2)
        assert claimed[0].history[0].what == "lease ended"
        await dying.close()


async def test_a_handler_that_takes_too_long_is_cancelled_and_frees_its_key() -> None:
    class Slow(Agent):
        async def on_task(self, task: Task) -> str:
            if task.inputs["slow"]:
                await anyio.sleep_forever()
            return "done"

    async with Node(store="memory:") as node:
        await node.spawn(Slow, pool="docs")
        slow, quick = await node.tasks.submit_many(
            [
                Task(pool_id="docs", ordering_key="k", inputs={"slow": sec < 1}, timeout_sec=sec, max_attempts=1)
                for sec in (0.2, 60.0)
            ]
        )
        task = await node.tasks.result(slow, timeout=10)
        assert task.state == TaskState.FAILED and "0.2" in task.error
        assert (await node.tasks.result(quick, timeout=10)).result == "done"
