"""Stores as earlier releases left them (`make_stores.py` made them): this one opens them, and goes on with the work."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from release_steps import POOL, WAITING, drain, ordered, plain

from converge import TaskManager, TaskState, open_store
from converge.errors import StoreRefused
from converge.model.keys import ACTIVE, FAMILIES, KEY
from converge.operations.store_changes import migrate_store
from converge.runtime.config.config import Config
from converge.services.store.formats import read_format
from converge.services.store.pages import read_all

STORES = Path(__file__).parent / "stores"


def dumped(kind: str) -> str:
    return (STORES / f"first-{kind}.sql").read_text()


def added() -> list[str]:
    """The families that came after the first release."""
    tables = dumped("file").lower()
    return [name for name in FAMILIES if f"create table f_{name} " not in tables]


@pytest.fixture
async def database(postgres_url: str, namespace: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own, with what the first release left."""
    server = await asyncpg.connect(postgres_url)
    await server.execute(f"create database {namespace}")
    url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{namespace}"))
    connection = await asyncpg.connect(url)
    await connection.execute(dumped("postgresql"))
    await connection.close()
    try:
        yield url
    finally:
        await server.execute(f"drop database {namespace} with (force)")
        await server.close()


@pytest.fixture(params=["file", "sql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> str:
    """The URL of what the first release left, in a file or in a database."""
    if request.param == "sql":
        return database
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(dumped("file"))
    return f"file:{path}"


def plugins_of(url: str) -> list[str]:
    return [] if url.startswith("file:") else ["sql"]


async def test_a_store_of_the_first_release_opens_with_all_that_is_in_it(url: str) -> None:
    async with open_store(url, plugins=plugins_of(url)) as store:
        tasks = TaskManager(store)
        states = {state: len(await tasks.list(state=state)) for state in TaskState}
        assert (states[TaskState.COMPLETED], states[TaskState.FAILED], states[TaskState.CANCELLED]) == (1, 1, 1)
        assert states[TaskState.PENDING] + states[TaskState.ASSIGNED] == 2 + 2 + WAITING
        (done,) = await tasks.list(state=TaskState.COMPLETED)
        assert (done.inputs, done.result) == ({"n": 0}, {"words": 3, "raw": b"\x00\xff"})
        assert (await read_format(store)).number == 1
        assert await plain(tasks, 3) == 3
        assert await drain(tasks, 1) == [0]
        assert (await read_format(store)).number == 1
        await ordered(tasks, 2)
        assert (await read_format(store)).number == 2
        assert await drain(tasks, WAITING + 1) == [*range(1, WAITING), 0, 1]
    async with open_store(url, plugins=plugins_of(url)) as store:
        assert len(await TaskManager(store).list(pool_id=POOL, state=TaskState.COMPLETED)) >= 3 + WAITING + 2


async def test_a_dry_run_names_what_is_missing_and_changes_nothing(url: str) -> None:
    config = Config(store=url, plugins=tuple(plugins_of(url)))
    view = ["tasks, with its present columns"]  # what no process needs, and operators do
    for _ in range(2):
        missing = (await migrate_store(config, is_dry_run=True)).missing
        assert [line.rpartition("_")[2] for line in missing] == added() + view
    assert (await migrate_store(config, is_dry_run=False)).missing == missing
    assert (await migrate_store(config, is_dry_run=False)).missing == ()


async def test_records_of_the_first_format_are_converted_in_bulk_and_their_work_goes_on(url: str) -> None:
    config = Config(store=url, plugins=tuple(plugins_of(url)))
    assert (await migrate_store(config, is_dry_run=False)).old is None
    for _ in range(2):
        assert (await migrate_store(config, is_dry_run=True, converts=True)).old == 1
    async with open_store(url, plugins=plugins_of(url)) as store:
        assert (await read_format(store)).number == 1
    assert (await migrate_store(config, is_dry_run=False, converts=True)).old == 1
    assert (await migrate_store(config, is_dry_run=False, converts=True)).old == 0
    async with open_store(url, plugins=plugins_of(url)) as store:
        assert (await read_format(store)).number == 2
        assert len(await read_all(store, ACTIVE())) == 1
        tasks = TaskManager(store)
        await ordered(tasks, 1)
        assert await drain(tasks, WAITING + 1) == [*range(WAITING), 0]
        assert await read_all(store, ACTIVE()) == await read_all(store, KEY()) == []


async def test_a_role_that_may_not_make_tables_is_told_who_may_and_works_once_they_are_made(
    database: str, namespace: str
) -> None:
    owner = await asyncpg.connect(database)
    role = f"agents_{namespace}"
    mine = database.replace("postgres@", f"{role}@")
    rights = "select, insert, update, delete on all tables in schema public"
    try:
        await owner.execute(f"create role {role} login; grant {rights} to {role}")
        await owner.execute(f"grant all on all sequences in schema public to {role}")
        await owner.execute(f"revoke insert, update, delete on converge_schema from {role}")
        with pytest.raises(StoreRefused) as refused:
            async with open_store(mine, plugins=["sql"]):
                raise AssertionError("it was opened")
        line = str(refused.value)
        assert "converge_format, converge_active" in line and "\n" not in line
        assert "`converge store migrate`" in line and '"postgres", which owns' in line and f'"{role}"' in line
        assert (await migrate_store(Config(store=database, plugins=("sql",)), is_dry_run=False)).missing
        async with open_store(mine, plugins=["sql"]) as store:
            await ordered(TaskManager(store), 1)
            assert (await read_format(store)).number == 2
    finally:
        await owner.execute(f"drop owned by {role}; drop role {role}")
        await owner.close()
