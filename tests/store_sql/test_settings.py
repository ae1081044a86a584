"""What a PostgreSQL server, database or role is set to for other clients: what must not matter, and what is refused."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from converge.contracts.store import Batch, Committed
from converge.errors import ConvergeError, InvalidValue, StoreBusy, StoreRefused, StoreUnavailable, Unsupported
from converge.model.keys import POOL
from converge_store_sql import SqlOptions, SqlStore

PAGE = Path(__file__).parents[2] / "docs/reference/postgresql.md"

LIMITS = (
    "statement_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '1ms'",
    "idle_session_timeout = '1ms'",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_read_only = on",
)


@pytest.fixture
async def operator(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    """What an operator says to the server."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


@pytest.fixture
async def role_url(postgres_url: str, namespace: str, operator: asyncpg.Connection) -> AsyncIterator[str]:
    """The server as a role of the test's own, named after its network."""
    await operator.execute(f"create role {namespace} login superuser")
    yield postgres_url.replace("postgres@", f"{namespace}@")
    await operator.execute(f"drop owned by {namespace} cascade; drop role {namespace}")


async def test_limits_of_a_role_for_careless_clients_do_not_cut_calls_short(
    role_url: str, options: SqlOptions, operator: asyncpg.Connection
) -> None:
    for limit in LIMITS:
        await operator.execute(f"alter role {options.network} set {limit}")
    async with SqlStore.open(role_url, options) as store:
        for number in range(2):
            (outcome,) = await store.commit([Batch(puts=[(POOL(f"p{number}"), b"1")])])
            assert isinstance(outcome, Committed)
        assert await store.count([POOL()]) == [2]


async def test_a_limit_that_ends_the_connection_is_one_error_and_nothing_is_made(
    role_url: str, options: SqlOptions, operator: asyncpg.Connection
) -> None:
    """Older servers do not know this one, so that no connection can be begun without it."""
    await operator.execute(f"alter role {options.network} set transaction_timeout = '1ms'")
    with pytest.raises((StoreBusy, StoreUnavailable)):
        async with SqlStore.open(role_url, options):
            pass
    assert await operator.fetchval("select to_regclass($1)", f"{options.network}_schema") is None


async def test_a_database_whose_encoding_lacks_characters_is_refused_before_anything_is_made(
    postgres_url: str, options: SqlOptions, operator: asyncpg.Connection
) -> None:
    name = f"latin_{options.network}"
    await operator.execute(f"create database {name} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0")
    url = postgres_url.rpartition("/")[0] + f"/{name}"
    try:
        with pytest.raises(Unsupported, match="LATIN1"):
            async with SqlStore.open(url, options):
                pass
        assert [one.code for one in (await SqlStore.look(url, options)).findings if one.code == "encoding"]
    finally:
        await operator.execute(f"drop database {name} with (force)")


@pytest.mark.parametrize("path", ["nowhere", "''"])
async def test_a_search_path_without_a_schema_is_named(
    role_url: str, options: SqlOptions, operator: asyncpg.Connection, path: str
) -> None:
    await operator.execute(f"alter role {options.network} set search_path = {path}")
    with pytest.raises(StoreRefused, match=r"search_path .* option schema"):
        async with SqlStore.open(role_url, options):
            pass


async def test_what_the_url_says_wrongly_is_refused_and_not_taken_for_a_server_that_is_away(
    postgres_url: str, options: SqlOptions, tmp_path: Path
) -> None:
    cases: list[tuple[str, type[ConvergeError], str]] = [
        (f"{postgres_url}?bogus=1", StoreRefused, "check the URL"),
        (f"{postgres_url}?DateStyle=soon", StoreRefused, "check the URL"),
        (postgres_url.replace("postgres@", "u:can/ary@"), InvalidValue, "in whose password"),
        (postgres_url.replace("postgres@", "u:1?canary@"), InvalidValue, "in whose password"),
        (postgres_url.replace("127.0.0.1", "::1"), InvalidValue, "around an IPv6 address"),
    ]
    for url, kind, words in cases:
        with pytest.raises(kind, match=words) as raised:
            async with SqlStore.open(url, options):
                pass
        assert "ary" not in str(raised.value)
    (tmp_path / "binary").write_bytes(b"\xff")
    for path in (tmp_path / "none", tmp_path / "binary"):
        with pytest.raises(StoreUnavailable, match=f"password_file: {path} cannot be read"):
            async with SqlStore.open(postgres_url, SqlOptions(network=options.network, password_file=path)):
                pass


async def test_a_table_that_was_removed_is_refused_with_what_makes_it_anew(
    postgres_url: str, options: SqlOptions, operator: asyncpg.Connection
) -> None:
    async with SqlStore.open(postgres_url, options) as store:
        await operator.execute(f"drop table {options.network}_pool cascade")
        with pytest.raises(StoreRefused, match="converge store migrate"):
            await store.commit([Batch(puts=[(POOL("p"), b"1")])])


async def test_a_network_whose_tables_alone_were_put_back_is_given_its_functions_and_view(
    postgres_url: str, options: SqlOptions, operator: asyncpg.Connection
) -> None:
    """A dump of the tables has no functions, and without them its view cannot be put back."""
    network, functions = options.network, ("lost_race", "json", "moment", "number")
    async with SqlStore.open(postgres_url, options) as store:
        await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        for name in functions:
            await operator.execute(f"drop routine {network}_{name} cascade")
        with pytest.raises(StoreRefused, match="converge store migrate"):
            await store.commit([Batch(puts=[(POOL("p"), b"2")])])
    missing = await SqlStore.pending(postgres_url, options)
    assert missing == [f"the function {network}_lost_race", f"the view {network}_tasks, with its present columns"]
    async with SqlStore.open(postgres_url, options) as store:
        (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"3")])])
        assert isinstance(outcome, Committed)
    assert await SqlStore.pending(postgres_url, options) == []
    assert await operator.fetchval(f"select count(*) from {network}_tasks") == 0


async def test_a_network_that_was_removed_is_made_anew_though_its_functions_stay(
    postgres_url: str, options: SqlOptions, operator: asyncpg.Connection
) -> None:
    network = options.network
    (block,) = re.findall(r"^```text\n(do .*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    removal = block.replace("converge_", f"{network}_")
    async with SqlStore.open(postgres_url, options) as store:
        await store.commit([Batch(puts=[(POOL("p"), b"1")])])
    await operator.execute(removal.partition("drop function")[0])
    async with SqlStore.open(postgres_url, options) as store:
        assert await store.get([POOL("p")]) == [None]
    await operator.execute(removal)
    names = "select relname from pg_class union all select proname from pg_proc"
    assert await operator.fetch(f"select 1 from ({names}) n where starts_with(relname, $1)", network) == []


@pytest.mark.parametrize("query", ["sslmode=verify-full&sslrootcert=/none.pem", "sslmode=require&sslcert=/none.pem"])
async def test_a_file_of_the_url_that_is_not_there_is_told_from_a_server_that_is_not(query: str) -> None:
    with pytest.raises(StoreUnavailable, match=query.rpartition("&")[2].partition("=")[0]):
        async with SqlStore.open(f"postgresql://u@127.0.0.1/d?{query}"):
            pass
