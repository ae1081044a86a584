"""What a MariaDB server is set to for other clients must not change what a call does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import asyncmy
import pytest

from converge.contracts.store import Batch, Committed, Range
from converge.errors import StoreError, StoreUnavailable
from converge.model.keys import POOL
from converge_store_sql.mysql import MysqlOptions, MysqlStore

CARELESS = {
    "sql_select_limit": 1,
    "sql_safe_updates": 1,
    "max_join_size": 1,
    "tx_read_only": 1,
    "completion_type": 2,
    "max_statement_time": 50,
}
"""By the name of a global setting, one that protects a server from careless clients, and would cut ours short."""


@pytest.fixture
async def cursor(mariadb_url: str) -> AsyncIterator[Any]:
    """What an operator says to the server."""
    port = int(mariadb_url.rpartition(":")[2].partition("/")[0])
    connection = await asyncmy.connect(host="127.0.0.1", port=port, user="root", autocommit=True)
    async with connection.cursor() as found:
        yield found
    await connection.ensure_closed()


async def test_limits_that_a_server_sets_for_other_clients_neither_cut_answers_short_nor_refuse_calls(
    mariadb_url: str, options: MysqlOptions, cursor: Any
) -> None:
    before = dict[str, object]()
    try:
        for name, value in CARELESS.items():
            await cursor.execute(f"select @@global.{name}")
            ((before[name],),) = await cursor.fetchall()
            await cursor.execute(f"set global {name} = {value}")
        async with MysqlStore.opened(mariadb_url, options) as store:
            puts = [(POOL(f"p{number}"), b"1") for number in range(5)]
            (outcome,) = await store.commit([Batch(puts=puts)])
            assert isinstance(outcome, Committed)
            (found,) = await store.scan([Range(POOL())])
            assert [entry.key for entry in found] == [key for key, _ in puts]
            assert None not in await store.get([key for key, _ in puts])
            await store.advance(outcome.revision)
            assert [list(row) for row in await store._connections.read("select @@max_statement_time")] == [[0]]
    finally:
        for name, old in before.items():
            await cursor.execute(f"set global {name} = {old!r}")


async def test_many_handles_that_open_a_new_network_at_once_print_nothing(
    mariadb_url: str, options: MysqlOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver logs each warning of the server's, which goes to standard error where nothing else is set up."""
    caplog.set_level(logging.WARNING)

    async def open_and_write(number: int) -> None:
        async with MysqlStore.opened(mariadb_url, options) as store:
            await store.commit([Batch(puts=[(POOL(f"p{number}"), b"1")])])
            await store.advance(number + 1)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(open_and_write, number)
    async with MysqlStore.opened(mariadb_url, options) as store:
        assert await store.count([POOL()]) == [8]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("asyncmy")] == []


async def test_a_file_of_the_password_that_cannot_be_read_is_named(
    mariadb_url: str, options: MysqlOptions, tmp_path: Path
) -> None:
    for path, content in ((tmp_path / "none", None), (tmp_path / "binary", b"\xff")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StoreUnavailable, match=f"password_file: {path} cannot be read"):
            async with MysqlStore.opened(mariadb_url, MysqlOptions(network=options.network, password_file=path)):
                pass


async def test_no_error_shows_a_part_of_a_password_that_is_not_encoded() -> None:
    for raw in ("can@ary", "can/ary", "1/canary", "can#ary"):
        with pytest.raises(Exception, match="in whose password") as raised:
            async with MysqlStore.opened(f"mysql://user:{raw}@127.0.0.1:1/db"):
                pass
        assert "ary" not in str(raised.value) and not isinstance(raised.value, StoreError)
