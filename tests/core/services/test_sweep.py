"""Sweeps go past what nobody can read, and past what is held."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic

import anyio
import pytest

from converge.builtin.memory import MemoryStore
from converge.codec import encode
from converge.contracts.store import Batch, Committed, Conflict, Entry, Key, Range, Store
from converge.errors import NoSuchTask, TornRecord
from converge.ids import id_bytes
from converge.machines.lane import lane_id
from converge.machines.task import TaskState
from converge.model.keys import DEAD, DONE, EXPIRY, LATER, LEASE, POOL, READY, TASK, TORN
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.store.handle import StoreHandle
from converge.services.tasks.retention import Retention
from converge.services.tasks.sweep import SWEPT_TOGETHER, WRITTEN_TOGETHER, YIELD_SEC, Sweep
from converge.testing._store.base import Inheriting


async def test_a_record_that_nobody_can_read_keeps_no_other_task_from_its_time() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=0.0)
    due = datetime.now(UTC) + timedelta(seconds=0.1)
    torn, whole = await tasks.submit_many([Task(pool_id="p", not_before=due) for _ in range(2)])
    await store.commit([Batch((), ((TASK(bytes.fromhex(torn.replace("-", ""))), b'{"no": "task"}'),))])
    claimed: list[str] = []
    with anyio.fail_after(30):
        while not claimed:
            await anyio.sleep(0.02)
            claimed = [task.id for task in await tasks.claim("agent", ["p"], limit=10)]
    assert claimed == [whole]
    await tasks._handle.close()


async def test_a_page_of_held_tasks_past_their_deadline_hides_no_waiting_one_from_the_sweep() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=3_600.0)
    deadline = datetime.now(UTC) + timedelta(hours=1)
    await tasks.submit_many([Task(pool_id="p", deadline=deadline) for _ in range(SWEPT_TOGETHER)])
    assert len(await tasks.claim("agent", ["p"], limit=SWEPT_TOGETHER)) == SWEPT_TOGETHER
    waiting = await tasks.submit(
        Task(pool_id="p", deadline=deadline + timedelta(microseconds=1), required_capabilities=["nobody-has-it"])
    )
    store._core._offset += 3_600_000_000_000  # an hour of the store's clock
    await tasks._sweep.fail_late()
    assert (await tasks.get(waiting)).state == TaskState.FAILED
    await tasks._handle.close()


async def test_retention_reaches_every_pool_and_goes_past_what_nobody_can_read(store: Store) -> None:
    pools, tasks = PoolManager(store), TaskManager(store)
    batches = [Batch([], [(POOL(f"a{number:04}"), encode(Pool(id=f"a{number:04}")))]) for number in range(1_100)]
    await store.commit(batches[:1_000])
    await store.commit(batches[1_000:])
    await pools.create_pool(Pool(id="last", keep_completed_sec=0.0, dedup_window_sec=0.0))
    torn, whole = await tasks.submit_many([Task(pool_id="last") for _ in range(2)])
    for task in await tasks.claim("agent", ["last"], limit=2):
        await tasks.complete(task)
    await store.commit([Batch((), ((TASK(id_bytes("task id", torn)), b'{"no": "task"}'),))])
    assert await tasks._sweep.remove_old() == 1
    with pytest.raises(NoSuchTask):
        await tasks.get(whole)
    with pytest.raises(TornRecord):
        await tasks.get(torn)


async def test_a_lease_whose_time_nobody_can_read_gives_its_work_back(store: Store) -> None:
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="docs"))
    async with store.reopen() as other:
        dying = StoreHandle.of(other)
        assert len(await TaskManager(other).claim("agent", ["docs"])) == 1
        lease = await dying.lease()
        lease.abandon()
        await store.commit([Batch((), ((EXPIRY(lease.id), b"soon"),))])
        while await tasks._sweep.page():
            pass
        assert [task.id for task in await tasks.claim("agent", ["docs"])] == [task_id]
        await dying.close()


async def dead_lease_with(store: Store, other: Store, count: int) -> None:
    """Let another process claim `count` tasks, and die."""
    await TaskManager(store).submit_many([Task(pool_id="docs") for _ in range(count)])
    claimed = 0
    while claimed < count:
        claimed += len(await TaskManager(other).claim("agent", ["docs"], limit=1_000))
    lease = await StoreHandle.of(other).lease()
    lease.abandon()
    (expiry,) = await store.get([EXPIRY(lease.id)])
    assert expiry is not None
    await store.commit(
        [Batch([(expiry.key, expiry.revision)], [(DEAD(lease.id), b"")], [LEASE(lease.id), EXPIRY(lease.id)])]
    )


async def test_the_work_of_a_dead_process_goes_back_in_few_calls(store: Store) -> None:
    async with store.reopen() as other, store.reopen() as third:
        await dead_lease_with(store, other, 1_000)
        counted = Counted(third)
        sweep = Sweep(StoreHandle(counted))
        moved = 0
        while page := await sweep.paced_page():
            moved += page
        assert moved >= 1_000
        pages = 1_000 // SWEPT_TOGETHER
        assert counted.calls <= (13 + SWEPT_TOGETHER // WRITTEN_TOGETHER) * pages, (
            f"{counted.calls} calls for {pages} pages"
        )
        (count,) = await store.count([READY(lane_id("docs", "", "", ()))])
        assert count == 1_000
        await StoreHandle.of(other).close()


async def test_sweeps_of_several_processes_do_little_of_the_work_twice(store: Store) -> None:
    async with store.reopen() as other, store.reopen() as second, store.reopen() as third:
        await dead_lease_with(store, other, 2_000)
        counted = [Counted(handle) for handle in (store, second, third)]
        sweeps = [Sweep(StoreHandle(handle)) for handle in counted]
        ready = [READY(lane_id("docs", "", "", ()))]

        async def sweep_until_all_is_back(sweep: Sweep) -> None:
            while (await store.count(ready))[0] < 2_000:
                if not await sweep.paced_page():
                    await anyio.sleep(0.01)

        began = monotonic()
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for sweep in sweeps:
                    group.start_soon(sweep_until_all_is_back, sweep)
        conflicts = sum(handle.conflicts for handle in counted)
        # Two of the three lose a page at first, and another one each time that they have waited.
        pages = 2 * (1 + (monotonic() - began) // (YIELD_SEC / 2))
        assert conflicts <= pages * SWEPT_TOGETHER, (
            f"{conflicts} of 2,000 tasks were put back by another when a process came to write them"
        )
        await StoreHandle.of(other).close()
        for handle in counted:
            await StoreHandle.of(handle).close()


async def test_an_idle_store_costs_a_sweep_two_calls_as_a_rule(store: Store) -> None:
    counted = Counted(store)
    sweep = Sweep(StoreHandle(counted))
    await sweep.paced_page()
    began = counted.calls
    for _ in range(10):
        assert await sweep.paced_page() == 0
    assert counted.calls - began == 20


async def test_a_whole_page_of_due_tasks_that_nobody_can_read_is_set_aside_and_keeps_no_other_from_its_time(
    store: Store, pass_time: Callable[[float], None]
) -> None:
    tasks = TaskManager(store)
    due = datetime.now(UTC) + timedelta(seconds=60)
    torn = await tasks.submit_many([Task(pool_id="docs", not_before=due) for _ in range(SWEPT_TOGETHER)])
    await store.commit([Batch((), ((TASK(id_bytes("task id", task_id)), b'{"no": "task"}'),)) for task_id in torn])
    whole = await tasks.submit(Task(pool_id="docs", not_before=due + timedelta(milliseconds=1)))
    pass_time(61)
    assert await tasks._sweep.page() == SWEPT_TOGETHER
    assert await tasks._sweep.page() == 1
    assert [task.id for task in await tasks.claim("agent", ["docs"], limit=10)] == [whole]
    assert await store.count([TORN(), LATER()]) == [SWEPT_TOGETHER, 0]


async def test_what_is_held_past_its_deadline_hides_no_later_deadline(
    store: Store, monkeypatch: pytest.MonkeyPatch, pass_time: Callable[[float], None]
) -> None:
    """A held task keeps its deadline until its attempt ends, and many may fill all the pages that one call looks at."""
    monkeypatch.setattr("converge.services.tasks.sweep.SWEPT_TOGETHER", 2)
    tasks = TaskManager(store, poll_sec=100)
    soon = datetime.now(UTC) + timedelta(seconds=6)  # less than a lease
    await tasks.submit_many([Task(pool_id="docs", type="run", deadline=soon) for _ in range(50)])
    held = await tasks.claim("agent", ["docs"], types=["run"], limit=50)
    late = await tasks.submit(Task(pool_id="docs", type="wait", deadline=soon + timedelta(milliseconds=10)))
    assert len(held) == 50
    pass_time(6.1)
    sweep = Sweep(StoreHandle.of(store))
    for _ in range(4):
        await sweep.page()
    assert (await tasks.get(late)).state == TaskState.FAILED
    assert await sweep.page() == 0


async def test_late_tasks_of_one_ordering_key_fail_in_few_sweeps(
    store: Store, pass_time: Callable[[float], None]
) -> None:
    tasks = TaskManager(store)
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    ids = await tasks.submit_many([Task(pool_id="docs", ordering_key="k", deadline=deadline) for _ in range(20)])
    pass_time(61)
    assert (
        await tasks._sweep.fail_late() + await tasks._sweep.fail_late() == 20
    )  # the end of the first one moves the second
    assert {(await tasks.get(task_id)).state for task_id in ids} == {TaskState.FAILED}
    assert await tasks.list(state=TaskState.PENDING, pool_id="docs") == ()


class Counted(Inheriting):
    """Another process's store that counts its calls, and the conflicts that they end in."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.calls = self.conflicts = 0

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self.calls += 1
        return await super().get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        self.calls += 1
        return await super().scan(ranges)

    async def time(self) -> int:
        self.calls += 1
        return await super().time()

    async def commit(self, batches: Sequence[Batch], *, wake: Collection[str] = ()) -> Sequence[Committed | Conflict]:
        self.calls += 1
        outcomes = await super().commit(batches, wake=wake)
        self.conflicts += sum(isinstance(outcome, Conflict) for outcome in outcomes)
        return outcomes


async def test_of_many_processes_about_as_many_look_at_all_leases_as_of_few() -> None:
    store = MemoryStore()
    until = str(await store.time() + 3_600_000_000).encode()
    await store.commit([Batch((), [(EXPIRY(number.to_bytes(16, "big")), until) for number in range(640)])])
    looks = 0

    class Looked(Counted):
        async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
            nonlocal looks
            looks += any(each.prefix == EXPIRY() for each in ranges)
            return await super().scan(ranges)

    sweep = Sweep(StoreHandle(Looked(store)))
    for _ in range(1_000):
        assert await sweep.paced_page() == 0
    assert 50 < looks < 200, f"{looks} of 1,000 pages looked at 640 leases"


async def test_paced_pages_reach_the_old_tasks_of_many_pools(store: Store) -> None:
    pools, tasks = PoolManager(store), TaskManager(store, poll_sec=3_600.0)
    names = [f"many-{number:02}" for number in range(25)]
    for name in names:
        await pools.create_pool(Pool(id=name, keep_completed_sec=0.0, dedup_window_sec=0.0))
    await tasks.submit_many([Task(pool_id=name) for name in names])
    for task in [each for name in names for each in await tasks.claim("agent", [name])]:
        await tasks.complete(task)
    sweep = Sweep(StoreHandle(store))
    for _ in range(6):  # three looks at ten pools each, and some that find nothing
        await sweep.paced_page()
    assert [name for name in names if await tasks.list(pool_id=name)] == []


async def test_two_processes_remove_together_no_more_than_is_too_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge.machines.retention.FRESH_SEC", 0.0)
    monkeypatch.setattr("converge.services.tasks.retention.REMOVED_TOGETHER", 7)
    await PoolManager(store).create_pool(Pool(id="small", keep_count=20))
    tasks = TaskManager(store)
    ids = await tasks.submit_many([Task(pool_id="small") for _ in range(60)])
    for task in await tasks.claim("agent", ["small"], limit=60):
        await tasks.complete(task)
    async with store.reopen() as other:
        processes = [Retention(StoreHandle.of(store)), Retention(StoreHandle.of(other))]
        for turn in range(40):
            await processes[turn % 2].remove_old()
    assert await store.count([DONE("small", TaskState.COMPLETED.value)]) == [20]
    left = await store.get([TASK(id_bytes("task id", id_)) for id_ in ids])
    assert sum(entry is not None for entry in left) == 20
