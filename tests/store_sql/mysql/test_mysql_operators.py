"""What operators of MariaDB do: rights, and a replica that takes over."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.abc
import asyncmy
import asyncmy.errors
import pytest
from asyncmy.cursors import DictCursor

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Store
from converge.errors import StoreError, StoreRefused, StoreRolledBack
from converge.model.keys import STATE, TASK
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port, mariadb_server
from converge_store_sql.mysql import MysqlOptions, MysqlStore

PAGE = Path(__file__).parents[3] / "docs/reference/mariadb.md"
WRITERS = 3


async def run(url: str, *statements: str) -> list[tuple[object, ...]]:
    """Run statements as the user of the URL; return the rows of the last one."""
    place = urlsplit(url)
    rows: list[tuple[object, ...]] = []
    async with asyncmy.connect(
        host=place.hostname, port=place.port, user=place.username, database=place.path[1:], autocommit=True
    ) as connection:
        for statement in statements:
            async with connection.cursor() as cursor:
                await cursor.execute(statement)
                rows = list(await cursor.fetchall()) if cursor.description else []
    return rows


async def test_each_user_can_do_its_own_and_no_more(mariadb_url: str, options: MysqlOptions) -> None:
    network = options.network
    names = {name: f"{name}_{network}" for name in ("owner", "agents", "reader", "work")}

    def url_of(user: str) -> str:
        return mariadb_url.replace("root@", f"{names[user]}@").replace("/converge", f"/{names['work']}")

    def granted(block: str) -> list[str]:
        text = block.replace("work.converge_", f"work.{network}_")
        for name, own in names.items():
            text = text.replace(f" {name};", f" {own};").replace(f" {name}.", f" {own}.")
        return [line.strip() for line in text.split(";") if line.strip()]

    before, after = PAGE.read_text().split("```text")[1:]
    users = [f"create user {names[name]}" for name in ("owner", "agents", "reader")]
    await run(mariadb_url, f"create database {names['work']}", *users, *granted(before.split("```")[0]))
    with pytest.raises(StoreRefused, match="converge store migrate"):
        async with MysqlStore.opened(url_of("agents"), options):
            pass
    async with MysqlStore.opened(url_of("owner"), options):
        pass
    await run(url_of("owner"), f"drop view {network}_tasks")
    async with MysqlStore.opened(url_of("agents"), options):
        pass  # it may not make the view, and does not need it
    lacking = await MysqlStore.to_add(url_of("owner"), options)
    assert lacking == [f"the view {network}_tasks, with its present columns"]
    async with MysqlStore.opened(url_of("owner"), options):
        pass  # it makes the view again
    await run(mariadb_url, *granted(after.split("```")[0]))
    async with open_store(url_of("agents"), network=network) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        tasks = TaskManager(store)
        await tasks.submit_many([Task(pool_id="docs", ordering_key="k"), Task(pool_id="docs", ordering_key="k")])
        (task,) = await tasks.claim("worker", ["docs"], limit=2)
        await tasks.complete(task)
    assert await run(url_of("reader"), f"select count(*) from {network}_tasks") == [(2,)]
    for user, statement in (
        ("reader", f"delete from {network}_task"),
        ("agents", f"drop table {network}_task"),
        ("agents", f"alter table {network}_task add x int"),
    ):
        with pytest.raises(asyncmy.errors.OperationalError, match="denied"):
            await run(url_of(user), statement)
    dropped = ", ".join(names[name] for name in ("owner", "agents", "reader"))
    await run(mariadb_url, f"drop database {names['work']}", f"drop user {dropped}")


async def test_a_connection_to_another_host_that_is_not_encrypted_is_told(
    mariadb_url: str, options: MysqlOptions
) -> None:
    far = mariadb_url.replace("127.0.0.1", "0.0.0.0")  # this host, by an address that is not seen to be its own
    found = []
    for url in (mariadb_url, far):
        async with MysqlStore.opened(url, options) as store:
            inspected = await store.inspect()
        found.append([one.mend for one in inspected.findings if one.code == "tls"])
        looked = await MysqlStore.looked_at(url, options)
        assert [one.mend for one in looked.findings if one.code == "tls"] == found[-1]
    assert found[0] == [] and "ssl=true" in found[1][0]


async def test_the_view_shows_a_task_in_each_place_of_its_life(
    mariadb_url: str, options: MysqlOptions, check_view: Callable[..., Awaitable[None]]
) -> None:
    await check_view(mariadb_url, options.network, lambda: _view(mariadb_url, options.network), _utc)


async def test_a_record_that_cannot_be_read_keeps_no_other_from_being_shown(
    mariadb_url: str, options: MysqlOptions
) -> None:
    values = (b"\xff{", b'{"pool":"docs","due":99999999999999999999999}', b'{"pool":"docs","due":"x"}', b'{"pool":"p"}')
    async with MysqlStore.opened(mariadb_url, options) as store:
        for number, value in enumerate(values):
            puts = [(TASK(bytes([number]) * 16), value), (STATE(bytes([number]) * 16), value)]
            await store.commit([Batch(puts=puts)])
    rows = sorted(await _view(mariadb_url, options.network), key=lambda row: row["id"])
    assert [(row["pool"], row["due"]) for row in rows] == [(None, None), ("docs", None), ("docs", None), ("p", None)]


async def test_the_view_of_a_store_made_before_is_renewed(mariadb_url: str, options: MysqlOptions) -> None:
    view = f"{options.network}_tasks"
    async with MysqlStore.opened(mariadb_url, options):
        pass
    old = f"select k as id, 1 as place, v as task, 2 as record from {options.network}_task"
    await run(mariadb_url, f"create or replace view {view} as {old}")
    assert await MysqlStore.to_add(mariadb_url, options) == [f"the view {view}, with its present columns"]
    async with MysqlStore.opened(mariadb_url, options):
        assert await MysqlStore.to_add(mariadb_url, options) == []
    assert await run(mariadb_url, f"select kept_until from {view}") == []


async def _view(url: str, network: str) -> list[dict[str, Any]]:
    place = urlsplit(url)
    async with (
        asyncmy.connect(
            host=place.hostname, port=place.port, user=place.username, database=place.path[1:], cursor_cls=DictCursor
        ) as connection,
        connection.cursor() as cursor,
    ):
        await cursor.execute(f"select * from {network}_tasks")
        return list(await cursor.fetchall())


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the servers' user can enter, too."""
    made = Path(tempfile.mkdtemp(prefix="converge-failover-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


class Writer:
    """Submits through a store of its own, and keeps the ids that were acknowledged."""

    def __init__(self) -> None:
        self.acknowledged: list[str] = []
        self.is_rolled_back = False

    async def write(self, store: Store) -> None:
        """Go on until the store's history is another one, or until cancelled."""
        while not self.is_rolled_back:
            try:
                self.acknowledged.append(await TaskManager(store).submit(Task(pool_id="docs")))
            except StoreRolledBack:
                self.is_rolled_back = True
            except StoreError:
                await anyio.sleep(0.05)  # as callers do while there is no primary

    async def missing(self, store: Store) -> int:
        there = {task.id for task in await TaskManager(store).list(pool_id="docs", limit=100_000)}
        return len(set(self.acknowledged) - there)


@pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("is_lossy", [False, True], ids=["whole", "lossy"])
async def test_a_replica_that_takes_over_under_load_has_all_or_whoever_was_told_hears_of_it(
    folder: Path, namespace: str, *, is_lossy: bool
) -> None:
    """Replication is asynchronous, as MariaDB has it by default."""
    log = ("--log-bin=binlog", "--log-slave-updates")
    with ExitStack() as stack:
        primary, replica = (
            stack.enter_context(
                mariadb_server(directory=folder / str(n), flushes=False, options=(f"--server-id={n}", *log))
            )
            for n in (1, 2)
        )
        await run(primary, "create user repl", "grant replication slave on *.* to repl", "reset master")
        source = f"master_host='127.0.0.1', master_port={urlsplit(primary).port}, master_user='repl'"
        begin = ["reset master", "set global gtid_slave_pos = ''", "set global read_only = 1"]
        await run(replica, *begin, f"change master to {source}, master_use_gtid = slave_pos", "start slave")
        targets = [urlsplit(primary).port or 0]
        async with _switch(targets) as port:
            url = f"mysql://root@127.0.0.1:{port}/converge"
            async with open_store(url, network=namespace) as store:
                await PoolManager(store).create_pool(Pool(id="docs"))
            writers = [Writer() for _ in range(WRITERS)]

            async def write(writer: Writer) -> None:
                async with open_store(url, network=namespace) as store:
                    await writer.write(store)

            async with anyio.create_task_group() as group:
                for writer in writers:
                    group.start_soon(write, writer)
                await wait_until(_each_went_on(writers, 40), timeout=60)
                if is_lossy:
                    await run(replica, "stop slave io_thread")
                    await wait_until(_each_went_on(writers, 20), timeout=60)
                os.kill(primary.pid, signal.SIGKILL)
                await run(replica, "stop slave io_thread")
                await wait_until(lambda: _has_applied(replica), timeout=60)
                await run(replica, "stop slave", "reset slave all", "set global read_only = 0")
                targets[0] = urlsplit(replica).port or 0
                await wait_until(_each_went_on(writers, 20), timeout=60)
                group.cancel_scope.cancel()
            async with open_store(url, network=namespace) as store:
                for writer in writers:
                    missing = await writer.missing(store)
                    assert writer.is_rolled_back == bool(missing), f"{missing} acknowledged tasks are gone"
                    assert missing or not is_lossy


def _each_went_on(writers: list[Writer], by: int) -> Callable[[], bool]:
    before = [len(one.acknowledged) + by for one in writers]
    return lambda: all(
        one.is_rolled_back or len(one.acknowledged) > count for one, count in zip(writers, before, strict=True)
    )


async def _has_applied(replica: str) -> bool:
    (states,) = await run(
        replica,
        "select count(*) from information_schema.processlist where state like '%has read all relay log%'",
    )
    return states == (1,)


@asynccontextmanager
async def _switch(targets: list[int]) -> AsyncIterator[int]:
    """A port that leads to the first of `targets`, as the address of a service does."""
    port = free_port()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)

    async def lead(near: anyio.abc.SocketStream) -> None:
        async with near:
            try:
                far = await anyio.connect_tcp("127.0.0.1", targets[0])
            except OSError:
                return
            async with far, anyio.create_task_group() as both:
                both.start_soon(_pump, near, far, both.cancel_scope)
                both.start_soon(_pump, far, near, both.cancel_scope)

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, lead)
        yield port
        group.cancel_scope.cancel()


async def _pump(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, over: anyio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    over.cancel()
