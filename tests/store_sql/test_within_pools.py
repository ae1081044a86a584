"""Tasks in a transaction of the caller's, where the pool of its engine has no connection left."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.errors import StoreBusy
from converge_store_sql import submit_in

SMALL = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.05}
FULL = "QueuePool limit of size 1 overflow 0 reached.*[0-9]; give create_engine a greater pool_size or max_overflow"


async def test_a_session_of_a_full_pool_is_told_what_is_full(postgres_url: str, namespace: str) -> None:
    engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+asyncpg:"), **SMALL)
    async with open_store(postgres_url, network=namespace) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        async with engine.connect(), AsyncSession(engine) as session:
            with pytest.raises(StoreBusy, match=f"no connection left: {FULL}"):
                await TaskManager(store.within(session)).submit(Task(pool_id="docs"))
        async with engine.connect() as connection:  # none but the caller's own is needed
            await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
    await engine.dispose()


@pytest.mark.parametrize(
    ("driver", "server"), [("postgresql+psycopg", "postgres_url"), ("mysql+pymysql", "mariadb_url")]
)
def test_plain_code_is_told_that_a_second_connection_is_needed(
    driver: str, server: str, request: pytest.FixtureRequest, namespace: str
) -> None:
    url = str(request.getfixturevalue(server))
    engine = create_engine(f"{driver}:{url.partition(':')[2]}", **SMALL)
    with engine.connect() as connection:
        with pytest.raises(StoreBusy, match=f"left beside the transaction's: {FULL}"):
            submit_in(connection, Task(pool_id="docs"), network=namespace)
        with Session(engine) as session, pytest.raises(StoreBusy, match=f"no connection left: {FULL}"):
            submit_in(session, Task(pool_id="docs"), network=namespace)
    engine.dispose()
