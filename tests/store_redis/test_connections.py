"""Connections that tell the truth: dead ones are found in time, handles are used where they were opened, and closed
anywhere.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from closings import leaves_nothing

from converge import Agent, Node, Task
from converge.contracts.store import Batch, Committed
from converge.errors import ForeignLoop, ForkedHandle, OutcomeUnknown, StoreRefused, StoreUnavailable
from converge.model.keys import POOL
from converge.testing._processes.still import stand_still
from converge.testing.cuts import CutProxy, cut_proxy
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port, redis_server
from converge_store_redis import RedisOptions, RedisStore, connect

Send = Callable[..., Awaitable[Any]]
PUT = Batch(puts=[(POOL("p"), b"1")])
NEAR_SEC = 5.0 if os.environ.get("FULL_TESTS") == "1" else 15.0
"""How long after a connection died the next task may take; a call that is given up takes 30 s. Beside other tests a
machine is several times slower.
"""


@pytest.fixture
async def far(redis_url: str, options: RedisOptions) -> AsyncIterator[tuple[RedisStore, CutProxy]]:
    """A handle behind a proxy of its own."""
    with cut_proxy(redis_url) as proxy:
        async with RedisStore.open(proxy.url, options) as store:
            yield store, proxy


async def test_a_connection_that_died_without_a_word_is_found_while_a_call_waits(
    far: tuple[RedisStore, CutProxy],
) -> None:
    store, proxy = far
    await store.commit([PUT])
    proxy.freeze()
    with anyio.fail_after(NEAR_SEC):
        with pytest.raises(OutcomeUnknown, match="dead"):
            await store.commit([PUT])
        (outcome,) = await store.commit([PUT])
    assert isinstance(outcome, Committed)


async def test_a_read_on_a_dead_connection_says_that_nothing_was_heard(far: tuple[RedisStore, CutProxy]) -> None:
    store, proxy = far
    proxy.freeze()
    with anyio.fail_after(NEAR_SEC), pytest.raises(StoreUnavailable):
        await store.get([POOL("p")])


async def test_an_idle_connection_is_asked_before_it_is_used(
    far: tuple[RedisStore, CutProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "IDLE_SEC", 0.0)
    store, proxy = far
    await store.commit([PUT])
    proxy.freeze()
    with anyio.fail_after(NEAR_SEC):
        (outcome,) = await store.commit([PUT])
    assert isinstance(outcome, Committed), "the caller does not even notice"


async def test_a_frozen_server_is_not_taken_for_a_dead_connection(
    namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "SILENT_SEC", 0.1)
    monkeypatch.setattr(connect, "REMAINING_SEC", 0.1)
    with redis_server() as url:
        async with RedisStore.open(url, RedisOptions(network=namespace)) as store, anyio.create_task_group() as group:
            stand_still(url.pid)
            outcomes: list[object] = []

            async def write() -> None:
                outcomes.extend(await store.commit([PUT]))

            group.start_soon(write)
            await anyio.sleep(1.5)  # for so long the server is away, and the connection silent
            os.kill(url.pid, signal.SIGCONT)
        assert isinstance(outcomes[0], Committed)


async def test_a_watch_that_died_without_a_word_is_rebuilt(
    far: tuple[RedisStore, CutProxy], store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge_store_redis.sleepers.PING_SEC", 0.3)
    watching, proxy = far
    looks: list[float] = []

    async def watch() -> None:
        while True:  # as core does
            try:
                async for _ in watching.watch(["c"]):
                    looks.append(time.monotonic())
            except StoreUnavailable:
                await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        await wait_until(lambda: len(looks) == 1)
        proxy.freeze()
        await wait_until(lambda: len(looks) >= 2, timeout=NEAR_SEC * 2, what="it looks again")
        seen = len(looks)
        await store.commit([], wake=["c"])
        await wait_until(lambda: len(looks) > seen, timeout=NEAR_SEC, what="a wake over the new connection")
        group.cancel_scope.cancel()


async def test_a_watch_of_a_server_that_is_away_says_so(tmp_path: Path, namespace: str) -> None:
    port = free_port()
    with redis_server(directory=tmp_path, port=port) as url:
        opened = RedisStore.open(url, RedisOptions(network=namespace))
        store = await opened.__aenter__()
        watch = store.watch(["c"])
        await anext(watch)
    try:
        with pytest.raises(StoreUnavailable), anyio.fail_after(NEAR_SEC):
            await anext(watch)
    finally:
        await watch.aclose()  # type: ignore[attr-defined]  # an async generator
        await opened.__aexit__(None, None, None)


async def test_another_event_loop_may_not_use_the_handle_and_harms_nobody(store: RedisStore) -> None:
    async def use() -> str:
        for call in (store.get([POOL("p")]), store.commit([PUT]), store.time(), store.scan([])):
            try:
                await call
            except ForeignLoop as error:
                said = str(error)
        return said

    said = await anyio.to_thread.run_sync(asyncio.run, use())
    assert "from_thread" in said
    (outcome,) = await store.commit([PUT])
    assert isinstance(outcome, Committed)


async def test_a_handle_that_is_closed_inside_a_cancelled_scope_lets_no_foreign_cancellation_out(
    redis_url: str, options: RedisOptions
) -> None:
    with anyio.CancelScope() as scope:
        async with RedisStore.open(redis_url, options) as store:
            watch = store.watch(["c"])
            await anext(watch)
            scope.cancel()
    assert not scope.cancelled_caught, "nothing awaited in the block"
    await anyio.lowlevel.checkpoint()
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0


async def test_what_the_block_raises_comes_out_as_it_is(redis_url: str, options: RedisOptions) -> None:
    for kind in (SystemExit, KeyError):
        raised = kind("x")
        try:
            async with RedisStore.open(redis_url, options) as store:
                await anext(store.watch(["c"]))
                raise raised
        except (SystemExit, KeyError) as error:
            assert error is raised


async def test_a_handle_may_be_closed_in_another_task_than_it_was_opened_in(
    redis_url: str, options: RedisOptions
) -> None:
    stack = AsyncExitStack()
    found: list[RedisStore] = []

    async def open_() -> None:
        found.append(await stack.enter_async_context(RedisStore.open(redis_url, options)))
        await anext(found[0].watch(["c"]))

    async with anyio.create_task_group() as group:
        group.start_soon(open_)
    await found[0].commit([PUT])
    async with anyio.create_task_group() as group:
        group.start_soon(stack.aclose)
    gc.collect()


async def test_a_forked_child_may_not_use_the_handle_and_its_parent_goes_on(store: RedisStore) -> None:
    await store.commit([PUT])
    child = os.fork()
    if child == 0:
        try:
            store.get([POOL("p")]).send(None)
        except ForkedHandle:
            gc.collect()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7  # noqa: ASYNC222  # it ends at once
    (outcome,) = await store.commit([PUT])
    assert isinstance(outcome, Committed)


async def test_a_password_that_changes_is_read_again_and_nobody_restarts(
    tmp_path: Path, namespace: str, send: Send
) -> None:
    file = tmp_path / "password"
    with redis_server() as url:
        await send(url, "ACL", "SETUSER", "worker", "on", ">old", "~*", "&*", "+@all")
        file.write_text("old\n")
        options = RedisOptions(network=namespace, password_file=file)
        async with RedisStore.open(url.replace("//", "//worker@"), options) as store:
            await store.commit([PUT])
            await send(url, "ACL", "SETUSER", "worker", "resetpass", ">new")
            await send(url, "CLIENT", "KILL", "USER", "worker")
            await anyio.lowlevel.checkpoint()
            with pytest.raises((StoreRefused, OutcomeUnknown)):
                await store.commit([PUT])
            with pytest.raises(StoreRefused, match="password"):
                await store.commit([PUT])
            file.write_text("new\n")
            (outcome,) = await store.commit([PUT])
            assert isinstance(outcome, Committed)


async def test_a_password_file_that_is_gone_for_a_moment_is_a_store_that_is_away(
    tmp_path: Path, namespace: str, send: Send
) -> None:
    file = tmp_path / "password"
    with redis_server() as url:
        await send(url, "ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
        file.write_text("secret\n")
        options = RedisOptions(network=namespace, password_file=file)
        async with RedisStore.open(url.replace("//", "//worker@"), options) as store:
            await store.commit([PUT])
            file.unlink()
            await send(url, "CLIENT", "KILL", "USER", "worker")
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                await store.commit([PUT])
            async with store.reopen() as again:
                for one in (store, again):
                    with pytest.raises(StoreUnavailable, match="password_file"):
                        await one.get([POOL("p")])
                file.write_text("secret\n")
                for one in (store, again):
                    (entry,) = await one.get([POOL("p")])
                    assert entry is not None
            file.unlink()
            await send(url, "CLIENT", "KILL", "USER", "worker")


async def test_a_socket_file_is_a_place_like_any_other(tmp_path: Path, namespace: str) -> None:
    path = tmp_path / "redis.sock"
    with redis_server(options=("--unixsocket", str(path))):
        async with RedisStore.open(f"unix://{path}?db=1", RedisOptions(network=namespace)) as store:
            await store.commit([PUT], wake=["c"])
            assert (await store.get([POOL("p")]))[0] is not None


class Quick(Agent):
    """Ends at once."""

    async def on_task(self, task: Task) -> int:
        """See the class."""
        return task.attempts


async def test_whatever_befell_the_connections_work_flows_within_seconds_and_no_process_restarts(
    tmp_path: Path, namespace: str, send: Send
) -> None:
    port = free_port()
    with cut_proxy(f"redis://127.0.0.1:{port}/0") as proxy:
        server = redis_server(directory=tmp_path, port=port)
        url = server.__enter__()
        try:
            async with Node(store=proxy.url, network=namespace, poll_sec=0.3, lease_sec=6.0) as node:
                await node.spawn(Quick, pool="p")

                async def flows(after: str) -> None:
                    began = time.monotonic()
                    while True:
                        try:
                            task = Task(pool_id="p", dedup_key=f"{after}-{began}")
                            task_id = await node.tasks.submit(task, timeout=NEAR_SEC)
                            await node.tasks.result(task_id, timeout=NEAR_SEC)
                            break
                        except (OutcomeUnknown, StoreUnavailable, StoreRefused, TimeoutError):
                            assert time.monotonic() - began < 3 * NEAR_SEC, f"nothing flows after {after}"
                            await anyio.sleep(0.05)  # as who repeats a submit does
                    await wait_until(lambda: node.health().is_ready, timeout=3 * NEAR_SEC, what=f"ready after {after}")

                def is_not_ready() -> bool:
                    return not node.health().is_ready

                await flows("the start")
                proxy.freeze()
                await flows("connections that died")
                await send(url, "CLIENT", "KILL", "TYPE", "pubsub")
                await flows("the loss of the watch")
                await send(url, "CONFIG", "SET", "min-replicas-to-write", "1")
                await wait_until(is_not_ready, timeout=3 * NEAR_SEC, what="a store without writes shows")
                await send(url, "CONFIG", "SET", "min-replicas-to-write", "0")
                await flows("writes that were refused")
                server.__exit__(None, None, None)
                await wait_until(is_not_ready, timeout=3 * NEAR_SEC, what="a store that is away shows")
                server = redis_server(directory=tmp_path, port=port)
                server.__enter__()
                await flows("a restart")
        finally:
            server.__exit__(None, None, None)


async def test_an_end_that_is_cancelled_leaves_no_connection(redis_url: str, options: RedisOptions) -> None:
    await leaves_nothing(redis_url, lambda: RedisStore.open(redis_url, options))
