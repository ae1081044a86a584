"""What operators have: the view of all tasks, roles with the least rights, what doctor says of a server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import anyio
import asyncpg
import attrs
import pytest

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Durability, Level
from converge.errors import StoreRefused, StoreUnavailable, Unsupported, ValueTooLarge
from converge.model.keys import HELD, LEASE, STATE, TASK
from converge.testing.servers import postgres_server
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql.postgresql.inspection import Settings, inspection

PAGE = Path(__file__).parents[2] / "docs/reference/postgresql.md"


@pytest.fixture
async def server(postgres_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


def grants(network: str, reader: str, agents: str, schema: str = "public") -> str:
    """The statements of the page, for other names."""
    block = str(*re.findall(r"^```text\n(grant .*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    named = block.replace("converge_tasks", f"{network}_tasks").replace("schema public", f"schema {schema}")
    return named.replace("to reader", f"to {reader}").replace("to agents", f"to {agents}")


async def test_the_view_shows_a_task_in_each_place_of_its_life(
    postgres_url: str,
    options: SqlOptions,
    server: asyncpg.Connection,
    check_view: Callable[..., Awaitable[None]],
) -> None:
    async def rows() -> list[asyncpg.Record]:
        return list(await server.fetch(f"select * from {options.network}_tasks"))

    await check_view(postgres_url, options.network, rows, lambda moment: moment)


async def test_a_record_that_cannot_be_read_keeps_no_other_from_being_shown(
    store: SqlStore, options: SqlOptions, server: asyncpg.Connection
) -> None:
    odd = b'{"pool":"docs","priority":"high","max_attempts":1.5,"attempts":99999999999999999999,"rank":[],"due":1e300}'
    for number, value in enumerate((b"\xff{", odd, b'{"pool":"d\\u0000cs"}', b'{"pool":"docs"}')):
        id_ = bytes([number]) * 16
        lease = [(LEASE(id_), b'{"pid":"x"}'), (HELD(id_, 0, id_, id_), value)] if number == 1 else []
        await store.commit([Batch(puts=[(TASK(id_), value), (STATE(id_), value), *lease])])
    rows = await server.fetch(f"select * from {options.network}_tasks order by id")
    assert [row["pool"] for row in rows] == [None, "docs", "dcs", "docs"]


async def test_the_view_of_a_store_made_before_is_renewed_and_its_readers_stay(
    postgres_url: str, options: SqlOptions, server: asyncpg.Connection
) -> None:
    view, reader = f"{options.network}_tasks", f"reader_{options.network}"
    async with SqlStore.open(postgres_url, options):
        pass
    await server.execute(
        f"create role {reader}; drop view {view}; create view {view} as select 1 as id;"
        f"grant select on {view} to {reader}"
    )
    assert await SqlStore.pending(postgres_url, options) == [f"the view {view}, with its present columns"]
    async with SqlStore.open(postgres_url, options):
        assert await SqlStore.pending(postgres_url, options) == []
    assert await server.fetchval(f"select has_table_privilege('{reader}', '{view}', 'select')")
    await server.execute(f"comment on view {view} is 'converge view 99'; drop owned by {reader}; drop role {reader}")
    async with SqlStore.open(postgres_url, options):  # a newer release's is left alone
        assert await server.fetchval(f"select obj_description('{view}'::regclass)") == "converge view 99"


async def test_each_role_can_do_its_own_and_no_more(
    postgres_url: str, options: SqlOptions, server: asyncpg.Connection
) -> None:
    owner, agents, reader = (f"{role}_{options.network}" for role in ("owner", "agents", "reader"))
    schema = f"s_{options.network}"
    for role in (owner, agents, reader):
        await server.execute(f"create role {role} login")
    await server.execute(f"create schema {schema} authorization {owner}")

    def url_of(role: str) -> str:
        return postgres_url.replace("postgres@", f"{role}@")

    placed = SqlOptions(network=options.network, schema=schema)
    with pytest.raises(StoreRefused, match="migrate"):
        async with SqlStore.open(url_of(agents), placed):
            pass
    async with SqlStore.open(url_of(owner), placed):
        pass
    own = await asyncpg.connect(url_of(owner), server_settings={"search_path": schema})
    await own.execute(grants(options.network, reader, agents, schema))
    await own.close()
    async with open_store(url_of(agents), options={"sql": {"schema": schema}}, network=options.network) as opened:
        await PoolManager(opened).create_pool(Pool(id="docs"))
        tasks, watch = TaskManager(opened), aiter(opened.watch(["c"]))
        await anext(watch)
        await opened.commit([], wake=["c"])
        with anyio.fail_after(10):
            await anext(watch)
        await watch.aclose()  # type: ignore[attr-defined]  # every watch is an async generator
        await tasks.submit_many([Task(pool_id="docs", ordering_key="k"), Task(pool_id="docs", ordering_key="k")])
        (task,) = await tasks.claim("worker", ["docs"], limit=2)
        await tasks.complete(task)
        assert await SqlStore.pending(url_of(agents), placed) == []
    seeing = await asyncpg.connect(url_of(reader), server_settings={"search_path": schema})
    assert await seeing.fetchval(f"select count(*) from {options.network}_tasks") == 2
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await seeing.execute(f"delete from {options.network}_task")
    await seeing.close()
    acting = await asyncpg.connect(url_of(agents), server_settings={"search_path": schema})
    for statement in (f"drop table {options.network}_task", f"alter table {options.network}_task add x int"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await acting.execute(statement)
    await acting.close()
    await server.execute(f"drop owned by {owner}, {agents}, {reader} cascade; drop role {owner}, {agents}, {reader}")


async def test_doctor_is_told_what_the_server_promises(store: SqlStore) -> None:
    told = await store.inspect()
    assert told is not None and told.durability is store.durability is Durability.D1  # fsync is off in these tests
    assert re.fullmatch(r"PostgreSQL 18\.\d+", told.product) and told.role == "primary" and told.is_tested
    assert [(one.level, one.mend) for one in told.findings if one.code == "durability"] == [
        (Level.ERROR, "alter system set fsync = on; select pg_reload_conf()")
    ]


def test_each_of_several_weak_settings_is_named() -> None:
    weak = Settings(180001, "off", "off", "off", "b", False, "off", 1.0, "UTF8", "off")
    mends = {one.mend for one in inspection(weak, 2).findings if one.level is not Level.OK}
    found = [set(re.findall(r"alter system set (\w+) = on; ", mend)) for mend in mends]
    for names in ({"synchronous_commit"}, {"fsync"}, {"full_page_writes"}, {"autovacuum", "track_counts"}):
        found.remove(names)
    assert found == [] and all("select pg_reload_conf()" in mend for mend in mends)


@pytest.mark.parametrize(
    ("changed", "code", "level"),
    [
        ({"synchronous_commit": "off"}, "durability", Level.ERROR),
        ({"full_page_writes": "off"}, "durability", Level.ERROR),
        ({"standbys": "b"}, "durability", Level.OK),
        ({"is_standby": True}, "replica", Level.ERROR),
        ({"is_read_only": "on"}, "read-only", Level.WARNING),
        ({"oldest_sec": 7200.0}, "old-snapshot", Level.WARNING),
        ({"autovacuum": "off"}, "autovacuum", Level.WARNING),
    ],
)
def test_what_is_weak_has_a_finding(changed: dict[str, object], code: str, level: Level) -> None:
    well = Settings(180001, "on", "on", "on", "", False, "off", 1.0)
    assert {one.level for one in inspection(well, 2).findings} == {Level.OK}
    found = {one.code: one.level for one in inspection(well._replace(**changed), 2).findings}  # type: ignore[arg-type]
    assert found[code] is level


async def test_a_connection_to_another_host_that_is_not_encrypted_is_told(
    postgres_url: str, options: SqlOptions
) -> None:
    far = postgres_url.replace("127.0.0.1", "0.0.0.0")  # this host, by an address that is not seen to be its own
    found = []
    for url, own in ((postgres_url, options), (far, options), (far, attrs.evolve(options, pooler=True))):
        async with SqlStore.open(url, own) as store:
            for told in (await store.inspect(), await SqlStore.look(url, own)):
                assert told is not None
                found.append([one.mend for one in told.findings if one.code == "tls"])
    assert found[:2] == found[4:] == [[], []] and found[2] == found[3]
    assert "sslmode=verify-full" in found[2][0]


async def test_bad_places_are_refused_each_in_its_words_and_nothing_is_written(
    postgres_url: str, options: SqlOptions, server: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = postgres_url.rpartition("/")[0] + "/nowhere"
    with pytest.raises(StoreUnavailable, match="create the database"):
        async with SqlStore.open(absent, options):
            pass
    with pytest.raises(Unsupported, match="asyncpg"):
        async with SqlStore.open(postgres_url.replace("postgresql:", "postgresql+psycopg2:"), options):
            pass
    async with open_store(postgres_url, network=options.network) as opened:
        await PoolManager(opened).create_pool(Pool(id="docs"))
        with pytest.raises(ValueTooLarge):
            await TaskManager(opened).submit(Task(pool_id="docs", inputs={"blob": "x" * (100 << 20)}))
        assert await server.fetchval(f"select count(*) from {options.network}_task") == 0
    monkeypatch.setitem(__import__("sys").modules, "asyncpg", None)
    with pytest.raises(Unsupported, match=r"pip install converge-store-sql\[postgresql\]"):
        async with SqlStore.open(postgres_url, options):
            pass


@pytest.mark.parametrize("kind", ["table {0}_task (x int)", "view {0}_tasks as select 1 x", "table {0}_schema (x int)"])
async def test_tables_of_another_program_are_left_alone_and_refused(
    postgres_url: str, options: SqlOptions, server: asyncpg.Connection, kind: str
) -> None:
    await server.execute(f"create {kind.format(options.network)}")
    for look in (_opened, SqlStore.pending):
        with pytest.raises(StoreRefused, match=r"of another program, without the column .* choose another network"):
            await look(postgres_url, options)
    found = await server.fetch("select relname from pg_class where starts_with(relname, $1 || '_')", options.network)
    assert [name for (name,) in found] == [kind.split()[1].format(options.network)], "nothing is beside it"
    assert await server.fetchval(f"select count(x) from {found[0][0]}") == ("view" in kind), "it is as it was"


async def _opened(url: str, options: SqlOptions) -> None:
    async with SqlStore.open(url, options):
        pass


@pytest.mark.parametrize("version", [16])
async def test_an_older_server_does_the_same_work(version: int, options: SqlOptions) -> None:
    with postgres_server(fsync=False, version=version) as url:
        async with open_store(url, network=options.network) as opened:
            told = await opened.inspect()
            assert told is not None and told.is_tested and told.product.startswith(f"PostgreSQL {version}.")
            await PoolManager(opened).create_pool(Pool(id="docs"))
            tasks = TaskManager(opened)
            ids = await tasks.submit_many([Task(pool_id="docs") for _ in range(20)])
            claimed = await tasks.claim("worker", ["docs"], limit=20)
            for task in claimed:
                await tasks.complete(task)
            assert sorted(ids) == sorted(task.id for task in claimed)
