"""Servers that are away, restart, refuse; connections that are cut."""

from __future__ import annotations

import gc
import socket
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from converge.contracts.store import ABSENT, Batch, Committed, Durability, Range
from converge.errors import (
    InvalidName,
    InvalidValue,
    NotApplied,
    OutcomeUnknown,
    SchemaTooNew,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    Unsupported,
    ValueTooLarge,
)
from converge.model.keys import POOL, STATE, TASK
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port, postgres_server
from converge.testing.store import Cut
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql.postgresql._errors import call_failed
from converge_store_sql.postgresql.inspection import durability


async def test_a_connection_cut_before_the_answer_leaves_the_outcome_unknown_and_the_write_in_place(
    proxied_url: str, cut: Callable[[Cut], None], options: SqlOptions, store: SqlStore
) -> None:
    async with SqlStore.open(proxied_url, options) as far:
        # The same shape of call, so that the cut one is a single message to the server.
        await far.commit([Batch([(POOL("before"), ABSENT)], [(POOL("before"), b"1")])])
        cut(Cut.AFTER)
        with pytest.raises(OutcomeUnknown):
            await far.commit([Batch([(POOL("p"), ABSENT)], [(POOL("p"), b"1")])])

        async def is_there() -> bool:
            return await store.get([POOL("p")]) != [None]

        await wait_until(is_there, what="the write of the call that was cut")
        (entry,) = await store.get([POOL("p")])
        assert await far.get([POOL("p")]) == [entry]


@pytest.mark.parametrize("moment", Cut)
async def test_a_read_that_is_cut_is_not_reported_as_an_unknown_outcome(
    proxied_url: str, cut: Callable[[Cut], None], options: SqlOptions, moment: Cut
) -> None:
    async with SqlStore.open(proxied_url, options) as far:
        await far.get([POOL("p")])
        cut(moment)
        with pytest.raises(StoreUnavailable):
            await far.get([POOL("p")])


async def test_a_call_that_is_cancelled_leaves_no_connection_behind(
    store: SqlStore, options: SqlOptions, postgres_url: str
) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        async with connection.transaction():
            await connection.execute(f"select 1 from {options.network}_pool for update")
            with anyio.move_on_after(0.2) as scope:
                await store.commit([Batch(puts=[(POOL("p"), b"2")])])
            assert scope.cancelled_caught
        (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"3")])])
        assert isinstance(outcome, Committed)
        waiting = (
            "select count(*) from pg_stat_activity where application_name = 'converge' and wait_event_type = 'Lock'"
        )

        async def nobody_waits() -> bool:
            return int(await connection.fetchval(waiting)) == 0

        await wait_until(nobody_waits)
    finally:
        await connection.close()


async def test_calls_cancelled_at_any_step_leave_no_error_of_the_driver_behind(
    store: SqlStore, options: SqlOptions, postgres_url: str
) -> None:
    for steps in range(20):
        async with SqlStore.open(postgres_url, options) as other:
            async with anyio.create_task_group() as group:
                for _ in range(options.connections):  # one of them finds a free connection, the others connect
                    group.start_soon(other.get, [POOL("p")])
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            assert await other.get([POOL("p")]) == [None]
    # What a future that nobody awaits holds is told by its end; the runner of the tests raises it.
    gc.collect()


async def test_connecting_to_a_server_that_never_answers_ends_soon_after_it_is_cancelled() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/postgres"
        with anyio.fail_after(30), anyio.move_on_after(0.1) as scope:
            async with SqlStore.open(url, SqlOptions(connect_timeout_sec=100)):
                raise AssertionError("it is open")
        assert scope.cancelled_caught


async def test_after_a_restart_of_the_server_the_same_handle_goes_on(namespace: str) -> None:
    port, options = free_port(), SqlOptions(network=namespace, connect_timeout_sec=2)
    with tempfile.TemporaryDirectory(prefix="converge-restart-", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as stack:
            with postgres_server(directory=Path(folder), port=port) as url:
                store = await stack.enter_async_context(SqlStore.open(url, options))
                (before,) = await store.commit([Batch(puts=[(POOL("p"), b"1")])])
            with pytest.raises(StoreError):
                await store.commit([Batch(puts=[(POOL("away"), b"1")])])
            with pytest.raises(StoreUnavailable):
                await store.get([POOL("p")])
            with postgres_server(directory=Path(folder), port=port):
                (entry,) = await store.get([POOL("p")])
                (after,) = await store.commit([Batch(puts=[(POOL("p"), b"2")])])
                assert isinstance(before, Committed) and isinstance(after, Committed)
                assert entry is not None and entry.revision == before.revision < after.revision


async def test_a_closed_port_is_an_unavailable_store_and_the_error_has_no_password() -> None:
    with pytest.raises(StoreUnavailable) as caught:
        async with SqlStore.open(f"postgresql://user:canary-secret@127.0.0.1:{free_port()}/db?password=canary-secret"):
            pass
    error: BaseException | None = caught.value
    while error is not None:
        assert "canary-secret" not in repr(error) + str(error)
        error = error.__cause__


async def test_a_role_without_rights_is_refused(store: SqlStore, options: SqlOptions, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    role = f"poor_{options.network}"
    try:
        await connection.execute(f"create role {role} login; grant select on {options.network}_schema to {role}")
        async with SqlStore.open(postgres_url.replace("postgres@", f"{role}@"), options) as poor:
            with pytest.raises(StoreRefused):
                await poor.commit([Batch(puts=[(POOL("p"), b"1")])])
        assert await store.get([POOL("p")]) == [None]
        with pytest.raises(StoreRefused):
            async with SqlStore.open(
                postgres_url.replace("postgres@", f"{role}@"), SqlOptions(network=f"{options.network}_x")
            ):
                pass
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")
        await connection.close()


async def test_a_row_that_stays_locked_is_a_busy_store_and_nothing_is_written(
    store: SqlStore, options: SqlOptions, postgres_url: str
) -> None:
    await store.commit([Batch(puts=[(POOL("p"), b"1")])])
    connection = await asyncpg.connect(postgres_url)
    try:
        async with connection.transaction():
            await connection.execute(f"select 1 from {options.network}_pool for update")
            async with SqlStore.open(postgres_url, SqlOptions(network=options.network, lock_timeout_sec=0.05)) as hasty:
                with pytest.raises(StoreBusy):
                    await hasty.commit([Batch(puts=[(POOL("p"), b"2"), (POOL("q"), b"2")])])
    finally:
        await connection.close()
    entries = await store.get([POOL("p"), POOL("q")])
    assert [entry.value if entry is not None else None for entry in entries] == [b"1", None]


def test_a_full_disk_is_a_full_store_and_not_applied() -> None:
    error = asyncpg.exceptions.DiskFullError("could not extend file")
    assert isinstance(call_failed(error, "postgresql://host/db", writes=True), StoreFull)


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03", "53200"])
def test_what_will_pass_is_busy_and_not_applied(code: str) -> None:
    error = asyncpg.exceptions.PostgresError("busy")
    error.sqlstate = code
    assert isinstance(call_failed(error, "postgresql://host/db", writes=True), StoreBusy)


def test_a_server_that_goes_away_in_the_middle_leaves_a_write_unknown_and_a_read_unavailable() -> None:
    error = asyncpg.exceptions.AdminShutdownError("terminating connection")
    assert isinstance(call_failed(error, "postgresql://host/db", writes=True), OutcomeUnknown)
    assert isinstance(call_failed(error, "postgresql://host/db", writes=False), StoreUnavailable)
    assert not issubclass(OutcomeUnknown, NotApplied)


def test_a_connection_that_the_server_ended_a_moment_ago_is_told_in_words() -> None:
    error = asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")
    assert str(call_failed(error, "db", writes=False)) == "db did not answer: the server has ended the connection"
    assert isinstance(call_failed(error, "db", writes=True), OutcomeUnknown)


async def test_a_value_over_the_limit_is_refused_and_its_neighbours_are_not_written(store: SqlStore) -> None:
    with pytest.raises(ValueTooLarge):
        await store.commit([Batch(puts=[(POOL("p"), b"1")]), Batch(puts=[(TASK(bytes(16)), bytes(1_048_577))])])
    assert await store.get([POOL("p")]) == [None]


async def test_a_part_of_another_type_is_refused_before_anything_is_written(store: SqlStore) -> None:
    with pytest.raises(InvalidValue):
        await store.commit([Batch(puts=[(POOL("p"), b"1"), (STATE("not bytes"), b"1")])])
    assert await store.get([POOL("p")]) == [None]


async def test_tables_of_a_newer_release_are_refused(store: SqlStore, options: SqlOptions, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(f"insert into {options.network}_schema (version) values (99)")
    finally:
        await connection.close()
    with pytest.raises(SchemaTooNew, match="99"):
        async with store.reopen():
            pass


async def test_processes_that_open_a_new_network_at_once_make_its_tables_once(
    postgres_url: str, options: SqlOptions
) -> None:
    async def open_and_write(number: int) -> None:
        async with SqlStore.open(postgres_url, options) as opened:
            await opened.commit([Batch(puts=[(POOL(f"p{number}"), b"1")])])

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(open_and_write, number)
    async with SqlStore.open(postgres_url, options) as opened:
        (found,) = await opened.scan([Range(POOL())])
        assert len(found) == 8


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///state.db", "SqliteStore"),
        ("postgresql+psycopg://host/db", "asyncpg"),
        ("mysql+aiomysql://host/db", "asyncmy"),
    ],
)
async def test_a_url_that_another_class_or_driver_serves_is_refused_in_words(url: str, words: str) -> None:
    with pytest.raises(Unsupported, match=words):
        async with SqlStore.open(url):
            pass


@pytest.mark.parametrize("network", ["", "Upper", "1st", "a-b", "a" * 32, "x; drop table y"])
def test_a_network_that_cannot_begin_the_name_of_a_table_is_refused(network: str) -> None:
    with pytest.raises(InvalidName):
        SqlOptions(network=network)


@pytest.mark.parametrize(
    ("has_fsync", "settings", "expected"),
    [
        (True, "", Durability.D2),
        (True, "?synchronous_commit=local", Durability.D2),
        (True, "?synchronous_commit=off", Durability.D0),
        (False, "", Durability.D1),
    ],
)
async def test_the_class_of_durability_follows_the_settings_found(
    options: SqlOptions, has_fsync: bool, settings: str, expected: Durability
) -> None:
    with postgres_server(fsync=has_fsync) as url:
        async with SqlStore.open(url + settings, options) as opened:
            assert opened.durability is expected


def test_a_synchronous_standby_makes_the_class_d3_if_commits_wait_for_it() -> None:
    assert durability("on", "on", "on", "standby1") is Durability.D3
    assert durability("on", "on", "local", "standby1") is Durability.D2


async def test_an_error_of_the_users_own_block_comes_out_as_it_is(postgres_url: str, options: SqlOptions) -> None:
    with pytest.raises(ZeroDivisionError):
        async with SqlStore.open(postgres_url, options):
            raise ZeroDivisionError


async def test_the_password_comes_from_a_file_that_is_read_for_each_connection(
    postgres_url: str, options: SqlOptions, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("canary-secret\n")
    from_file = SqlOptions(network=options.network, password_file=file)
    assert "canary-secret" not in repr(from_file)
    async with SqlStore.open(postgres_url, from_file) as opened:
        assert await opened.get([POOL("p")]) == [None]
    file.unlink()
    with pytest.raises(StoreUnavailable):
        async with SqlStore.open(postgres_url, from_file):
            pass
