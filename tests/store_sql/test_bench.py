"""How `plugins check sql --quick` gives a network of PostgreSQL to the next test: emptied, once nobody uses it."""

from __future__ import annotations

import asyncpg
import pytest

from converge.contracts.store import Batch, Committed
from converge.model.keys import POOL
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql import testing as bench

PUT = Batch((), ((POOL("p"), b"{}"),), (), None)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of a busy machine takes a while to end a connection."""
    monkeypatch.setattr(bench, "USED_CHECKS", 6_000)


@pytest.fixture
async def url(postgres_url: str) -> str:
    """The server, by the name of the user whose connections the bench waits for."""
    connection = await asyncpg.connect(postgres_url)
    if not await connection.fetchval("select count(*) from pg_roles where rolname = $1", bench.USER):
        await connection.execute(f"create role {bench.USER} login; grant create on schema public to {bench.USER}")
    await connection.close()
    return postgres_url.replace("postgres@", f"{bench.USER}@", 1)


async def test_what_an_ended_test_has_left_is_gone_and_revisions_go_on(
    url: str, postgres_url: str, options: SqlOptions
) -> None:
    with bench._operator(postgres_url) as emptied:
        async with SqlStore.open(url, options) as store:
            (before,) = await store.commit([PUT])
            await store.note_format(1_000_000)
        assert emptied(options.network)
        async with SqlStore.open(url, options) as store:  # which a later format would refuse
            assert await store.get([POOL("p")]) == [None]
            (after,) = await store.commit([PUT])
    assert isinstance(before, Committed) and isinstance(after, Committed) and after.revision > before.revision


async def test_a_network_that_somebody_uses_is_given_to_nobody(
    url: str, postgres_url: str, options: SqlOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "USED_CHECKS", 3)
    with bench._operator(postgres_url) as emptied:
        async with SqlStore.open(url, options) as store:
            await store.commit([PUT])
            assert not emptied(options.network)
            (entry,) = await store.get([POOL("p")])
            assert entry is not None
        monkeypatch.setattr(bench, "USED_CHECKS", 6_000)
        assert emptied(options.network)


def test_a_network_that_was_never_opened_is_as_good_as_new(postgres_url: str, options: SqlOptions) -> None:
    with bench._operator(postgres_url) as emptied:
        assert emptied(options.network)
