"""Tasks in a transaction of the caller's on MariaDB, with and without an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import anyio.to_thread
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Store
from converge.errors import DedupConflict, InvalidValue, NoSuchPool, NoSuchTask, StoreRefused, Unsupported
from converge_store_sql import submit_in
from converge_store_sql.mysql import MysqlOptions


@pytest.fixture
async def engine(mariadb_url: str) -> AsyncIterator[AsyncEngine]:
    """The caller's own engine, at the server's default isolation, which is REPEATABLE READ."""
    made = create_async_engine(mariadb_url.replace("mysql:", "mysql+asyncmy:"))
    yield made
    await made.dispose()


@pytest.fixture
async def store(mariadb_url: str, options: MysqlOptions) -> AsyncIterator[Store]:
    async with open_store(mariadb_url, network=options.network) as opened:
        yield opened


@pytest.fixture
async def tasks(store: Store) -> TaskManager:
    await PoolManager(store).create_pool(Pool(id="docs"))
    return TaskManager(store)


async def _is_there(tasks: TaskManager, task_id: str) -> bool:
    try:
        await tasks.get(task_id)
    except NoSuchTask:
        return False
    return True


@pytest.mark.parametrize("is_session", [False, True])
async def test_a_task_comes_and_goes_with_the_callers_transaction(
    store: Store, tasks: TaskManager, engine: AsyncEngine, is_session: bool
) -> None:
    for commits in (True, False):
        async with AsyncSession(engine) if is_session else engine.connect() as connection:
            await connection.execute(text("select 1"))
            task_id = await TaskManager(store.within(connection)).submit(Task(pool_id="docs", inputs={"n": 1}))
            assert not await _is_there(tasks, task_id)
            await (connection.commit() if commits else connection.rollback())
        assert await _is_there(tasks, task_id) == commits


async def test_many_tasks_go_in_together_and_are_recognised_again(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    wanted = [
        Task(pool_id="docs", inputs={"n": n}, type=f"t{n % 2}", dedup_key=f"d{n}", ordering_key=key)
        for n, key in enumerate((None, "a", "a", "b", None))
    ]
    async with engine.begin() as connection:
        within = TaskManager(store.within(connection))
        first = await within.submit_many(wanted)
        assert await within.submit_many(wanted + wanted[:2]) == first + first[:2]
        with pytest.raises(DedupConflict):
            await within.submit(Task(pool_id="docs", inputs={"n": 99}, dedup_key="d0"))
    assert await tasks.submit_many(wanted) == first
    assert len(await tasks.claim("worker", ["docs"], limit=10)) == 4  # the second of "a" waits for the first


async def test_an_old_snapshot_sees_what_was_submitted_since(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    task = Task(pool_id="docs", dedup_key="once")
    async with engine.begin() as connection:
        await connection.execute(text("start transaction with consistent snapshot"))
        task_id = await tasks.submit(task)
        assert await TaskManager(store.within(connection)).submit(task) == task_id


async def test_a_transaction_that_stays_open_delays_no_other_submit_to_its_lane(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
        with anyio.fail_after(4):  # less than lock_timeout_sec
            for _ in range(20):
                await tasks.submit(Task(pool_id="docs"))
        assert len(await tasks.claim("worker", ["docs"], limit=100)) == 20
    assert len(await tasks.claim("worker", ["docs"], limit=100)) == 1


async def test_what_cannot_take_a_task_is_refused_in_words(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    task = Task(pool_id="docs")
    with pytest.raises(InvalidValue, match="submit_in"):
        store.within(engine)
    async with engine.connect() as plain:
        automatic = await plain.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidValue, match="AUTOCOMMIT"):
            await TaskManager(store.within(automatic)).submit(task)
    async with engine.connect() as connection:
        await connection.execute(text("set session transaction read only"))
        await connection.rollback()
        with pytest.raises(StoreRefused, match="read-only"):
            await TaskManager(store.within(connection)).submit(task)
        await connection.rollback()
        await connection.execute(text("set session transaction read write"))
    async with engine.connect() as connection:
        within = TaskManager(store.within(connection))
        with pytest.raises(NoSuchPool):
            await within.submit(Task(pool_id="nowhere"))
        with pytest.raises(Unsupported, match="nothing else"):
            await within.claim("worker", ["docs"])
    with pytest.raises(InvalidValue, match="closed"):
        await within.submit(task)


async def test_plain_code_submits_without_an_event_loop(
    tasks: TaskManager, mariadb_url: str, options: MysqlOptions
) -> None:
    engine = create_engine(mariadb_url.replace("mysql:", "mysql+pymysql:"))
    wanted = [Task(pool_id="docs", type="new", dedup_key=f"d{n}", ordering_key="k" if n else None) for n in range(3)]

    def submit(*, commits: bool) -> list[str]:
        with engine.connect() as connection:
            ids = submit_in(connection, wanted, network=options.network)
            (connection.commit if commits else connection.rollback)()
        return ids

    gone = await anyio.to_thread.run_sync(lambda: submit(commits=False))
    assert [await _is_there(tasks, one) for one in gone] == [False] * 3
    ids = await anyio.to_thread.run_sync(lambda: submit(commits=True))
    assert await tasks.submit_many(wanted) == ids
    engine.dispose()
