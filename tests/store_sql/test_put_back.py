"""A network that is put back from a backup under live processes, which others then bring beyond all that those saw: who
was told that something is written, and it is not, hears of it.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Committed
from converge.errors import StoreRolledBack
from converge.model.keys import EXPIRY, FAMILIES, STATE


class Backup:
    """The rows of a network, with its revisions and its epoch."""

    def __init__(self, server: asyncpg.Connection, network: str) -> None:
        self._server, self._network = server, network
        self._tables = [f"{network}_{family}" for family in FAMILIES]

    async def take(self) -> None:
        for name in self._tables:
            await self._server.execute(f"create table {name}_old as table {name}")
        revision = f"{self._network}_revision"
        await self._server.execute(f"create table {revision}_old as select last_value from {revision}")

    async def restore(self, statement: str) -> None:
        """Bring it back over what is there: `statement` is run for each table, with its name."""
        async with self._server.transaction():
            for name in self._tables:
                await self._server.execute(statement.format(name))
            revision = f"{self._network}_revision"
            await self._server.execute(f"select setval('{revision}', last_value) from {revision}_old")


@pytest.fixture
async def server(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


ROWS = "delete from {0}; insert into {0} select * from {0}_old"
TABLES = (
    "create table {0}_new (like {0} including all); insert into {0}_new select * from {0}_old; drop table {0} cascade; "
    "alter table {0}_new rename to {0}"
)


@pytest.mark.parametrize("statement", [ROWS, TABLES], ids=["rows", "tables"])
async def test_a_backup_that_lacks_what_was_acknowledged_is_noticed_though_others_went_beyond(
    postgres_url: str,
    namespace: str,
    server: asyncpg.Connection,
    statement: str,
    go_beyond: Callable[[str, str], Awaitable[None]],
) -> None:
    async with open_store(postgres_url, network=namespace) as store:
        tasks, backup = TaskManager(store), Backup(server, namespace)
        await PoolManager(store).create_pool(Pool(id="docs"))
        await tasks.submit(Task(pool_id="docs"))
        await backup.take()
        lost = await tasks.submit(Task(pool_id="docs"))
        await backup.restore(statement)
        await go_beyond(postgres_url, namespace)
        with pytest.raises(StoreRolledBack, match="converge store accept"):
            await tasks.submit(Task(pool_id="docs"))
        with pytest.raises(StoreRolledBack):
            await tasks.submit(Task(pool_id="docs"))
        assert await store.get([STATE(uuid.UUID(lost).bytes)]) == [None]


@pytest.mark.parametrize(
    "statement", [ROWS, TABLES, "vacuum full {0}", "alter table {0} set unlogged; alter table {0} set logged"]
)
async def test_rows_that_stand_elsewhere_and_lack_nothing_are_the_same_history(
    postgres_url: str,
    namespace: str,
    server: asyncpg.Connection,
    statement: str,
    go_beyond: Callable[[str, str], Awaitable[None]],
) -> None:
    async with (
        open_store(postgres_url, network=namespace) as store,
        open_store(postgres_url, network=namespace) as renewing,
    ):
        tasks, backup = TaskManager(store), Backup(server, namespace)
        await PoolManager(store).create_pool(Pool(id="docs"))
        before, expiry = await tasks.submit(Task(pool_id="docs")), EXPIRY(bytes(16))
        (renewed,) = await renewing.commit([Batch(puts=[(expiry, b"1")])])
        await backup.take()
        if statement.startswith("vacuum"):
            for family in FAMILIES:
                await server.execute(statement.format(f"{namespace}_{family}"))
        else:
            await backup.restore(statement)
        await go_beyond(postgres_url, namespace)
        after = await tasks.submit(Task(pool_id="docs"))
        assert isinstance(renewed, Committed)
        (renewed,) = await renewing.commit([Batch([(expiry, renewed.revision)], [(expiry, b"2")])])
        assert isinstance(renewed, Committed), "its write replaces the last one that it could look for"
        assert {before, after} <= {task.id for task in await tasks.list(pool_id="docs")}


async def test_a_service_that_refuses_functions_of_the_log_is_used_without_them(
    postgres_url: str, namespace: str, server: asyncpg.Connection
) -> None:
    for name in ("pg_current_wal_insert_lsn", "pg_last_wal_replay_lsn"):
        await server.execute(
            f"create schema if not exists {namespace}; create function {namespace}.{name}() returns pg_lsn language "
            "plpgsql as $$ begin raise exception 'not here' using errcode = '0A000'; end $$"
        )
    await server.execute(
        f"create role {namespace} login superuser; alter role {namespace} set search_path = {namespace}, pg_catalog"
    )
    url = postgres_url.replace("postgres@", f"{namespace}@")
    async with open_store(url, network=namespace) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        task_id = await TaskManager(store).submit(Task(pool_id="docs"))
        (claimed,) = await TaskManager(store).claim("worker", ["docs"])
        assert claimed.id == task_id
