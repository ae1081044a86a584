"""Connections that tell the truth: dead ones, other loops and tasks, servers that restart, refuse and come back."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import asyncpg
import attrs
import pytest
from closings import leaves_nothing

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Committed
from converge.errors import ForeignLoop, StoreError, StoreRefused, StoreUnavailable
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge.testing.proxy import host_and_port
from converge.testing.servers import free_port, postgres_server
from converge_store_sql import SqlOptions, SqlStore

AWAY_SEC = 5.0 if os.environ.get("FULL_TESTS") else 1.0
"""How long a server refuses writes, or is away."""

SOON_SEC = 5.0 if os.environ.get("FULL_TESTS") else 20.0
"""How long after a server came back, or a connection died, the next task may take; beside other tests a machine is
several times slower, and what hangs does so for `CALL_SEC`.
"""

CALL_SEC = 60.0


CANCEL = (80877102).to_bytes(4, "big")
"""With what PostgreSQL's protocol begins a connection that asks the server to stop the work of another."""


class Stalling:
    """A proxy that stops forwarding without closing anything: what a NAT does that has forgotten a connection."""

    def __init__(self, url: str) -> None:
        self._host, self._port = host_and_port(url)
        self._target = url
        self._generation = 0
        self.lost = 0
        """How many of the next connections lead nowhere."""
        self.begun: list[bytes] = []
        """With what each connection began, its length aside."""
        self.url = ""

    def forget(self) -> None:
        """Forward nothing more on the connections that are there; new ones work."""
        self._generation += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Stalling]:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            own = listener.extra(anyio.abc.SocketAttribute.local_port)
            self.url = self._target.replace(f"{self._host}:{self._port}", f"127.0.0.1:{own}", 1)
            group.start_soon(listener.serve, self._serve)
            yield self
            group.cancel_scope.cancel()

    async def _serve(self, client: anyio.abc.SocketStream) -> None:
        generation = self._generation
        if self.lost:
            self.lost, generation = self.lost - 1, -1
        async with (
            client,
            await anyio.connect_tcp(self._host, self._port) as server,
            anyio.create_task_group() as group,
        ):

            async def pump(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream) -> None:
                is_first = source is client
                try:
                    async for data in source:
                        if is_first:
                            self.begun.append(data[4:8])
                            is_first = False
                        if self._generation == generation:
                            await sink.send(data)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    pass
                if self._generation == generation:
                    group.cancel_scope.cancel()

            group.start_soon(pump, client, server)
            group.start_soon(pump, server, client)


class Echo(Agent):
    concurrency = 4

    async def on_task(self, task: Task) -> object:
        return task.inputs


@asynccontextmanager
async def at_work(url: str, direct: str, network: str) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """A node that works through the one URL; gives what submits a task by the other, and says how long it took."""
    slow = {"sql": {"connect_timeout_sec": CALL_SEC, "timeout_sec": CALL_SEC}}
    async with (
        Node(store=url, network=network, lease_sec=CALL_SEC * 1.5, call_sec=CALL_SEC, options=slow) as node,
        open_store(direct, network=network) as other,
    ):
        await node.spawn(Echo, pool="docs")
        tasks = TaskManager(other)

        async def one() -> float:
            began = anyio.current_time()
            await tasks.result(await tasks.submit(Task(pool_id="docs")), timeout=60)
            return anyio.current_time() - began

        await one()
        yield one


async def test_a_connection_that_died_without_a_word_costs_seconds(postgres_url: str, options: SqlOptions) -> None:
    async with (
        Stalling(postgres_url).running() as proxy,
        at_work(proxy.url, postgres_url, options.network) as one,
    ):
        for lost in (0, 1, 2):
            proxy.forget()
            proxy.lost = lost  # of those that take the place of the dead ones
            assert await one() < SOON_SEC


async def test_a_call_that_is_cut_short_asks_the_server_for_nothing_more(
    postgres_url: str, options: SqlOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge_store_sql.postgresql.connect.IDLE_SEC", 0.0)
    monkeypatch.setattr("converge_store_sql.postgresql.connect.DOUBT_SEC", 60.0)  # so that the limit comes first
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with Stalling(postgres_url).running() as proxy:
        hasty = attrs.evolve(options, timeout_sec=3.0)  # in which others of its calls must be answered
        async with SqlStore.open(proxy.url + "?sslmode=disable", hasty) as store:
            assert await store.get([POOL("p")]) == [None]
            proxy.forget()
            assert await store.get([POOL("p")]) == [None], "the connection that was idle was tried, and ended"
            monkeypatch.setattr("converge_store_sql.postgresql.connect.IDLE_SEC", 60.0)
            proxy.forget()
            with pytest.raises(StoreUnavailable, match="no answer in time"):
                await store.get([POOL("p")])
            assert await store.get([POOL("p")]) == [None]
            proxy.forget()
            with anyio.move_on_after(0.2) as cancelled:
                await store.get([POOL("p")])
            assert cancelled.cancelled_caught
            assert await store.get([POOL("p")]) == [None]
    assert proxy.begun.count(CANCEL) == 0, "it would hang as the call does"
    gc.collect()
    assert told == []


async def test_attempts_to_connect_that_race_leave_nothing_behind(
    postgres_url: str, options: SqlOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    for milliseconds in range(8):
        monkeypatch.setattr("converge_store_sql.postgresql.connect.HEDGE_SEC", milliseconds / 1_000)
        async with SqlStore.open(postgres_url, options) as store, anyio.create_task_group() as group:
            for _ in range(options.connections):
                group.start_soon(store.time)
    gc.collect()
    assert told == []
    server = await asyncpg.connect(postgres_url)
    left = "select count(*) from pg_stat_activity where application_name = 'converge' and state = 'idle'"

    async def is_alone() -> bool:
        return bool(await server.fetchval(left) == 0)

    await wait_until(is_alone, timeout=30)
    await server.close()


async def test_a_connection_that_cannot_be_closed_in_order_holds_up_no_other(
    postgres_url: str, options: SqlOptions
) -> None:
    async with Stalling(postgres_url).running() as proxy, SqlStore.open(proxy.url, options) as store:
        async with anyio.create_task_group() as group:
            for _ in range(options.connections):
                group.start_soon(store.time)
        proxy.forget()
        began = anyio.current_time()
    assert anyio.current_time() - began < SOON_SEC


async def test_a_call_that_waits_for_a_lock_is_not_taken_for_dead(options: SqlOptions, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        async with (
            SqlStore.open(postgres_url, attrs.evolve(options, lock_timeout_sec=CALL_SEC)) as store,
            anyio.create_task_group() as group,
        ):
            await store.commit([Batch(puts=[(POOL("p"), b"1")])])
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(f"select 1 from {options.network}_pool for update")

            async def write() -> None:
                (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"2")])])
                assert isinstance(outcome, Committed)

            group.start_soon(write)
            await anyio.sleep(3)  # the time after which a call is doubted has to pass twice
            await transaction.rollback()
    finally:
        await connection.close()


async def test_a_connection_that_was_idle_is_tried_before_it_is_used(
    postgres_url: str, options: SqlOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge_store_sql.postgresql.connect.IDLE_SEC", 0.0)
    async with Stalling(postgres_url).running() as proxy, SqlStore.open(proxy.url, options) as store:
        await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        proxy.forget()
        with anyio.fail_after(SOON_SEC):
            (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"2")])])
        assert isinstance(outcome, Committed)


async def test_a_loop_that_was_held_while_an_idle_connection_was_tried_costs_no_call(
    postgres_url: str, options: SqlOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge_store_sql.postgresql.connect.IDLE_SEC", 0.0)
    monkeypatch.setattr("converge_store_sql.postgresql.connect.CHECK_SEC", 0.05)
    async with SqlStore.open(postgres_url, options) as store:
        await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        for steps in range(1, 6):
            async with asyncio.TaskGroup() as group:
                group.create_task(store.commit([Batch(puts=[(POOL("p"), b"2")])]))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                time.sleep(0.1)  # noqa: ASYNC251  # the answer and the end of the time come together


async def test_a_watch_whose_connection_was_ended_hears_again(
    store: SqlStore, options: SqlOptions, postgres_url: str
) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        watch = aiter(store.watch(["c"]))
        await anext(watch)
        before = await connection.fetchval(f"select pid from {options.network}_waiter")
        assert await connection.fetchval("select pg_terminate_backend($1)", before)
        with anyio.fail_after(SOON_SEC):
            await anext(watch)  # told to look, for what came meanwhile was not heard
        await wait_until_registered(connection, options.network, before)
        await store.commit([], wake=["c"])
        with anyio.fail_after(SOON_SEC):
            await anext(watch)
        await watch.aclose()  # type: ignore[attr-defined]  # every watch is an async generator
    finally:
        await connection.close()


async def wait_until_registered(connection: asyncpg.Connection, network: str, before: int) -> None:
    async def is_there() -> bool:
        return bool(await connection.fetchval(f"select count(*) from {network}_waiter where pid <> $1", before))

    await wait_until(is_there)


async def test_a_handle_in_another_loop_is_refused_and_goes_on_in_its_own(store: SqlStore) -> None:
    async def use() -> None:
        with pytest.raises(ForeignLoop):
            await store.get([POOL("p")])
        with pytest.raises(ForeignLoop):
            await store.commit([Batch(puts=[(POOL("p"), b"1")])])

    await anyio.to_thread.run_sync(lambda: asyncio.run(use()))
    assert await store.get([POOL("p")]) == [None]


async def test_a_handle_may_be_closed_in_another_task(postgres_url: str, options: SqlOptions) -> None:
    opening = SqlStore.open(postgres_url, options)
    store = await asyncio.create_task(opening.__aenter__())
    watch = aiter(store.watch(["c"]))
    await anext(watch)
    await watch.aclose()  # type: ignore[attr-defined]  # every watch is an async generator
    await store.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["c"])
    await asyncio.create_task(opening.__aexit__(None, None, None))


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), asyncio.CancelledError()])
async def test_what_the_block_raised_comes_out_as_it_is(
    postgres_url: str, options: SqlOptions, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        async with SqlStore.open(postgres_url, options) as store:
            watch = aiter(store.watch(["c"]))
            await anext(watch)
            raise error
    assert caught.value is error


async def test_work_flows_again_after_a_restart_and_after_refused_writes(namespace: str) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="converge-back-", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as stack:
            with postgres_server(fsync=False, directory=Path(folder), port=port) as url:
                one = await stack.enter_async_context(at_work(url, url, namespace))
            await anyio.sleep(AWAY_SEC)  # the server is away for this long
            with postgres_server(fsync=False, directory=Path(folder), port=port):
                assert await one() < SOON_SEC
                server = await asyncpg.connect(url)
                await server.execute("alter system set default_transaction_read_only = on")
                await server.fetchval("select pg_reload_conf()")
                assert await one() < SOON_SEC, "a default for others is not ours"
                await server.execute("set default_transaction_read_only = off")
                await server.execute("alter system reset default_transaction_read_only")
                await server.close()
                await stack.aclose()


async def test_a_rotated_password_is_read_again(namespace: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first-canary\n")
    rules = Path(tempfile.gettempdir()) / f"converge-hba-{free_port()}"
    rules.write_text("host all postgres 127.0.0.1/32 trust\nhost all agents 127.0.0.1/32 scram-sha-256\n")
    rules.chmod(0o644)
    try:
        with postgres_server(fsync=False, options=[f"hba_file={rules}"]) as url:
            server = await asyncpg.connect(url)
            await server.execute("create role agents superuser login password 'first-canary'")
            named = url.replace("postgres@", "agents@")
            options = SqlOptions(network=namespace, password_file=file)
            async with SqlStore.open(named, options) as store:
                assert await store.get([POOL("p")]) == [None]
                await server.execute("alter role agents password 'second-canary'")
                ended = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename = 'agents'"
                assert await server.fetchval(ended) > 0
                with pytest.raises(StoreError):
                    await store.commit([Batch(puts=[(POOL("p"), b"1")])])
                with pytest.raises(StoreRefused, match="password") as caught:
                    await store.get([POOL("p")])
                shown, error = "", caught.value
                while error is not None:
                    shown, error = shown + repr(error) + str(error), error.__cause__  # type: ignore[assignment]
                assert "canary" not in shown
                file.write_text("second-canary\n")
                assert await store.get([POOL("p")]) == [None]
            await server.close()
    finally:
        rules.unlink()


async def test_a_pool_made_before_a_crash_is_there_after_it(namespace: str) -> None:
    with tempfile.TemporaryDirectory(prefix="converge-kill-", ignore_cleanup_errors=True) as folder:
        with postgres_server(directory=Path(folder)) as url:
            async with open_store(url, network=namespace) as store:
                await PoolManager(store).create_pool(Pool(id="docs"))
                os.kill(url.pid, 9)
        with postgres_server(directory=Path(folder)) as url:
            async with open_store(url, network=namespace) as store:
                assert (await PoolManager(store).get("docs")).id == "docs"


async def test_an_end_that_is_cancelled_leaves_no_connection(postgres_url: str, options: SqlOptions) -> None:
    await leaves_nothing(postgres_url, lambda: SqlStore.open(postgres_url, options))
