"""Servers that are away, restart, refuse, forget; connections that are cut."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hiredis import ReplyError

from converge.contracts.store import ABSENT, Batch, Committed, Conflict, Durability, Range, Take
from converge.errors import (
    ConfigError,
    InvalidValue,
    NotApplied,
    OutcomeUnknown,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
    Unsupported,
)
from converge.model.keys import HELD, POOL, READY, STATE, TASK
from converge.testing.cuts import CutProxy
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port, redis_server
from converge.testing.store import Cut
from converge_store_redis import RedisOptions, RedisStore
from converge_store_redis._errors import of_call
from converge_store_redis.connect import Connector
from converge_store_redis.connection import Connection
from converge_store_redis.place import Address

TAKE = Take([Range(READY(bytes(16)))], 100, HELD(bytes(16)), (bytes(16),))
Send = Callable[..., Awaitable[Any]]
PUT = Batch([(POOL("p"), ABSENT)], [(POOL("p"), b"1")])


@asynccontextmanager
async def commands(url: str) -> AsyncIterator[Any]:
    """Gives a function that sends any command to the server, past the store."""
    port = int(url.rsplit(":", 1)[1].partition("/")[0])
    connection = await Connection.open(Address("127.0.0.1", port), None)

    async def send(*command: Any) -> Any:
        answer = await connection.ask(*command)
        if isinstance(answer, ReplyError):
            raise answer
        return answer

    try:
        yield send
    finally:
        connection.close()


async def ask_for_password(url: str) -> None:
    async with commands(url) as send:
        await send("CONFIG", "SET", "requirepass", "right")


async def test_a_connection_cut_before_the_answer_leaves_the_outcome_unknown_and_the_write_in_place(
    proxy: CutProxy, options: RedisOptions, store: RedisStore
) -> None:
    async with RedisStore.open(proxy.url, options) as far:
        await far.commit(
            [Batch(puts=[(POOL("q"), b"1")])]
        )  # now the server knows the script, so that the cut answer is the write's
        proxy.cut(Cut.AFTER)
        with pytest.raises(OutcomeUnknown):
            await far.commit([PUT])

        async def is_there() -> bool:
            return await store.get([POOL("p")]) != [None]

        await wait_until(is_there, what="the write of the call that was cut")
        assert await far.get([POOL("p")]) == await store.get([POOL("p")])


async def test_a_connection_cut_before_the_request_leaves_nothing(
    proxy: CutProxy, options: RedisOptions, store: RedisStore
) -> None:
    async with RedisStore.open(proxy.url, options) as far:
        proxy.cut(Cut.BEFORE)
        with pytest.raises((OutcomeUnknown, NotApplied)):
            await far.commit([PUT])
        assert await store.get([POOL("p")]) == [None]


@pytest.mark.parametrize("moment", Cut)
async def test_a_read_that_is_cut_is_not_reported_as_an_unknown_outcome(
    proxy: CutProxy, options: RedisOptions, moment: Cut
) -> None:
    async with RedisStore.open(proxy.url, options) as far:
        for read in (far.time(), far.get([POOL("p")]), far.scan([Range(POOL())]), far.count([POOL()])):
            proxy.cut(moment)
            with pytest.raises(StoreUnavailable):
                await read


async def test_no_call_is_sent_again_by_itself(proxy: CutProxy, options: RedisOptions, store: RedisStore) -> None:
    """A repeated put without checks would be a second write."""
    async with RedisStore.open(proxy.url, options) as far:
        (before,) = await store.commit([Batch(puts=[(POOL("p"), b"0")])])
        proxy.cut(Cut.AFTER)
        with pytest.raises(OutcomeUnknown):
            await far.commit([Batch(puts=[(POOL("p"), b"1")])])
        (after,) = await store.commit([Batch(puts=[(POOL("q"), b"1")])])
        assert isinstance(before, Committed) and isinstance(after, Committed)
        assert after.revision - before.revision <= 2, "one commit between the two, at most"


async def test_a_server_that_forgot_its_scripts_is_sent_them_again(store: RedisStore, redis_url: str) -> None:
    async with commands(redis_url) as send:
        for call in (store.commit([PUT]), store.scan([Range(POOL())]), store.count([POOL()]), store.commit([PUT])):
            await send("SCRIPT", "FLUSH")
            await call
    (entry,) = await store.get([POOL("p")])
    assert entry is not None and entry.value == b"1"


async def test_a_call_that_is_cancelled_hands_no_answer_to_the_next_one(redis_url: str, namespace: str) -> None:
    async with RedisStore.open(redis_url, RedisOptions(network=namespace, connections=1)) as store:
        for number in range(20):
            with anyio.move_on_after(0) as scope:
                await store.commit([Batch(puts=[(POOL(str(number)), b"1")])])
            assert scope.cancelled_caught
            assert await store.time() > 0
            (outcome,) = await store.commit([Batch(puts=[(POOL("p"), b"%d" % number)])])
            (entry,) = await store.get([POOL("p")])
            assert isinstance(outcome, Committed) and entry is not None
            assert (entry.value, entry.revision) == (b"%d" % number, outcome.revision)


async def test_after_a_restart_of_the_server_the_same_handle_goes_on(tmp_path: Path, namespace: str) -> None:
    port, options = free_port(), RedisOptions(network=namespace)
    with redis_server(directory=tmp_path, port=port) as url:
        opened = RedisStore.open(url, options)
        store = await opened.__aenter__()
        (first,) = await store.commit([PUT])
        assert isinstance(first, Committed)
    try:
        with pytest.raises(
            (StoreUnavailable, OutcomeUnknown)
        ):  # the second if the end of the connection has not been seen yet
            await store.commit([PUT])
        with pytest.raises(StoreUnavailable):
            await store.commit([PUT])
        with redis_server(directory=tmp_path, port=port):
            (outcome,) = await store.commit([PUT])
            assert outcome == Conflict((POOL("p"),)), "what was acknowledged is there after the restart"
            (second,) = await store.commit([Batch(puts=[(POOL("q"), b"1")])])
            assert isinstance(second, Committed) and second.revision > first.revision
    finally:
        await opened.__aexit__(None, None, None)


async def test_a_full_server_refuses_whole_calls_and_is_used_again_when_it_has_room(namespace: str) -> None:
    with redis_server(options=("--maxmemory", "8mb")) as url:
        async with RedisStore.open(url, RedisOptions(network=namespace)) as store, commands(url) as send:
            await store.commit([Batch(puts=[(READY(bytes(16), n, bytes(16)), b"") for n in range(10)])])
            full = None
            for number in range(40):
                try:
                    await store.commit([Batch(puts=[(TASK(number.to_bytes(16, "big")), b"x" * 900_000)])])
                except StoreFull as error:
                    full = error
                    break
            assert full is not None and "maxmemory" in str(full)
            await send("CONFIG", "SET", "maxmemory", "1mb")
            with pytest.raises(StoreFull):
                await store.turn([Batch(puts=[(TASK(bytes(16)), b"")], deletes=[READY(bytes(16), 0, bytes(16))])], TAKE)
            assert await store.count([READY(), HELD()]) == [10, 0], "a refused turn has moved or deleted nothing"
            turned = await store.turn([Batch(deletes=[READY(bytes(16), 0, bytes(16))])], TAKE)
            assert await store.count([READY(), HELD()]) == [0, 9] and turned.taken is not None
            await send("CONFIG", "SET", "maxmemory", "0")
            (outcome,) = await store.commit([Batch(puts=[(TASK(bytes(16)), b"")])])
            assert isinstance(outcome, Committed)


async def test_a_server_that_may_delete_tasks_silently_is_refused() -> None:
    with (
        redis_server(options=("--maxmemory-policy", "allkeys-lru")) as url,
        pytest.raises(StoreRefused, match="maxmemory-policy allkeys-lru"),
    ):
        async with RedisStore.open(url):
            pass


@pytest.mark.parametrize(
    ("settings", "durability"),
    [
        (("--appendfsync", "always"), Durability.D2),
        (("--appendfsync", "always", "--no-appendfsync-on-rewrite", "yes"), Durability.D1),
        (("--appendfsync", "everysec"), Durability.D1),
        (("--appendonly", "no"), Durability.D0),
        (("--appendonly", "no", "--appendfsync", "always"), Durability.D0),
    ],
)
async def test_the_durability_class_is_what_the_servers_settings_give(
    settings: tuple[str, ...], durability: Durability
) -> None:
    with redis_server(options=settings) as url:
        async with RedisStore.open(url) as store, store.reopen() as other:
            assert (store.durability, other.durability) == (durability, durability)


async def test_a_user_without_config_gets_the_class_of_every_append_only_file(
    namespace: str, rights: tuple[str, ...]
) -> None:
    some = ("resetkeys", f"~{{{namespace}}}:*", f"&{{{namespace}}}:*", "-@all", *rights, "-config|get")
    with redis_server(options=("--appendfsync", "always")) as url:
        async with commands(url) as send:
            await send("ACL", "SETUSER", "weak", "on", ">secret", *some)
        async with RedisStore.open(url.replace("//", "//weak:secret@"), RedisOptions(network=namespace)) as store:
            assert store.durability == Durability.D1
            await store.commit([PUT], wake=["c"])
            await store.turn([], TAKE)
            assert [len(page) for page in await store.scan([Range(POOL())])] == await store.count([POOL()]) == [1]
            watch = store.watch(["c"])
            await anext(watch)
            await store.commit([], wake=["c"])
            with anyio.fail_after(20):
                await anext(watch)
            await watch.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_a_wrong_password_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    canary = "canary-4711"
    with redis_server() as url:
        await ask_for_password(url)
        with pytest.raises(StoreRefused, match="password") as missing:
            async with RedisStore.open(url):
                pass
        (tmp_path / "password").write_text(canary + "\n")
        monkeypatch.setenv("CONVERGE_REDIS_PASSWORD", canary)
        for place, options in (
            (url, RedisOptions()),
            (url.replace("//", f"//:{canary}@"), RedisOptions()),
            (url, RedisOptions(password_file=tmp_path / "password")),
        ):
            with pytest.raises(StoreRefused) as wrong:
                async with RedisStore.open(place, options):
                    pass
            shown = (
                "".join(traceback.format_exception(wrong.value))
                + "".join(traceback.format_exception(missing.value))
                + repr(options)
            )
            assert canary not in shown


async def test_the_password_comes_from_its_file_the_url_or_the_environment_in_this_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "password").write_text("right\nsecond line\n")
    with redis_server() as url:
        await ask_for_password(url)
        async with RedisStore.open(
            url.replace("//", "//:wrong@"), RedisOptions(password_file=tmp_path / "password")
        ) as store:
            assert await store.get([POOL("p")]) == [None]
        monkeypatch.setenv("CONVERGE_REDIS_PASSWORD", "right")
        async with RedisStore.open(url) as store:
            assert await store.get([POOL("p")]) == [None]
        monkeypatch.setenv("CONVERGE_REDIS_PASSWORD", "wrong")
        async with RedisStore.open(url.replace("//", "//:right@")) as store:
            assert await store.get([POOL("p")]) == [None]


async def test_a_user_without_a_password_is_who_the_url_says(send: Send, namespace: str) -> None:
    with redis_server() as url:
        await send(url, "ACL", "SETUSER", "guest", "on", "nopass", "~*", "&*", "-@all", "+info")
        with pytest.raises(StoreRefused, match="rights"):
            async with RedisStore.open(url.replace("//", "//guest@"), RedisOptions(network=namespace)):
                pass


async def test_a_password_file_that_cannot_be_read_is_an_error_of_the_configuration(
    redis_url: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="password_file"):
        async with RedisStore.open(redis_url, RedisOptions(password_file=tmp_path / "nowhere")):
            pass


async def test_a_replica_is_refused(redis_url: str) -> None:
    port = redis_url.rsplit(":", 1)[1].partition("/")[0]
    with (
        redis_server(options=("--replicaof", f"127.0.0.1 {port}")) as url,
        pytest.raises(StoreRefused, match="replica"),
    ):
        async with RedisStore.open(url):
            pass


async def test_a_server_that_becomes_a_replica_changes_nothing_more(namespace: str, redis_url: str) -> None:
    port = redis_url.rsplit(":", 1)[1].partition("/")[0]
    with redis_server() as url:
        async with RedisStore.open(url, RedisOptions(network=namespace)) as store, commands(url) as send:
            await store.commit([PUT])
            await send("REPLICAOF", "127.0.0.1", port)
            with pytest.raises(NotApplied):
                await store.commit([Batch(puts=[(POOL("q"), b"1")])])


async def test_a_member_of_a_cluster_is_refused() -> None:
    with redis_server(options=("--cluster-enabled", "yes")) as url, pytest.raises(Unsupported, match="cluster"):
        async with RedisStore.open(url):
            pass


async def test_a_busy_server_is_said_to_be_busy(store: RedisStore, redis_url: str) -> None:
    async def spin() -> None:
        async with commands(redis_url) as other:
            with pytest.raises(ReplyError, match="killed"):
                await other("EVAL", "while true do end", 0)

    async with commands(redis_url) as send:
        await send("CONFIG", "SET", "busy-reply-threshold", "10")
        async with anyio.create_task_group() as group:
            group.start_soon(spin)
            with pytest.raises(StoreBusy):
                for _ in range(2_000):
                    await store.commit([])
                    await store.commit([Batch(puts=[(POOL("p"), b"1")])])
            await send("SCRIPT", "KILL")  # it ends some time after the answer
        await send("CONFIG", "SET", "busy-reply-threshold", "5000")  # its default: the server is other tests', too


async def test_no_server_is_told_as_such(namespace: str) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        async with RedisStore.open(f"redis://127.0.0.1:{free_port()}/0"):
            pass


async def test_a_server_that_never_answers_is_given_up_on() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable), anyio.fail_after(20):
            async with RedisStore.open(
                f"redis://127.0.0.1:{port}/0", RedisOptions(connect_timeout_sec=0.2, timeout_sec=0.2)
            ):
                pass


@pytest.mark.parametrize("ends", [True, False])
async def test_a_server_that_ends_or_falls_silent_when_a_database_is_chosen_is_told_and_left(ends: bool) -> None:
    opened = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await reader.readuntil(b"HELLO")
        writer.write(b"%1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n")
        await reader.readuntil(b"SELECT")
        if not ends:
            while await reader.read(64):
                """It says no more until the other side has gone."""
        writer.close()
        opened -= 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with anyio.fail_after(30), pytest.raises(StoreUnavailable, match="cannot be reached"):
            async with RedisStore.open(f"redis://127.0.0.1:{port}/1", RedisOptions(connect_timeout_sec=0.5)):
                raise AssertionError("it has answered nothing")
        await wait_until(lambda: not opened, what="the connection has ended")


async def test_a_caller_that_leaves_while_a_database_is_chosen_leaves_no_connection() -> None:
    chosen, left = anyio.Event(), anyio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"HELLO")
        writer.write(b"%1\r\n$4\r\nrole\r\n$6\r\nmaster\r\n")
        await reader.readuntil(b"SELECT")
        chosen.set()
        while await reader.read(64):
            """It says no more until the other side has gone."""
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, anyio.create_task_group() as group:
        port = server.sockets[0].getsockname()[1]
        connector = Connector(f"redis://127.0.0.1:{port}/1", RedisOptions())
        group.start_soon(connector.call, "PING")
        await chosen.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True), anyio.fail_after(30):
            await left.wait()


async def test_task_and_state_are_not_scanned(store: RedisStore) -> None:
    with pytest.raises(InvalidValue, match="may be scanned"):
        await store.scan([Range(TASK())])
    with pytest.raises(InvalidValue, match="may be scanned"):
        await store.count([STATE()])


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'. script: 5f, on @user_script:65.", StoreFull),
        (
            "ERR Error running script (call to f_5f): @user_script:65: -OOM command not allowed when used memory",
            StoreFull,
        ),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.", StoreFull),
        (
            "ERR Error running script (call to f_5f): @user_script:65: -READONLY You can't write against a read only "
            "replica.",
            StoreUnavailable,
        ),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailable),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", StoreBusy),
        ("NOPERM User x has no permissions to run the 'evalsha' command", StoreRefused),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value script: 5f, on @user_script:65.",
            OutcomeUnknown,
        ),
        (
            "ERR ACL failure in script: No permissions to access a channel script: 5f, on @user_script:65.",
            OutcomeUnknown,
        ),
        (
            "ERR Error running script (call to f_5f): @user_script:65: @user_script: 65: The user executing the script "
            "can't run this command or subcommand",
            OutcomeUnknown,
        ),
    ],
)
def test_each_answer_of_a_server_means_what_it_did(answer: str, kind: type[StoreError]) -> None:
    assert type(of_call(ReplyError(answer), "h:1", writes=True)) is kind


def test_an_answer_of_a_script_is_told_without_the_number_of_the_script() -> None:
    answer = f"OOM command not allowed when used memory > 'maxmemory'. script: {'5f' * 20}, on @user_script:65."
    text = "(OOM command not allowed when used memory > 'maxmemory'); nothing was written"
    assert str(of_call(ReplyError(answer), "h:1", writes=True)).endswith(text)


def test_a_write_without_an_answer_may_have_been_applied_and_a_read_was_not() -> None:
    assert type(of_call(OSError("gone"), "h:1", writes=True)) is OutcomeUnknown
    assert type(of_call(OSError("gone"), "h:1", writes=False)) is StoreUnavailable
    loading = ReplyError("LOADING Redis is loading the dataset in memory")
    assert type(of_call(loading, "h:1", writes=True)) is StoreUnavailable
