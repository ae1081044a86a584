"""Purging, visiting and looking at leases: what an operator's commands do to a store, on every loop and embedded
store.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager
from converge.contracts.store import Store
from converge.errors import InvalidValue, LeaseEnded, NoSuchPool, StoreRolledBack
from converge.machines.task import TaskState
from converge.operations import tasks as operate
from converge.operations.moments import read_moment
from converge.operations.store_info import clock_skew
from converge.services.store import epoch as epochs
from converge.services.store.handle import StoreHandle
from converge.services.store.processes import leases
from converge.services.tasks import purge

DAY_US = 86_400_000_000


async def ended(tasks: TaskManager, count: int) -> None:
    """Submit so many tasks to `docs` and complete them."""
    await tasks.submit_many([Task(pool_id="docs", dedup_key=f"k{at}", type=f"t{at % 2}") for at in range(count)])
    for task in await tasks.claim("a", ["docs"], limit=count):
        await tasks.complete(task)


async def test_a_purge_goes_through_all_pages_and_leaves_what_lives(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "PURGED_TOGETHER", 3)
    tasks, pages = TaskManager(store), list[int]()
    await ended(tasks, 8)
    kept = await tasks.submit(Task(pool_id="docs", dedup_key="live"))
    counted = await operate.purge(store, operate.Purging(), is_dry_run=True)
    removed = await operate.purge(store, operate.Purging(), is_dry_run=False, on_page=pages.append)
    assert removed == counted == [purge.Purged(pool_id="docs", state="COMPLETED", count=8)]
    assert pages == [3, 6, 8]
    assert [task.id for task in await tasks.list()] == [kept]
    await ended(tasks, 8)  # their dedup keys are free again
    assert len(await tasks.list(state=TaskState.COMPLETED)) == 8


async def test_a_purge_by_age_takes_only_what_ended_before(store: Store) -> None:
    tasks = TaskManager(store)
    await ended(tasks, 3)
    assert await operate.purge(store, operate.Purging(older_than="1h"), is_dry_run=False) == []
    (removed,) = await operate.purge(store, operate.Purging(older_than="0s"), is_dry_run=False)
    assert removed.count == 3


async def test_a_purge_refuses_everything_that_is_wrong_at_once_and_removes_nothing(store: Store) -> None:
    tasks = TaskManager(store)
    await ended(tasks, 2)
    wanted = operate.Purging(pool_ids=["docs", "dcos"], states=[TaskState.PENDING, TaskState.COMPLETED])
    with pytest.raises(ExceptionGroup) as raised:
        await operate.purge(store, wanted, is_dry_run=False)
    assert [type(one) for one in raised.value.exceptions] == [NoSuchPool, InvalidValue]
    assert len(await tasks.list()) == 2


async def test_a_list_stops_at_its_limit_and_tells_whether_there_is_more(store: Store) -> None:
    await ended(TaskManager(store), 7)
    found: list[str] = []

    def visit(page: Sequence[Task]) -> None:
        found.extend(task.id for task in page)

    assert await operate.list_tasks(store, operate.Wanted(limit=3), visit) is True
    assert await operate.list_tasks(store, operate.Wanted(limit=3, skip=3), visit) is True
    assert await operate.list_tasks(store, operate.Wanted(limit=3, skip=6), visit) is False
    assert len(found) == len(set(found)) == 7
    found.clear()
    assert await operate.list_tasks(store, operate.Wanted(types=["t1"]), visit) is False
    assert len(found) == 3


async def test_a_lease_is_seen_with_what_is_held_under_it(store: Store) -> None:
    tasks = TaskManager(store)
    assert await leases(store) == []
    await tasks.submit_many([Task(pool_id="docs")] * 3)
    await tasks.claim("a", ["docs"], limit=2)
    (seen,) = await leases(store)
    assert (seen.held, seen.agents, seen.is_alive) == (2, 0, True)
    assert 0 < seen.remaining_sec <= 15


async def test_an_accept_draws_an_epoch_that_says_when_and_a_healthy_process_begins_anew(store: Store) -> None:
    tasks = TaskManager(store)
    await ended(tasks, 1)
    was, before = await epochs.read(store), await store.time()
    old, new = await epochs.accept(store, StoreHandle.of(store).env)
    assert (old, old.accepted_at, was == old) == (was, 0, True)
    assert before <= new.accepted_at <= await store.time() and new == await epochs.read(store)
    with pytest.raises(StoreRolledBack):
        await tasks.submit(Task(pool_id="docs"))
    await tasks.submit(Task(pool_id="docs"))
    with pytest.raises(LeaseEnded):
        await tasks.claim("a", ["docs"])


async def test_an_accept_is_seen_however_long_the_store_takes_to_tell_its_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, time_of = TaskManager(store), store.time
    await ended(tasks, 1)
    await epochs.accept(store, StoreHandle.of(store).env)

    async def late() -> int:
        await anyio.sleep(0.3)  # much longer than it took from the last commit to the accept
        return await time_of()

    with pytest.raises(StoreRolledBack):
        await tasks.submit(Task(pool_id="docs"))
    monkeypatch.setattr(store, "time", late)
    await tasks.submit(Task(pool_id="docs"))


async def test_the_skew_of_an_embedded_store_is_small(store: Store) -> None:
    skew, took = await clock_skew(store)
    assert abs(skew) < 60 and 0 <= took < 10


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("0s", 20_000 * DAY_US),
        ("1.5m", 20_000 * DAY_US - 90_000_000),
        ("2w", 19_986 * DAY_US),
        ("999999999w", 0),
        ("2020-01-01", 1_577_836_800_000_000),
        ("2020-01-01T01:00:00+01:00", 1_577_836_800_000_000),
        ("0001-01-01", 0),
    ],
)
def test_ages_and_moments_are_read_as_people_write_them(text: str, micros: int) -> None:
    assert read_moment("--since", text, 20_000 * DAY_US) == micros


@pytest.mark.parametrize("text", ["", "7", "-1d", "1y", "yesterday", "2020-13-01", "1 d", "9999999999d", "١d"])
def test_what_is_neither_an_age_nor_a_moment_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="--since"):
        read_moment("--since", text, 0)


async def test_every_pool_is_purged_where_none_is_named(store: Store) -> None:
    tasks = TaskManager(store)
    await PoolManager(store).create_pool(Pool(id="more"))
    for pool_id in ("docs", "more"):
        await tasks.cancel(await tasks.submit(Task(pool_id=pool_id)))
    removed = await operate.purge(store, operate.Purging(states=[TaskState.CANCELLED]), is_dry_run=False)
    assert [(one.pool_id, one.count) for one in removed] == [("docs", 1), ("more", 1)]
