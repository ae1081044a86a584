"""MariaDB servers that are away, restart, refuse; connections that are cut or die in silence."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import asyncmy
import pytest
from closings import leaves_nothing

from converge.contracts.store import ABSENT, LIMITS, Batch, Committed, Conflict, Range, Take, Taken
from converge.errors import (
    ForeignLoop,
    ForkedHandle,
    OutcomeUnknown,
    SchemaTooNew,
    StoreBusy,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUnsafe,
    ValueTooLarge,
)
from converge.model.keys import FAMILIES, HASH, HELD, INT, INT_MAX, INT_MIN, LEASE, NAME_BYTES, POOL, READY, TASK
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port, mariadb_server
from converge.testing.store import Cut
from converge_store_sql.mysql import MysqlOptions, MysqlStore
from converge_store_sql.mysql import connect as connecting
from converge_store_sql.mysql import server as servers

CANARY = "canary-secret"


@pytest.fixture
async def root(mariadb_url: str) -> AsyncIterator[asyncmy.Connection]:
    """A connection of the driver, for what an operator does."""
    connection = await _connect(mariadb_url)
    yield connection
    await connection.ensure_closed()


async def _connect(url: str) -> asyncmy.Connection:
    port = int(url.rpartition(":")[2].partition("/")[0])
    return await asyncmy.connect(host="127.0.0.1", port=port, user="root", database="converge", autocommit=True)


async def execute(connection: asyncmy.Connection, *statements: str) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for statement in statements:
        async with connection.cursor() as cursor:
            await cursor.execute(statement)
            rows = list(await cursor.fetchall()) if cursor.description else []
    return rows


async def put(store: MysqlStore, name: str, value: bytes = b"1") -> Committed | Conflict:
    (outcome,) = await store.commit([Batch(puts=[(POOL(name), value)])])
    return outcome


async def test_a_commit_cut_before_the_answer_is_unknown_and_in_place(
    proxied_url: str, cut: Callable[[Cut], None], options: MysqlOptions, store: MysqlStore
) -> None:
    async with MysqlStore.opened(proxied_url, options) as far:
        await put(far, "before")
        cut(Cut.AFTER)
        with pytest.raises(OutcomeUnknown):
            await put(far, "p")

        async def is_there() -> bool:
            return await store.get([POOL("p")]) != [None]

        await wait_until(is_there, what="the write of the call that was cut")
        assert await far.get([POOL("p")]) == await store.get([POOL("p")])


@pytest.mark.parametrize("moment", Cut)
async def test_a_read_that_is_cut_is_read_again_on_another_connection(
    proxied_url: str, cut: Callable[[Cut], None], options: MysqlOptions, moment: Cut
) -> None:
    async with MysqlStore.opened(proxied_url, options) as far:
        await put(far, "p")
        cut(moment)
        (entry,) = await far.get([POOL("p")])
        assert entry is not None


async def test_a_login_or_database_that_is_wrong_is_one_error_that_says_what_to_do(
    mariadb_url: str, options: MysqlOptions, root: asyncmy.Connection
) -> None:
    user = options.network
    await execute(root, f"create user {user} identified by 'right'")
    wrong = mariadb_url.replace("root@", f"{user}:{CANARY}@")
    cases: list[tuple[str, type[StoreError], str]] = [
        (wrong, StoreRefused, "check user, password and grants"),
        (wrong.replace(CANARY, "right"), StoreRefused, "check user"),
        (mariadb_url.replace("/converge", "/nowhere"), StoreUnavailable, "create the database"),
        (f"mysql://u:{CANARY}@127.0.0.1:{free_port()}/db", StoreUnavailable, "cannot be reached"),
    ]
    for url, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            async with MysqlStore.opened(url, options):
                pass
        error: BaseException | None = caught.value
        while error is not None:
            assert CANARY not in repr(error) + str(error)
            error = error.__cause__
    await execute(root, f"drop user {user}")


async def test_a_user_without_rights_is_refused_and_one_with_the_least_works(
    mariadb_url: str, options: MysqlOptions, store: MysqlStore, root: asyncmy.Connection
) -> None:
    user = options.network
    await execute(root, f"create user {user}", f"grant select on converge.* to {user}")
    url = mariadb_url.replace("root@", f"{user}@")
    async with MysqlStore.opened(url, options) as poor:
        with pytest.raises(StoreRefused):
            await put(poor, "p")
    with pytest.raises(StoreRefused, match="converge store migrate"):
        async with MysqlStore.opened(url, MysqlOptions(network=f"{options.network[:29]}_x")):
            pass
    assert await store.get([POOL("p")]) == [None]
    await execute(root, f"grant select, insert, update, delete on converge.* to {user}")
    async with MysqlStore.opened(url, options) as least:
        assert isinstance(await put(least, "p"), Committed)
    await execute(root, f"drop user {user}")


async def test_a_password_that_is_rotated_is_read_again_for_the_next_connection(
    mariadb_url: str, options: MysqlOptions, root: asyncmy.Connection, tmp_path: Path
) -> None:
    user, file = options.network, tmp_path / "password"
    await execute(root, f"create user {user} identified by 'first'", f"grant all on converge.* to {user}")
    file.write_text("first\n")
    rotating = MysqlOptions(network=options.network, password_file=file)
    async with MysqlStore.opened(mariadb_url.replace("root@", f"{user}@"), rotating) as store:
        await put(store, "p")
        await execute(root, f"set password for {user} = password('second')")
        file.write_text("second\n")
        await _kill_connections(root, user)
        (entry,) = await store.get([POOL("p")])
        assert entry is not None
        assert isinstance(await put(store, "q"), Committed)
    await execute(root, f"drop user {user}")


async def _kill_connections(root: asyncmy.Connection, user: str) -> None:
    for (number,) in await execute(root, f"select id from information_schema.processlist where user = '{user}'"):
        await execute(root, f"kill {number}")


async def test_a_row_that_stays_locked_is_a_busy_store_and_nothing_is_written(
    mariadb_url: str, options: MysqlOptions, store: MysqlStore, root: asyncmy.Connection
) -> None:
    await put(store, "p")
    await execute(root, "start transaction", f"select 1 from {options.network}_pool for update")
    async with MysqlStore.opened(mariadb_url, MysqlOptions(network=options.network, lock_timeout_sec=1)) as hasty:
        with pytest.raises(StoreBusy):
            await hasty.commit([Batch(puts=[(POOL("p"), b"2"), (POOL("q"), b"2")])])
        await execute(root, "rollback")
        entries = await hasty.get([POOL("p"), POOL("q")])
        assert [entry and entry.value for entry in entries] == [b"1", None]
        assert isinstance(await put(hasty, "p"), Committed), "the connection is as good as before"


async def test_a_call_that_is_cancelled_leaves_no_transaction_open(store: MysqlStore, root: asyncmy.Connection) -> None:
    await put(store, "p")
    await execute(root, "start transaction", f"select 1 from {store._options.network}_pool for update")
    with anyio.move_on_after(0.2) as scope:
        await put(store, "p", b"2")
    assert scope.cancelled_caught
    await execute(root, "rollback")
    assert isinstance(await put(store, "p", b"3"), Committed)


async def test_calls_that_lock_in_opposite_orders_all_commit(store: MysqlStore, mariadb_url: str) -> None:
    """Deadlocks are the server's to find and the store's to run again."""
    names = [f"p{number}" for number in range(12)]
    await store.commit([Batch(puts=[(POOL(name), b"0") for name in names])])
    entries = [entry for entry in await store.get([POOL(name) for name in names]) if entry is not None]
    outcomes: list[Committed | Conflict] = []

    async def work(number: int) -> None:
        for round_ in range(6):
            first, second = POOL(names[(number + round_) % 12]), POOL(names[(number * 5 + round_ + 1) % 12])
            puts = [(key, b"%d" % number) for key in dict.fromkeys((first, second))]
            outcomes.extend(await store.commit([Batch(puts=[put]) for put in puts]))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(work, number)
    assert len(outcomes) >= 48 and all(isinstance(outcome, Committed) for outcome in outcomes)
    revisions = [outcome.revision for outcome in outcomes if isinstance(outcome, Committed)]
    after = [entry for entry in await store.get([entry.key for entry in entries]) if entry is not None]
    assert all(entry.revision <= max(revisions) for entry in after)


async def test_work_flows_again_after_a_crash_of_the_server_under_load_on_the_same_handle(
    debian: Callable[[str, str], str], namespace: str
) -> None:
    debian("mariadb-server", "mariadbd")
    port, options = free_port(), MysqlOptions(network=namespace, connect_timeout_sec=1)
    acknowledged, refused = set[str](), list[StoreError]()

    async def load(store: MysqlStore, worker: int) -> None:
        for number in range(100_000):
            try:
                await put(store, f"w{worker}n{number}")
                acknowledged.add(f"w{worker}n{number}")
            except StoreError as error:
                refused.append(error)
                await anyio.sleep(0.02)  # the server is away; the next try comes a moment later

    with tempfile.TemporaryDirectory(prefix="converge-restart-", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as stack:
            with mariadb_server(directory=Path(folder), port=port) as url:
                store = await stack.enter_async_context(MysqlStore.opened(url, options))
                group = await stack.enter_async_context(anyio.create_task_group())
                for worker in range(3):
                    group.start_soon(load, store, worker)
                await wait_until(lambda: len(acknowledged) > 30, timeout=30)
                os.kill(url.pid, signal.SIGKILL)
                await wait_until(lambda: len(refused) > 5, timeout=30)
            before = len(acknowledged)
            with mariadb_server(directory=Path(folder), port=port):
                # 5 s are the promise; beside a whole test run the machine is slow.
                await wait_until(lambda: len(acknowledged) > before + 30, timeout=30)
                group.cancel_scope.cancel()
                names = sorted(acknowledged)
                for at in range(0, len(names), 500):
                    found = await store.get([POOL(name) for name in names[at : at + 500]])
                    assert None not in found, "an acknowledged write was lost"
    assert all(isinstance(error, StoreUnavailable | OutcomeUnknown) for error in refused), refused


async def test_a_server_that_turns_read_only_is_away_until_it_takes_writes_again(
    store: MysqlStore, root: asyncmy.Connection, options: MysqlOptions, mariadb_url: str
) -> None:
    user = options.network
    # Who may administer the server is exempt from read_only.
    await execute(root, f"create user {user}", f"grant all on converge.* to {user}")
    url = mariadb_url.replace("root@", f"{user}@")
    async with MysqlStore.opened(url, options) as poor:
        try:
            await execute(root, "set global read_only = 1")
            with pytest.raises(StoreUnavailable, match="read-only"):
                await put(poor, "p")
            with pytest.raises(StoreRefused, match="name the primary"):
                async with MysqlStore.opened(url, options):
                    pass
        finally:
            await execute(root, "set global read_only = 0")
        assert isinstance(await put(poor, "p"), Committed)


async def test_connections_that_died_without_a_word_are_replaced_within_5_s(
    mariadb_url: str, options: MysqlOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "DOUBT_SEC", 0.0)
    async with silent_proxy(mariadb_url) as proxy, MysqlStore.opened(proxy.url, options) as store:
        await put(store, "p")
        proxy.silence()
        with anyio.fail_after(20):  # 5 s are the promise, beside a whole test run; a call that is given up is an error
            outcome = await put(store, "q")
        assert isinstance(outcome, Committed)


async def test_a_call_cancelled_while_its_connection_is_tried_leaves_none_open(
    mariadb_url: str, options: MysqlOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is frozen answers nothing, and who waits for it has limits."""
    tried = list[Any]()

    async def lives(driver: Any) -> bool:
        tried.append(driver)
        scope.cancel()
        await anyio.sleep_forever()
        return True

    async with MysqlStore.opened(mariadb_url, options) as store:
        await put(store, "p")
        with monkeypatch.context() as patch, anyio.CancelScope() as scope:
            patch.setattr(connecting, "DOUBT_SEC", 0.0)
            patch.setattr(connecting, "_lives", lives)
            await put(store, "q")
        assert tried and not any(driver.connected for driver in tried)
        assert isinstance(await put(store, "q"), Committed)


class Silent:
    """Passes bytes on; what was open when it was silenced stays open, and hears nothing."""

    def __init__(self, url: str) -> None:
        self.port = int(url.rpartition(":")[2].partition("/")[0])
        self._target, self.url = url, url
        self._silenced = asyncio.Event()

    def listens_on(self, port: int) -> None:
        self.url = self._target.replace(f":{self.port}/", f":{port}/")

    def silence(self) -> None:
        self._silenced.set()
        self._silenced = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        silenced = self._silenced
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                if silenced.is_set():
                    await asyncio.Event().wait()
                sink.write(data)

        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            far_writer.close()
            writer.close()


@asynccontextmanager
async def silent_proxy(url: str) -> AsyncIterator[Silent]:
    proxy, tasks = Silent(url), set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(OSError, asyncio.CancelledError):
            await proxy.serve(reader, writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.listens_on(listener.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        ("--sysdate-is-now", StoreUnsafe, "sysdate-is-now"),
        ("--max-allowed-packet=1M", StoreRefused, "max_allowed_packet"),
        ("--read-only", StoreRefused, "name the primary"),
        ("--binlog-format=STATEMENT", StoreRefused, "set binlog_format to MIXED or ROW"),
    ],
)
async def test_a_server_that_cannot_keep_the_promises_is_refused_and_nothing_is_made(
    mariadb_url: str, options: MysqlOptions, option: str, kind: type[StoreError], words: str
) -> None:
    """The settings as the server tells them; `sysdate-is-now` alone needs a server of its own."""
    if option != "--sysdate-is-now":
        connections = connecting.Connections(mariadb_url, options)
        found = await servers.settings(connections)
        await connections.close()
        name, _, value = option[2:].replace("-", "_").partition("=")
        assert name in found
        found |= {"log_bin": "ON", name: {"1M": "1048576", "": "ON"}.get(value, value)}
        with pytest.raises(kind, match=words):
            servers.check(found, "mysql://h/db")
        return
    with mariadb_server(flushes=False, options=[option]) as url:
        with pytest.raises(kind, match=words):
            async with MysqlStore.opened(url, options):
                pass
        connection = await _connect(url)
        assert await execute(connection, "show tables") == []
        await connection.ensure_closed()


async def test_a_value_of_100_mib_is_refused_before_anything_is_sent(store: MysqlStore) -> None:
    with pytest.raises(ValueTooLarge):
        await store.commit([Batch(puts=[(POOL("p"), b"1")]), Batch(puts=[(TASK(bytes(16)), bytes(104_857_600))])])
    assert await store.get([POOL("p")]) == [None]


async def test_a_call_at_its_limit_of_bytes_goes_in_packets_that_the_server_takes(
    store: MysqlStore, root: asyncmy.Connection
) -> None:
    ((packet,),) = await execute(root, "select @@max_allowed_packet")
    value = bytes(LIMITS.value_bytes)
    assert isinstance(packet, int) and 2 * LIMITS.call_bytes > packet
    batches = [Batch(puts=[(TASK(n.to_bytes(16)), value)]) for n in range(LIMITS.call_bytes // len(value))]
    assert all(isinstance(outcome, Committed) for outcome in await store.commit(batches))
    assert await store.count([TASK()]) == [len(batches)]


async def test_the_longest_keys_and_every_family_come_back_as_they_were(store: MysqlStore) -> None:
    samples = {"id": b"\xff" * 16, "hash": b"\x00" * 15 + b"'", "name": "\U0001f600" * (NAME_BYTES // 4)}
    for number in (INT_MIN, INT_MAX, -1):
        keys = [
            family(*(number if part is INT else samples[part.value] for part in family.parts.values()))
            for family in FAMILIES.values()
        ]
        await store.commit([Batch(puts=[(key, bytes(range(256))) for key in keys])])
        entries = await store.get(keys)
        assert [entry and (entry.key, entry.value) for entry in entries] == [(key, bytes(range(256))) for key in keys]
    for key in keys:
        (found,) = await store.scan([Range(key[:1])])
        assert key in [entry.key for entry in found] and len(found) == (3 if INT in key[0].parts.values() else 1)
    assert HASH.value in samples


async def test_a_newer_schema_is_refused_with_both_versions(
    store: MysqlStore, root: asyncmy.Connection, options: MysqlOptions
) -> None:
    await execute(root, f"insert into {options.network}_schema (version) values (99)")
    with pytest.raises(SchemaTooNew, match="99"):
        async with store.reopen():
            pass


@pytest.mark.parametrize("kind", ["table {0}_task (x int)", "view {0}_tasks as select 1 x", "table {0}_schema (x int)"])
async def test_tables_of_another_program_are_left_alone_and_refused(
    mariadb_url: str, options: MysqlOptions, root: asyncmy.Connection, kind: str
) -> None:
    await execute(root, f"create {kind.format(options.network)}")
    for look in (_opened, MysqlStore.to_add):
        with pytest.raises(StoreRefused, match=r"of another program, without the column .* choose another network"):
            await look(mariadb_url, options)
    (name,) = await execute(root, f"show tables like '{options.network}\\_%'")
    assert await execute(root, f"select * from {name[0]}") in ([], [(1,)]), "it is as it was, and nothing is beside it"


async def _opened(url: str, options: MysqlOptions) -> None:
    async with MysqlStore.opened(url, options):
        pass


async def test_tables_that_were_half_made_are_completed_by_whoever_opens_the_network_next(
    mariadb_url: str, options: MysqlOptions, root: asyncmy.Connection
) -> None:
    async with MysqlStore.opened(mariadb_url, options) as store:
        await put(store, "p")
    gone = [f"{options.network}_{name}" for name in ("torn", "schema")]
    await execute(root, *(f"drop table {name}" for name in gone), f"drop view {options.network}_tasks")
    assert await MysqlStore.to_add(mariadb_url, options) == [f'the tables of a new network "{options.network}"']

    async def open_and_write(number: int) -> None:
        async with MysqlStore.opened(mariadb_url, options) as opened:
            await put(opened, f"q{number}")

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(open_and_write, number)
    assert await MysqlStore.to_add(mariadb_url, options) == []
    async with MysqlStore.opened(mariadb_url, options) as store:
        assert await store.count([POOL()]) == [7]


async def test_the_view_shows_where_each_task_is(
    store: MysqlStore, root: asyncmy.Connection, options: MysqlOptions
) -> None:
    waiting, held, lane, lease = (bytes([n]) * 16 for n in (1, 2, 3, 4))
    puts = [(TASK(id_), b'{"a":1}') for id_ in (waiting, held)]
    await store.commit([Batch(puts=[*puts, (READY(lane, -7, held), b""), (READY(lane, 5, waiting), b"")])])
    taken = (await store.turn([], Take([Range(READY(lane))], 1, HELD(lease), (bytes(16),)))).taken
    assert isinstance(taken, Taken) and [rest[-1] for rest in taken.rests] == [held]
    rows = await execute(root, f"select id, place, `rank`, holder, task from {options.network}_tasks order by id")
    assert [(row[0], row[1], int(str(row[2])), row[3], row[4]) for row in rows] == [
        (str(UUID(bytes=waiting)), "ready", 5, None, '{"a":1}'),
        (str(UUID(bytes=held)), "held", -7, str(UUID(bytes=lease)), '{"a":1}'),
    ]


async def test_every_look_up_of_a_turn_is_by_the_primary_key(store: MysqlStore, root: asyncmy.Connection) -> None:
    """Of a small table the planner would rather read, and so lock, every row."""
    lane, lease = bytes([3]) * 16, bytes([4]) * 16
    rows = [(READY(lane, n, n.to_bytes(16)), b"") for n in range(150)]
    tasks = [(TASK(n.to_bytes(16)), b"{}") for n in range(150)]
    tasks += [(READY(lease, n, n.to_bytes(16)), b"") for n in range(150)]  # stay, so that the table is not empty
    (outcome,) = await store.commit([Batch(puts=[(LEASE(lease), b""), *rows, *tasks])])
    assert isinstance(outcome, Committed)
    texts: list[str] = []
    run = connecting.Transaction.run

    async def note(self: connecting.Transaction, statements: list[str], *, commits: bool) -> object:
        texts.extend(statements)
        return await run(self, statements, commits=commits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connecting.Transaction, "run", note)
        finish = Batch([(key, outcome.revision) for key, _ in rows[100:]], deletes=[key for key, _ in rows[100:]])
        checks = [(LEASE(lease), outcome.revision)]
        take = Take([Range(READY(lane))], 100, HELD(lease), (bytes(16),), checks, [TASK])
        taken = (await store.turn([finish], take)).taken
    assert isinstance(taken, Taken) and len(taken.rests) == 100
    plans = [text for text in texts if text.startswith(("select", "(select", "delete")) and "_revision" not in text]
    kinds = {
        text: [str(row[3]) for row in await execute(root, f"explain {text}") if row[2] not in (None, "<derived2>")]
        for text in plans
        if " from " in text
    }
    assert len(kinds) >= 5
    assert {text: found for text, found in kinds.items() if {"ALL", "index"} & set(found)} == {}


async def test_a_handle_is_refused_in_a_forked_child_and_goes_on_in_its_parent(store: MysqlStore) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"served"
        try:
            store.get([POOL("p")]).send(None)  # no loop runs in the child
        except ForkedHandle:
            answer = b"refused"
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 10) == b"refused"
    os.close(reading)
    await anyio.to_thread.run_sync(os.waitpid, child, 0)
    assert isinstance(await put(store, "p"), Committed)


async def test_a_handle_used_on_another_event_loop_is_refused_and_goes_on_in_its_own(store: MysqlStore) -> None:
    def elsewhere() -> None:
        with pytest.raises(ForeignLoop):
            asyncio.run(put(store, "p"))

    await anyio.to_thread.run_sync(elsewhere)
    assert isinstance(await put(store, "p"), Committed)


async def test_a_handle_may_be_closed_in_another_task(mariadb_url: str, options: MysqlOptions) -> None:
    stack = AsyncExitStack()
    store = await asyncio.create_task(stack.enter_async_context(MysqlStore.opened(mariadb_url, options)))
    await put(store, "p")
    await asyncio.create_task(stack.aclose())


async def test_a_watch_of_the_same_handle_is_woken_at_once_and_of_another_by_its_poll(
    mariadb_url: str, options: MysqlOptions, store: MysqlStore
) -> None:
    slow, quick = (
        MysqlOptions(network=options.network, poll_sec=60),
        MysqlOptions(network=options.network, poll_sec=0.05),
    )
    looks = {"own": 0, "other": 0}

    async def watch(name: str, handle: MysqlStore) -> None:
        async for _ in handle.watch(["lane"]):
            looks[name] += 1

    async with (
        MysqlStore.opened(mariadb_url, slow) as own,
        MysqlStore.opened(mariadb_url, quick) as other,
        anyio.create_task_group() as group,
    ):
        group.start_soon(watch, "own", own)
        group.start_soon(watch, "other", other)
        await wait_until(lambda: looks["own"] == 1 and looks["other"] > 2)
        await own.commit([Batch(puts=[(POOL("p"), b"1")])], wake=["lane"])
        await wait_until(lambda: looks["own"] == 2)
        group.cancel_scope.cancel()


async def test_a_check_of_two_revisions_of_one_key_in_a_call_fails_one_batch_only(store: MysqlStore) -> None:
    first = await put(store, "p")
    assert isinstance(first, Committed)
    right, wrong = first.revision, first.revision + 1
    outcomes = await store.commit(
        [
            Batch([(POOL("p"), right)], [(POOL("a"), b"")]),
            Batch([(POOL("p"), wrong)], [(POOL("b"), b"")]),
            Batch([(POOL("c"), ABSENT)], [(POOL("c"), b"")]),
        ]
    )
    assert [isinstance(outcome, Committed) for outcome in outcomes] == [True, False, True]
    assert [entry is not None for entry in await store.get([POOL(n) for n in "abc"])] == [True, False, True]


async def test_an_end_that_is_cancelled_leaves_no_connection(mariadb_url: str, options: MysqlOptions) -> None:
    await leaves_nothing(mariadb_url, lambda: MysqlStore.opened(mariadb_url, options))
