"""Tasks in a transaction of the caller's on MariaDB: what is the caller's own stays as it was."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from converge import Pool, PoolManager, Task, TaskManager
from converge_store_sql import SqlStore


async def test_the_last_id_that_the_caller_has_drawn_stays_the_last(
    store: SqlStore, server_url: str, namespace: str
) -> None:
    await PoolManager(store).create_pool(Pool(id="docs"))
    once = Task(pool_id="docs", dedup_key="once")
    engine = create_async_engine(f"mysql+asyncmy:{server_url.partition(':')[2]}")
    async with engine.begin() as connection:
        await connection.execute(text(f"create table own_{namespace} (id integer primary key auto_increment)"))
        await connection.execute(text(f"insert into own_{namespace} values (4711), (null)"))
        for _ in range(2):  # the second finds it stored
            await TaskManager(store.within(connection)).submit_many([once, Task(pool_id="docs")])
        assert await connection.scalar(text("select last_insert_id()")) == 4712
    await engine.dispose()
    assert len(await TaskManager(store).list(pool_id="docs")) == 3
