"""A network that is put back from a backup under live processes, which others then bring beyond all that those saw."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import asyncmy
import attrs
import pytest
from sqlalchemy.engine import make_url

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch
from converge.errors import StoreRolledBack
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge_store_sql.mysql import MysqlOptions, MysqlStore

WRITERS = 3

ROWS = ("delete from {0}", "insert into {0} select * from {0}_old")
TABLES = ("drop table {0}", "create table {0} like {0}_old", "insert into {0} select * from {0}_old")


class Backup:
    """The tables of a network."""

    def __init__(self, root: asyncmy.Connection, network: str) -> None:
        self._root, self._network = root, network

    async def take(self) -> None:
        for name in await self._tables():
            await self._run(f"create table {name}_old like {name}", f"insert into {name}_old select * from {name}")

    async def restore(self, statements: tuple[str, ...]) -> None:
        """Bring it back over what is there: the statements are run for each table, with its name."""
        for name in await self._tables():
            await self._run(*(statement.format(name) for statement in statements))

    async def _tables(self) -> list[str]:
        listed = await self._run(
            "select table_name from information_schema.tables where table_schema = database() and table_type = "
            f"'BASE TABLE' and table_name like '{self._network}\\_%'"
        )
        return [str(name) for (name,) in listed if not str(name).endswith("_old")]

    async def _run(self, *statements: str) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for statement in statements:
            async with self._root.cursor() as cursor:
                await cursor.execute(statement)
                rows = list(await cursor.fetchall()) if cursor.description else []
        return rows


@pytest.fixture
async def root(mariadb_url: str) -> AsyncIterator[asyncmy.Connection]:
    url = make_url(mariadb_url)
    async with asyncmy.connect(
        host=url.host, port=url.port, user=url.username, database=url.database, autocommit=True
    ) as made:
        yield made


@pytest.mark.parametrize("lost", range(WRITERS))
async def test_the_loss_of_any_of_the_writes_that_were_under_way_together_is_noticed_by_the_next(
    mariadb_url: str, options: MysqlOptions, root: asyncmy.Connection, lost: int
) -> None:
    """As a replica that took over may lack a write, and have others of the same process."""
    witness = f"{options.network}_witness"
    patient = attrs.evolve(options, lock_timeout_sec=60.0, timeout_sec=90.0, connect_timeout_sec=60.0)
    async with MysqlStore.opened(mariadb_url, patient) as store:
        await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        # Held up by the row that all of them check, each has a transaction of its own.
        (entry,) = await store.get([POOL("p")])
        assert entry is not None
        check = (POOL("p"), entry.revision)
        async with anyio.create_task_group() as group, root.cursor() as cursor:
            await cursor.execute("start transaction")
            await cursor.execute(f"select k from {options.network}_pool for update")
            for number in range(WRITERS):
                group.start_soon(store.commit, [Batch([check], [(POOL(f"p{number}"), b"1")])])
            await wait_until(lambda: _waiting(root, options.network), timeout=60)
            await cursor.execute("rollback")
        async with root.cursor() as cursor:
            await cursor.execute(f"select id from {witness} order by r desc limit {WRITERS}")
            ids = [row[0] for row in await cursor.fetchall()]
            assert len(ids) == WRITERS
            await cursor.execute(f"delete from {witness} where id = %s", (ids[lost],))
        with pytest.raises(StoreRolledBack):
            await store.commit([Batch(puts=[(POOL("q"), b"1")])])
        await store.commit([Batch(puts=[(POOL("q"), b"2")])])


async def _waiting(root: asyncmy.Connection, network: str) -> bool:
    """Return whether all have come to the row that is locked."""
    async with root.cursor() as cursor:
        await cursor.execute(
            "select count(*) from information_schema.processlist where id <> connection_id() and info like "
            f"'%{network}\\_pool%lock in share mode'"
        )
        ((found,),) = await cursor.fetchall()
    return bool(found == WRITERS)


@pytest.mark.parametrize("statements", [ROWS, TABLES], ids=["rows", "tables"])
async def test_a_backup_that_lacks_what_was_acknowledged_is_noticed_though_others_went_beyond(
    mariadb_url: str,
    namespace: str,
    root: asyncmy.Connection,
    statements: tuple[str, ...],
    go_beyond: Callable[[str, str], Awaitable[None]],
) -> None:
    async with (
        open_store(mariadb_url, network=namespace) as store,
        open_store(mariadb_url, network=namespace) as whole,
    ):
        tasks, backup = TaskManager(store), Backup(root, namespace)
        await PoolManager(store).create_pool(Pool(id="docs"))
        await TaskManager(whole).submit(Task(pool_id="docs"))
        await backup.take()
        await tasks.submit(Task(pool_id="docs"))
        await backup.restore(statements)
        await go_beyond(mariadb_url, namespace)
        with pytest.raises(StoreRolledBack, match="converge store accept"):
            await tasks.submit(Task(pool_id="docs"))
        with pytest.raises(StoreRolledBack):
            await tasks.submit(Task(pool_id="docs"))
        await TaskManager(whole).submit(Task(pool_id="docs"))  # of its own writes none is lost
