"""A real streaming standby: refused in words before anything is written, and welcome once it was promoted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio
import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch, Committed, Durability
from converge.errors import OutcomeUnknown, StoreRefused, StoreRolledBack, StoreUnavailable
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge.testing.servers import ServerUrl, free_port, postgres_server
from converge_store_sql import SqlOptions, SqlStore

FOLLOWERS = "select count(*) from pg_stat_replication where state = 'streaming'"


@pytest.fixture(scope="module")
def primary() -> Iterator[ServerUrl]:
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="module")
def standby(primary: ServerUrl) -> Iterator[ServerUrl]:
    with postgres_server(follows=primary) as url:
        yield url


async def test_a_standby_is_refused_in_words_until_it_is_promoted(
    primary: ServerUrl, standby: ServerUrl, namespace: str
) -> None:
    with pytest.raises(StoreRefused, match="is a standby and takes no writes; name the primary"):
        async with open_store(standby, network=namespace):
            pass
    server, copy = await asyncpg.connect(primary), await asyncpg.connect(standby)
    await wait_until(lambda: _is(server, FOLLOWERS, 1), timeout=30)
    await server.execute("alter system set synchronous_standby_names = '*'")
    await server.fetchval("select pg_reload_conf()")
    await wait_until(lambda: _is(server, "show synchronous_standby_names", "*"), timeout=30)
    async with open_store(primary, network=namespace) as store:
        assert store.durability is Durability.D3, "each commit is on two disks"
        await PoolManager(store).create_pool(Pool(id="docs"))
        task_id = await TaskManager(store).submit(Task(pool_id="docs"))
        await wait_until(lambda: _is(copy, f"select count(*) from {namespace}_task", 1), timeout=30)
        engine = create_async_engine(standby.replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.connect() as connection:
            with pytest.raises(StoreRefused, match="on a standby"):
                await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
        await engine.dispose()
    await server.execute("alter system reset synchronous_standby_names")
    await server.fetchval("select pg_reload_conf()")
    await server.close()
    assert await copy.fetchval("select pg_promote(true, 60)")
    await copy.close()
    async with open_store(standby, network=namespace) as store:
        tasks = TaskManager(store)
        (claimed,) = await tasks.claim("worker", ["docs"])
        assert claimed.id == task_id
        await tasks.complete(claimed)
        assert (await tasks.get(task_id)).state is TaskState.COMPLETED


async def test_a_primary_that_comes_back_as_a_standby_takes_no_write_until_it_is_promoted(namespace: str) -> None:
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="converge-demoted-"))
    try:
        async with AsyncExitStack() as stack:
            with postgres_server(directory=folder, port=port, fsync=False) as url:
                store = await stack.enter_async_context(SqlStore.open(url, SqlOptions(network=namespace)))
                await store.commit([Batch(puts=[(POOL("p"), b"1")])])
            (folder / "data" / "standby.signal").touch()
            with postgres_server(directory=folder, port=port, fsync=False) as url:
                await wait_until(lambda: _answers(store), timeout=30)
                (entry,) = await store.get([POOL("p")])
                assert entry is not None and entry.value == b"1"
                with pytest.raises(StoreUnavailable, match="takes no writes: it became a standby"):
                    await store.commit([Batch(puts=[(POOL("p"), b"2")])])
                server = await asyncpg.connect(url)
                assert await server.fetchval("select pg_promote(true, 60)")
                await server.close()
                (outcome,) = await store.commit([Batch([(POOL("p"), entry.revision)], [(POOL("p"), b"2")])])
                assert isinstance(outcome, Committed), "what was refused was not written"
                await stack.aclose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _answers(store: SqlStore) -> bool:
    """Return whether the store is heard again: a connection that ended meanwhile may be found out by a call."""
    with suppress(StoreUnavailable):
        await store.time()
        return True
    return False


async def _is(connection: asyncpg.Connection, text: str, wanted: object) -> bool:
    return bool(await connection.fetchval(text) == wanted)


async def test_a_standby_that_takes_over_without_the_last_write_is_another_history(namespace: str) -> None:
    """Not only after many lost writes: a sequence goes on up to 32 above the last that the standby heard of."""
    port, folder = free_port(), _open_folder()
    networks = {"lossy": f"{namespace}l", "whole": f"{namespace}w"}
    try:
        async with AsyncExitStack() as stack:
            with postgres_server(directory=folder / "a", port=port, fsync=False) as url:
                tasks = {}
                for name, network in networks.items():
                    store = await stack.enter_async_context(open_store(url, network=network))
                    await PoolManager(store).create_pool(Pool(id="docs"))
                    tasks[name] = TaskManager(store)
                with postgres_server(directory=folder / "b", follows=url, fsync=False) as standby:
                    kept = await tasks["whole"].submit(Task(pool_id="docs"))
                    copy = await asyncpg.connect(standby)
                    await wait_until(lambda: _is(copy, f"select count(*) from {networks['whole']}_task", 1), timeout=30)
                    await copy.close()
                await tasks["lossy"].submit(Task(pool_id="docs"))
            with postgres_server(directory=folder / "b", port=port, fsync=False, options=["primary_conninfo="]) as url:
                server = await asyncpg.connect(url)
                assert await server.fetchval("select pg_promote(true, 60)")
                await server.close()
                for network in networks.values():
                    async with open_store(url, network=network) as other:
                        await TaskManager(other).submit(Task(pool_id="docs"))
                with pytest.raises(StoreRolledBack, match="another server took over"):
                    await _until_it_is_there(tasks["lossy"])
                await _until_it_is_there(tasks["whole"])
                assert (await tasks["whole"].get(kept)).pool_id == "docs"
                await stack.aclose()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _open_folder() -> Path:
    """Make a folder that the servers' user can enter, too."""
    folder = Path(tempfile.mkdtemp(prefix="converge-failover-"))
    folder.chmod(0o755)
    return folder


async def _until_it_is_there(tasks: TaskManager) -> None:
    """Submit; the connections of before end with the server that is gone."""
    with anyio.fail_after(60):
        while True:
            with suppress(StoreUnavailable, OutcomeUnknown):
                await tasks.submit(Task(pool_id="docs"))
                return
