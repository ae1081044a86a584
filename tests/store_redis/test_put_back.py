"""Data of before that come back under live processes, which others then bring beyond all that those saw: who was told
that something is written, and it is not, hears of it. No connection breaks: nothing but what is written can tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Committed
from converge.errors import StoreRolledBack
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge.testing.servers import ServerUrl, redis_server
from converge_store_redis import RedisOptions, RedisStore
from converge_store_redis.witness import Witness

Send = Callable[..., Awaitable[Any]]
Restore = Callable[[], Awaitable[None]]
Backup = Callable[[str, ServerUrl, Send, str], AbstractAsyncContextManager[Restore]]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUrl]:
    """One of these tests' own: all of its data come back."""
    with redis_server(options=("--enable-debug-command", "local", "--appendonly", "no")) as url:
        yield url


@asynccontextmanager
async def of_keys(network: str, url: ServerUrl, send: Send, _folder: str) -> AsyncIterator[Restore]:
    """The network's keys, as DUMP gives them."""
    keys = await send(url, "KEYS", f"{{{network}}}:*")
    dumps = {key: await send(url, "DUMP", key) for key in keys}

    async def restore() -> None:
        await send(url, "FLUSHALL")
        for key, dump in dumps.items():
            await send(url, "RESTORE", key, 0, dump, "REPLACE")

    yield restore


@asynccontextmanager
async def of_a_snapshot(_network: str, url: ServerUrl, send: Send, _folder: str) -> AsyncIterator[Restore]:
    """A snapshot, which the running server loads again."""
    await send(url, "SAVE")

    async def restore() -> None:
        await send(url, "DEBUG", "RELOAD", "NOSAVE")

    yield restore


@asynccontextmanager
async def of_a_follower(_network: str, url: ServerUrl, send: Send, folder: str) -> AsyncIterator[Restore]:
    """Another server with the data of now, which the running one follows for a moment."""
    with redis_server(directory=Path(folder), options=("--repl-diskless-sync-delay", "0")) as other:

        async def copy(source: ServerUrl, target: ServerUrl) -> None:
            async def follows() -> bool:
                return b"master_link_status:up" in await send(target, "INFO", "replication")

            await send(target, "REPLICAOF", "127.0.0.1", urlsplit(source).port)
            await wait_until(follows, timeout=60)
            await send(target, "REPLICAOF", "NO", "ONE")

        await copy(url, other)

        async def restore() -> None:
            await copy(other, url)

        yield restore


@pytest.mark.parametrize("backup", [of_keys, of_a_snapshot, of_a_follower])
async def test_data_that_lack_what_was_acknowledged_are_noticed_though_others_went_beyond(
    server: ServerUrl,
    send: Send,
    namespace: str,
    tmp_path: Path,
    backup: Backup,
    go_beyond: Callable[[str, str], Awaitable[None]],
) -> None:
    async with (
        open_store(server, network=namespace) as store,
        open_store(server, network=namespace) as late,
        open_store(server, network=namespace) as whole,
    ):
        tasks = TaskManager(store)
        await PoolManager(store).create_pool(Pool(id="docs"))
        kept = await TaskManager(whole).submit(Task(pool_id="docs"))
        async with backup(namespace, server, send, str(tmp_path)) as restore:
            await tasks.submit(Task(pool_id="docs"))
            await TaskManager(late).submit(Task(pool_id="docs"))
            await restore()
        await go_beyond(server, namespace)
        for lossy in (tasks, TaskManager(late)):
            with pytest.raises(StoreRolledBack, match="converge store accept"):
                await lossy.submit(Task(pool_id="docs"))
            with pytest.raises(StoreRolledBack):
                await lossy.submit(Task(pool_id="docs"))
        after = await TaskManager(whole).submit(Task(pool_id="docs"))  # of its own writes none is lost
        assert {kept, after} < {task.id for task in await TaskManager(whole).list(pool_id="docs")}
        assert len(await tasks.list(pool_id="docs")) == 3, "what was refused was not written"


async def test_calls_that_are_under_way_together_are_all_told_what_is_lost(
    server: ServerUrl, send: Send, namespace: str
) -> None:
    batch = [Batch(puts=[(POOL("p"), b"1")])]
    async with RedisStore.open(server, RedisOptions(network=namespace)) as store:
        (committed,) = await store.commit(batch)
        assert isinstance(committed, Committed)
        await send(server, "FLUSHALL")
        told = await asyncio.gather(*(store.commit(batch) for _ in range(3)), return_exceptions=True)
        assert [f"revision {committed.revision}," in str(one) for one in told] == [True] * 3, told
        assert isinstance((await store.commit(batch))[0], Committed), "what comes after it is of the new history"


async def test_a_handle_that_is_closed_leaves_nothing_of_its_own(server: ServerUrl, send: Send, namespace: str) -> None:
    async with open_store(server, network=namespace) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        assert await send(server, "KEYS", f"{{{namespace}}}:l:*")
    assert not await send(server, "KEYS", f"{{{namespace}}}:l:*")


@pytest.mark.parametrize("passed_sec", [8 * 86_400, -60], ids=["a week suspended", "a clock set back"])
def test_a_witness_that_its_server_may_have_removed_is_not_demanded(
    monkeypatch: pytest.MonkeyPatch, passed_sec: float
) -> None:
    witness, now = Witness(b"w:"), time.time()
    witness.wrote(7)
    assert witness.demanded() == 7
    monkeypatch.setattr(time, "time", lambda: now + passed_sec)
    assert witness.demanded() == 0
