"""Tasks in a transaction of the caller's: with and without an event loop, what they wait for, what is refused."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import ABSENT, Batch, Conflict, Range, Store
from converge.errors import (
    DedupConflict,
    InvalidValue,
    NoSuchPool,
    NoSuchTask,
    StoreBusy,
    StoreRefused,
    StoreUnavailable,
    Unsupported,
)
from converge.model.keys import LANE
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port
from converge_store_sql import SqlOptions, SqlStore, submit_in

HELD_SEC = 10.0 if os.environ.get("FULL_TESTS") else 1.0
"""How long a transaction is held open beside other submits."""


POSTGRESQL = ["postgresql+asyncpg", "postgresql+psycopg"]
DRIVERS = [*POSTGRESQL, "mysql+asyncmy"]
PLAIN_POSTGRESQL = ["postgresql+psycopg", "postgresql+psycopg2"]
PLAIN_DRIVERS = [*PLAIN_POSTGRESQL, "mysql+pymysql"]
"""Databases, and what the caller talks to them with: perhaps another driver than ours."""

on_postgresql = pytest.mark.parametrize("driver", POSTGRESQL)
on_mariadb = pytest.mark.parametrize("driver", ["mysql+asyncmy"])
plain = pytest.mark.parametrize("driver", PLAIN_DRIVERS)
plain_on_postgresql = pytest.mark.parametrize("driver", PLAIN_POSTGRESQL)


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(request: pytest.FixtureRequest, driver: str) -> str:
    """The server of the driver's database."""
    return str(request.getfixturevalue("mariadb_url" if driver.startswith("mysql") else "postgres_url"))


def through(driver: str, url: str) -> str:
    return f"{driver}:{url.partition(':')[2]}"


@pytest.fixture
async def engine(driver: str, url: str) -> AsyncIterator[AsyncEngine]:
    """The caller's own engine, at the isolation that is the server's default."""
    made = create_async_engine(through(driver, url))
    yield made
    await made.dispose()


@pytest.fixture
def plain_engine(request: pytest.FixtureRequest, driver: str, url: str) -> Iterator[Engine]:
    """An engine of a caller's; each connection that was ever made of it must be closed in the end."""
    made, opened = create_engine(through(driver, url)), list[Any]()
    event.listen(made, "connect", lambda connection, _: opened.append(connection))
    yield made
    made.dispose()
    for thread in threading.enumerate():
        if thread.name == "converge-wake":
            thread.join(10)
    assert opened
    assert [connection for connection in opened if not _is_closed(connection)] == []


def _is_closed(connection: Any) -> bool:
    return bool(not connection.open if hasattr(connection, "open") else connection.closed)


@pytest.fixture
async def store(url: str, namespace: str) -> AsyncIterator[Store]:
    async with open_store(url, network=namespace) as opened:
        yield opened


@pytest.fixture
async def tasks(store: Store) -> TaskManager:
    for name in ("docs", "mail"):
        await PoolManager(store).create_pool(Pool(id=name))
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
            await connection.execute(text("select 1"))  # at REPEATABLE READ there is a snapshot from here on
            task_id = await TaskManager(store.within(connection)).submit(Task(pool_id="docs", inputs={"n": 1}))
            assert not await _is_there(tasks, task_id)
            await (connection.commit() if commits else connection.rollback())
        assert await _is_there(tasks, task_id) == commits


async def test_many_tasks_of_all_kinds_go_in_together_and_are_recognised_again(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    wanted = [
        Task(pool_id=pool, inputs={"n": n}, priority=n, type=f"t{n % 2}", dedup_key=f"{pool}{n}", ordering_key=key)
        for pool in ("docs", "mail")
        for n, key in enumerate((None, "a", "a", "b", None))
    ]
    async with engine.begin() as connection:
        within = TaskManager(store.within(connection))
        first = await within.submit_many(wanted)
        assert await within.submit_many(wanted + wanted[:2]) == first + first[:2]
        with pytest.raises(DedupConflict):
            await within.submit(Task(pool_id="docs", inputs={"n": 99}, dedup_key="docs0"))
        more = await within.submit(Task(pool_id="docs", type="t1", ordering_key="a", inputs={"n": 9}))
    assert await tasks.submit_many(wanted) == first
    done: list[str] = []
    while claimed := await tasks.claim("worker", ["docs", "mail"], limit=10):
        for task in claimed:
            done.append(task.id)
            await tasks.complete(task)
    assert sorted(done) == sorted([*first, more])
    chain = [first[1], first[2], more]
    assert [one for one in done if one in chain] == chain, "an ordering key is worked off in the order of its submits"


async def test_each_call_of_one_transaction_knows_what_the_calls_before_have_put(
    engine: AsyncEngine, store: SqlStore, tasks: TaskManager
) -> None:
    keyed, single = Task(pool_id="docs", ordering_key="k"), Task(pool_id="docs", dedup_key="d", inputs={"n": 1})
    async with engine.begin() as connection:
        first = [await TaskManager(store.within(connection)).submit(keyed) for _ in range(3)]
        once = {await TaskManager(store.within(connection)).submit(single) for _ in range(2)}
        assert len(once) == 1
        with pytest.raises(DedupConflict):
            await TaskManager(store.within(connection)).submit(attrs.evolve(single, inputs={"n": 2}))
    for expected in first:
        claimed = await tasks.claim("worker", ["docs"], limit=9)
        assert [task.id for task in claimed if task.ordering_key] == [expected]
        for task in claimed:
            await tasks.complete(task)


@pytest.mark.parametrize("is_session", [False, True])
async def test_calls_that_run_together_in_one_transaction_take_turns(
    engine: AsyncEngine, store: SqlStore, tasks: TaskManager, is_session: bool
) -> None:
    given = AsyncSession(engine) if is_session else engine.connect()
    async with given as connection:
        await connection.connection() if isinstance(connection, AsyncSession) else await connection.begin()
        managers = [TaskManager(store.within(connection)) for _ in range(3)]
        async with anyio.create_task_group() as group:
            for manager in managers * 2:
                group.start_soon(manager.submit, Task(pool_id="docs", ordering_key="k"))
        await connection.commit()
    assert len(await tasks.list(pool_id="docs")) == 6


async def test_a_lane_on_which_an_open_transaction_relies_is_seen_by_who_would_open_it(
    engine: AsyncEngine, store: SqlStore, tasks: TaskManager
) -> None:
    async with engine.connect() as connection:
        await connection.begin()
        await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
        ((lane, *_), *_) = await store.scan([Range(LANE(), None, 5)])
        (outcome,) = await store.commit([Batch([(lane.key, ABSENT)], [(lane.key, lane.value)])])
        assert type(outcome) is Conflict, outcome
        await connection.commit()
    assert len(await tasks.list(pool_id="docs")) == 1


@plain
async def test_each_call_of_plain_code_in_one_transaction_knows_what_the_calls_before_have_put(
    tasks: TaskManager, plain_engine: Engine, namespace: str
) -> None:
    keyed, single = Task(pool_id="docs", ordering_key="k"), Task(pool_id="docs", dedup_key="d", inputs={"n": 1})

    def submit() -> None:
        with plain_engine.begin() as connection:
            assert len({submit_in(connection, keyed, network=namespace)[0] for _ in range(3)}) == 3
            with connection.begin_nested() as savepoint:
                submit_in(connection, single, network=namespace)
                savepoint.rollback()
            assert len({submit_in(connection, single, network=namespace)[0] for _ in range(2)}) == 1
            with pytest.raises(DedupConflict):
                submit_in(connection, attrs.evolve(single, inputs={"n": 2}), network=namespace)

    await anyio.to_thread.run_sync(submit)
    assert len(await tasks.list(pool_id="docs")) == 4


@on_postgresql
async def test_a_worker_is_woken_by_the_commit_and_not_before(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:  # opens the lane, and announces nothing
        await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
    (lane,) = await store.scan([Range(LANE("docs"), None, 10)])
    channel, told = f"lane.{lane[0].key[2].hex()}", anyio.Event()

    async def watch() -> None:
        nonlocal told
        async for _ in store.watch([channel]):
            told.set()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await told.wait()
        told = anyio.Event()
        async with engine.begin() as connection:
            await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
            assert not told.is_set()
        with anyio.fail_after(10):
            await told.wait()
        assert len(await tasks.claim("worker", ["docs"])) == 1
        group.cancel_scope.cancel()


@on_postgresql
async def test_a_transaction_that_stays_open_delays_nobody_but_its_own_keys(
    store: Store, tasks: TaskManager, engine: AsyncEngine, namespace: str, url: str
) -> None:
    hasty = SqlOptions(network=namespace, lock_timeout_sec=0.1)
    async with engine.begin() as connection, SqlStore.open(url, hasty) as other:
        own = Task(pool_id="docs", type="held", dedup_key="once", ordering_key="row")
        first = await TaskManager(store.within(connection)).submit(own)
        others, until, count = TaskManager(other), anyio.current_time() + HELD_SEC, 0
        while anyio.current_time() < until or count < 20:
            await others.submit(Task(pool_id="docs", type="held"))  # one that waited for it would be refused
            count += 1
        with pytest.raises(StoreBusy):
            await others.submit(Task(pool_id="docs", type="held", dedup_key="once", ordering_key="row"))
        with pytest.raises(StoreBusy):
            await others.submit(Task(pool_id="docs", type="held", ordering_key="row"))
    assert await tasks.submit(own) == first


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "SERIALIZABLE"])
async def test_a_transaction_that_stays_open_delays_no_other_submit_to_its_lane(
    store: Store, tasks: TaskManager, engine: AsyncEngine, isolation: str
) -> None:
    async with engine.execution_options(isolation_level=isolation).begin() as connection:
        await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
        for _ in range(20):  # one that waited for it would be refused after `lock_timeout_sec`
            await tasks.submit(Task(pool_id="docs"))
        assert len(await tasks.claim("worker", ["docs"], limit=100)) == 20
    assert len(await tasks.claim("worker", ["docs"], limit=100)) == 1


@on_postgresql
async def test_sessions_of_one_registry_do_not_wait_for_each_other(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    sessions = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    within, once = TaskManager(store.within(sessions)), Task(pool_id="docs", dedup_key="once")
    first = await within.submit(once)

    async def again() -> None:
        try:
            assert await within.submit(once) == first
        finally:
            with anyio.CancelScope(shield=True):
                await sessions.remove()

    async def is_waiting() -> bool:
        async with engine.connect() as connection:
            waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            return bool(await connection.scalar(text(waiting)))

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(again)
            await wait_until(is_waiting)
            with anyio.fail_after(20):
                await within.submit(Task(pool_id="docs", type="other"))
            await sessions.commit()
    finally:
        await sessions.remove()
    assert len(await tasks.list(pool_id="docs")) == 2


async def test_of_two_transactions_that_wait_for_each_other_one_is_told_to_run_again(
    store: Store, tasks: TaskManager, engine: AsyncEngine, driver: str
) -> None:
    errors, busy, met = list[BaseException | None](), list[StoreBusy](), [anyio.Event(), anyio.Event()]
    event.listen(engine.sync_engine, "handle_error", lambda context: errors.append(context.original_exception))

    async def submit(number: int) -> None:
        async with engine.connect() as connection:
            if driver in POSTGRESQL:
                await connection.execute(text("set local deadlock_timeout = '10ms'"))
            within = TaskManager(store.within(connection))
            await within.submit(Task(pool_id="docs", dedup_key=f"d{number}"))
            met[number].set()
            await met[1 - number].wait()
            try:
                await within.submit(Task(pool_id="docs", dedup_key=f"d{1 - number}"))
                await connection.commit()
            except StoreBusy as error:
                busy.append(error)

    async with anyio.create_task_group() as group:
        for number in range(2):
            group.start_soon(submit, number)
    assert ["run the whole transaction again" in str(error) for error in busy] == [True]
    assert len(errors) <= 4, "each time the server has waited, and with it whoever waits for these keys"
    assert len(await tasks.list(pool_id="docs")) == 2


@on_mariadb
async def test_an_old_snapshot_sees_what_was_submitted_since(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    task = Task(pool_id="docs", dedup_key="once")
    async with engine.begin() as connection:
        await connection.execute(text("start transaction with consistent snapshot"))
        task_id = await tasks.submit(task)
        assert await TaskManager(store.within(connection)).submit(task) == task_id


async def test_a_lane_with_a_task_that_is_not_committed_yet_is_not_closed(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
        (lanes,) = await store.scan([Range(LANE("docs"), None, 10)])
        key, revision = lanes[0].key, lanes[0].revision
        with anyio.fail_after(20):
            (outcome,) = await store.commit([Batch([(key, revision)], [(key, b"closing")])])
        assert outcome == Conflict((key,))
    assert len(await tasks.claim("worker", ["docs"])) == 1


@on_postgresql
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_transaction_with_one_snapshot_takes_tasks_too(
    store: Store, tasks: TaskManager, engine: AsyncEngine, isolation: str
) -> None:
    async with engine.connect() as plain:
        connection = await plain.execution_options(isolation_level=isolation)
        await connection.execute(text("select 1"))
        ordered = Task(pool_id="docs", type="later", ordering_key="k")
        other = await tasks.submit(ordered)  # its lane is newer than the snapshot
        task_id = await TaskManager(store.within(connection)).submit(Task(pool_id="docs", type="later"))
        with pytest.raises(StoreBusy, match="roll back"):
            await TaskManager(store.within(connection)).submit(ordered)
        await connection.commit()
    assert await _is_there(tasks, task_id) and await _is_there(tasks, other)


async def test_what_cannot_take_a_task_is_refused_in_words(
    store: Store, tasks: TaskManager, engine: AsyncEngine, driver: str
) -> None:
    task = Task(pool_id="docs")
    with pytest.raises(InvalidValue, match="submit_in"):
        store.within(engine)
    async with engine.connect() as plain:
        automatic = await plain.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(InvalidValue, match="AUTOCOMMIT"):
            await TaskManager(store.within(automatic)).submit(task)
    async with engine.connect() as connection:
        await connection.execute(text(f"{'start' if 'mysql' in driver else 'set'} transaction read only"))
        with pytest.raises(StoreRefused, match="read-only"):
            await TaskManager(store.within(connection)).submit(task)
    async with engine.connect() as connection:
        within = TaskManager(store.within(connection))
        with pytest.raises(NoSuchPool):
            await within.submit(Task(pool_id="nowhere"))
        with pytest.raises(Unsupported, match="nothing else"):
            await within.claim("worker", ["docs"])
    with pytest.raises(InvalidValue, match="closed"):
        await within.submit(task)


async def test_a_connection_that_was_lost_goes_on_once_it_was_rolled_back(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        within = TaskManager(store.within(connection))
        gone = await within.submit(Task(pool_id="docs"))
        await connection.invalidate()
        with pytest.raises(InvalidValue, match="roll back"):
            await within.submit(Task(pool_id="docs"))
        await connection.rollback()
        task_id = await within.submit(Task(pool_id="docs"))
        await connection.commit()
    assert await _is_there(tasks, task_id) and not await _is_there(tasks, gone)


async def test_a_session_that_cannot_connect_is_no_wrong_value(store: Store, tasks: TaskManager, driver: str) -> None:
    engine = create_async_engine(f"{driver}://root@127.0.0.1:{free_port()}/nowhere")
    async with AsyncSession(engine) as session:
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await TaskManager(store.within(session)).submit(Task(pool_id="docs"))


@plain
def test_a_plain_session_that_cannot_connect_is_no_wrong_value(driver: str) -> None:
    session = Session(create_engine(f"{driver}://root@127.0.0.1:{free_port()}/nowhere"))
    with session, pytest.raises(StoreUnavailable, match="cannot be reached"):
        submit_in(session, Task(pool_id="docs"))


@on_postgresql
async def test_a_search_path_without_the_tables_is_refused_and_leaves_the_transaction_as_it_was(
    store: Store, tasks: TaskManager, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("set local search_path to pg_catalog"))
        with pytest.raises(StoreRefused, match="search_path"):
            await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
        await connection.execute(text("select 1"))


async def test_a_database_with_tables_of_the_same_names_is_another_store(
    store: Store, tasks: TaskManager, namespace: str, driver: str, url: str
) -> None:
    name = f"other_{namespace}"
    engine = create_async_engine(through(driver, url), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(f"create database {name}"))
    await engine.dispose()
    there = url.rpartition("/")[0] + f"/{name}"
    async with open_store(there, network=namespace) as other:
        await PoolManager(other).create_pool(Pool(id="docs"))
    engine = create_async_engine(through(driver, there))
    async with engine.connect() as connection:
        with pytest.raises(StoreRefused, match="another store"):
            await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
    await engine.dispose()


@plain
async def test_plain_code_submits_without_an_event_loop(
    tasks: TaskManager, plain_engine: Engine, namespace: str
) -> None:
    wanted = [Task(pool_id="docs", dedup_key=f"d{n}", ordering_key="k" if n else None) for n in range(3)]

    def with_connection() -> list[str]:
        with plain_engine.begin() as connection:
            return submit_in(connection, wanted, network=namespace)

    def with_session(*, commits: bool) -> str:
        with Session(plain_engine) as session:
            (task_id,) = submit_in(session, Task(pool_id="docs", type="new"), network=namespace)
            if commits:
                session.commit()
        return task_id

    ids = await anyio.to_thread.run_sync(with_connection)
    assert await tasks.submit_many(wanted) == ids
    assert await _is_there(tasks, await anyio.to_thread.run_sync(lambda: with_session(commits=True)))
    assert not await _is_there(tasks, await anyio.to_thread.run_sync(lambda: with_session(commits=False)))
    assert (await tasks.get(ids[0])).state is TaskState.PENDING


@pytest.mark.parametrize("driver", ["mysql+pymysql"])
async def test_plain_code_leaves_the_time_zone_of_its_connections(
    tasks: TaskManager, plain_engine: Engine, namespace: str
) -> None:
    zone = "+05:00"

    @event.listens_for(plain_engine, "connect")
    def _(connection: Any, _: object) -> None:
        connection.cursor().execute(f"set time_zone = '{zone}'")

    def submit() -> None:
        with plain_engine.begin() as connection:
            submit_in(connection, Task(pool_id="docs"), network=namespace)

    await anyio.to_thread.run_sync(submit)
    assert plain_engine.pool.checkedin() == 2  # type: ignore[attr-defined]  # a QueuePool: its own, and the one beside
    with plain_engine.connect() as one, plain_engine.connect() as other:
        zones = [connection.scalar(text("select @@session.time_zone")) for connection in (one, other)]
    assert zones == [zone, zone]


@plain_on_postgresql
async def test_plain_code_wakes_a_worker_by_its_commit(
    store: Store, tasks: TaskManager, plain_engine: Engine, namespace: str
) -> None:
    def open_lane() -> None:
        with plain_engine.connect() as connection:  # is rolled back, and announces nothing
            submit_in(connection, Task(pool_id="docs"), network=namespace)

    await anyio.to_thread.run_sync(open_lane)
    (lanes,) = await store.scan([Range(LANE("docs"), None, 10)])
    watch = aiter(store.watch([f"lane.{lanes[0].key[2].hex()}"]))
    await anext(watch)

    def submit() -> None:
        with plain_engine.begin() as connection:
            submit_in(connection, Task(pool_id="docs"), network=namespace)

    await anyio.to_thread.run_sync(submit)
    with anyio.fail_after(10):
        await anext(watch)
    await watch.aclose()  # type: ignore[attr-defined]  # every watch is an async generator


@plain
async def test_an_engine_with_a_single_connection_is_refused_and_its_transaction_left_alone(
    tasks: TaskManager, driver: str, url: str, namespace: str
) -> None:
    table = f"own_{namespace}"

    def submit() -> int:
        engine = create_engine(through(driver, url), poolclass=StaticPool)
        try:
            with engine.begin() as connection:
                connection.execute(text(f"create table {table} (n integer)"))
            with engine.connect() as connection:
                connection.execute(text(f"insert into {table} values (1)"))
                with pytest.raises(InvalidValue, match="second connection"):
                    submit_in(connection, Task(pool_id="docs"), network=namespace)
                connection.execute(text(f"insert into {table} values (2)"))
                connection.rollback()
                return int(connection.scalar(text(f"select count(*) from {table}")))
        finally:
            engine.dispose()

    assert await anyio.to_thread.run_sync(submit) == 0


@on_postgresql
async def test_plain_code_within_an_async_connection_takes_none_of_its_engine_to_another_thread(
    tasks: TaskManager, engine: AsyncEngine, namespace: str
) -> None:
    def submit(connection: Connection) -> tuple[str, list[str]]:
        (task_id,) = submit_in(connection, Task(pool_id="docs"), network=namespace)
        return task_id, [thread.name for thread in threading.enumerate()]

    async with engine.begin() as connection:
        task_id, threads = await connection.run_sync(submit)
    assert "converge-wake" not in threads
    assert await _is_there(tasks, task_id)


@plain
def test_plain_code_is_refused_in_words(plain_engine: Engine, namespace: str, blank: Callable[[], None]) -> None:
    blank()
    task = Task(pool_id="docs")

    def refused(connection: Connection | Session) -> None:
        submit_in(connection, task, network=namespace)

    with plain_engine.connect() as connection, pytest.raises(StoreRefused, match="nothing was ever"):
        refused(connection)
    with pytest.raises(InvalidValue, match="closed"):
        refused(connection)
    with pytest.raises(InvalidValue, match="Connection or Session"):
        refused(plain_engine)  # type: ignore[arg-type]  # what is tried
    with create_engine("sqlite://").connect() as connection, pytest.raises(Unsupported, match="sqlite"):
        refused(connection)


@pytest.fixture
def blank(url: str, namespace: str) -> Callable[[], None]:
    """Makes the tables of a network in which nothing was ever stored."""

    async def make() -> None:
        async with SqlStore.open(url, SqlOptions(network=namespace)):
            pass

    return lambda: anyio.run(make)
