"""Wake-ups through the table of sleepers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import anyio
import asyncpg
import pytest

from converge.contracts.store import Batch
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql.postgresql import waiters
from converge_store_sql.postgresql.store import PostgresqlStore


@pytest.fixture
async def server(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


class Watcher:
    """Counts how often a watch told its reader to look."""

    def __init__(self, store: SqlStore, *channels: str) -> None:
        self._store, self._channels = store, channels
        self.looks = 0

    async def run(self) -> None:
        async for _ in self._store.watch(self._channels):
            self.looks += 1


async def rows(server: asyncpg.Connection, options: SqlOptions) -> int:
    return int(await server.fetchval(f"select count(*) from {options.network}_waiter"))


async def test_a_wake_reaches_one_of_many_sleepers(store: SqlStore) -> None:
    async with store.reopen() as other, anyio.create_task_group() as group:
        assert isinstance(other, SqlStore)
        watchers = [Watcher(handle, "lane") for handle in (store, store, other, other)]
        for watcher in watchers:
            group.start_soon(watcher.run)
        await wait_until(lambda: all(watcher.looks == 1 for watcher in watchers))
        for number in range(6):
            await other.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["lane", "nobody"])
            await wait_until(lambda told=number: sum(watcher.looks for watcher in watchers) >= 5 + told)  # type: ignore[misc]
        assert sum(watcher.looks for watcher in watchers) == 4 + 6
        group.cancel_scope.cancel()


async def test_a_callers_transaction_that_the_server_has_never_heard_of_ends_no_wake_ups(store: SqlStore) -> None:
    # So it is after a crash, a failover, or a backup that was put back: the number of one that was open is given again.
    assert isinstance(store, PostgresqlStore)
    store._waiters.wake_after(10**9, ["gone"])
    await wait_until(lambda: store._waiters._riders.pause_sec is None)
    async with anyio.create_task_group() as group:
        watcher = Watcher(store, "lane")
        group.start_soon(watcher.run)
        await wait_until(lambda: watcher.looks == 1)
        await store.commit([], wake=["lane"])
        await wait_until(lambda: watcher.looks == 2)
        group.cancel_scope.cancel()


async def test_what_was_committed_can_be_read_when_the_sleeper_looks(store: SqlStore) -> None:
    seen: list[bytes | None] = []

    async def look() -> None:
        async for _ in store.watch(["lane"]):
            (entry,) = await store.get([POOL("p")])
            seen.append(entry and entry.value)
            if entry is not None and entry.value == b"9":
                return

    async with store.reopen() as other, anyio.create_task_group() as group:
        group.start_soon(look)
        await wait_until(lambda: len(seen) == 1)
        for number in range(10):
            await other.commit([Batch(puts=[(POOL("p"), b"%d" % number)])], wake=["lane"])
        await wait_until(lambda: seen[-1] == b"9")


async def test_a_sleeper_whose_connection_died_does_not_swallow_a_wake(
    store: SqlStore, server: asyncpg.Connection, options: SqlOptions
) -> None:
    gone = await asyncpg.connect(**_address(server))
    pid = gone.get_server_pid()
    await gone.close()
    await server.execute(
        f"insert into {options.network}_waiter (channel, listener, pid) values ('lane', 'dead', {pid})"
    )
    watcher = Watcher(store, "lane")
    async with anyio.create_task_group() as group:
        group.start_soon(watcher.run)
        await wait_until(lambda: watcher.looks == 1)
        await store.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["lane"])
        await wait_until(lambda: watcher.looks == 2)
        assert await server.fetchval(f"select count(*) from {options.network}_waiter where listener = 'dead'") == 0
        group.cancel_scope.cancel()


async def test_a_sleeper_that_has_not_shown_itself_does_not_swallow_a_wake(
    store: SqlStore, server: asyncpg.Connection, options: SqlOptions
) -> None:
    await server.execute(
        f"insert into {options.network}_waiter (channel, listener, pid, seen) values ('lane', 'late', "
        "pg_backend_pid(), now() - interval '31 s')"
    )
    watcher = Watcher(store, "lane")
    async with anyio.create_task_group() as group:
        group.start_soon(watcher.run)
        await wait_until(lambda: watcher.looks == 1)
        await store.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["lane"])
        await wait_until(lambda: watcher.looks == 2)
        group.cancel_scope.cancel()


async def test_a_listener_that_lost_its_connection_listens_again_and_looks(
    store: SqlStore, server: asyncpg.Connection, options: SqlOptions
) -> None:
    watcher = Watcher(store, "lane")
    async with anyio.create_task_group() as group:
        group.start_soon(watcher.run)
        await wait_until(lambda: watcher.looks == 1)
        assert await server.fetchval(f"select pg_terminate_backend(pid) from {options.network}_waiter")
        await wait_until(lambda: watcher.looks == 2)
        await store.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["lane"])
        await wait_until(lambda: watcher.looks == 3)
        group.cancel_scope.cancel()


async def test_a_watch_that_ends_leaves_no_row_and_passes_its_wake_on(
    store: SqlStore, server: asyncpg.Connection, options: SqlOptions
) -> None:
    async with store.reopen() as other:
        assert isinstance(other, SqlStore)
        leaving, staying = Watcher(store, "lane"), Watcher(other, "lane")
        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as brief:
                brief.start_soon(leaving.run)
                await wait_until(lambda: leaving.looks == 1)
                brief.cancel_scope.cancel()
            assert await rows(server, options) == 0
            group.start_soon(staying.run)
            await wait_until(lambda: staying.looks == 1)
            await store.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["lane"])
            await wait_until(lambda: staying.looks == 2)
            group.cancel_scope.cancel()
    assert await rows(server, options) == 0


@pytest.mark.parametrize("how", ["locked", "written"])
async def test_a_sleeper_whose_row_another_statement_holds_is_told_once_it_is_free(
    store: SqlStore, server: asyncpg.Connection, options: SqlOptions, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(waiters, "TELL_AGAIN_SEC", 60.0)
    tries, tell_once = list[set[str]](), waiters.Waiters._tell_once

    async def seen(self: waiters.Waiters, channels: Sequence[str]) -> set[str]:
        tries.append(await tell_once(self, channels))
        return tries[-1]

    monkeypatch.setattr(waiters.Waiters, "_tell_once", seen)
    watcher = Watcher(store, "lane")
    async with anyio.create_task_group() as group:
        group.start_soon(watcher.run)
        await wait_until(lambda: watcher.looks == 1)
        held = server.transaction()
        await held.start()
        table = f"{options.network}_waiter"
        beat = {"locked": f"select from {table} for update", "written": f"update {table} set seen = clock_timestamp()"}
        await server.execute(beat[how])
        await store.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["lane", "nobody"])
        await wait_until(lambda: {"lane"} in tries)
        assert watcher.looks == 1
        await held.commit()
        await wait_until(lambda: watcher.looks == 2)
        await wait_until(lambda: tries[-1] == set())
        group.cancel_scope.cancel()


def _address(server: asyncpg.Connection) -> dict[str, object]:
    host, port = server._addr
    return {"host": host, "port": port, "user": "postgres", "database": "postgres"}
