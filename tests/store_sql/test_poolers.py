"""What may stand between a process and PostgreSQL: a transaction pooler, TLS."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Committed
from converge.errors import StoreRefused, StoreUnavailable
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port, port_answers, postgres_server, running
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql.postgresql.inspection import SETTINGS, Settings

USER = "nobody" if os.geteuid() == 0 else None


@pytest.fixture(scope="module")
def pooled_url(
    postgres_url: str, debian: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """PgBouncer in transaction mode, with fewer connections to the server than its clients have to it."""
    program, folder, port = debian("pgbouncer", "pgbouncer"), tmp_path_factory.mktemp("pooler"), free_port()
    server = urlsplit(postgres_url)
    config = Path("/tmp") / f"converge-pooler-{port}.ini"
    config.write_text(
        f"[databases]\n* = host={server.hostname} port={server.port} user=postgres\n[pgbouncer]\n"
        "pool_mode = transaction\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\nunix_socket_dir =\ndefault_pool_size = 3\n"
    )
    config.chmod(0o644)
    command = [program, str(config)]
    try:
        with running(command, directory=folder, ready=lambda: port_answers(port), user=USER):
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        config.unlink()


class Echo(Agent):
    concurrency = 4

    async def on_task(self, task: Task) -> object:
        return task.inputs


async def test_processes_behind_a_transaction_pooler_do_their_work(
    pooled_url: str, postgres_url: str, options: SqlOptions
) -> None:
    """The pool is narrower than the calls in flight, so each transaction may meet another server process."""
    through = {"sql": {"pooler": True}}
    async with (
        Node(store=pooled_url, options=through, network=options.network, lease_sec=10) as node,
        open_store(pooled_url, options=through, network=options.network) as other,
    ):
        await node.pools.create_pool(Pool(id="docs"))
        await node.spawn(Echo, pool="docs", count=2)
        tasks = TaskManager(other)
        ids = await tasks.submit_many([Task(pool_id="docs", inputs={"n": n}) for n in range(200)])
        for number, task_id in enumerate(ids):
            assert (await tasks.result(task_id, timeout=30)).result == {"n": number}
    direct = await asyncpg.connect(postgres_url)

    async def is_none(what: str) -> bool:
        return int(await direct.fetchval(f"select count(*) from {what}")) == 0

    try:
        # The processes of connections that were ended, of this test and of those before it, may be there for a moment.
        locks = "pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
        await wait_until(lambda: is_none(locks), timeout=30, what="no lock is left")
        await wait_until(
            lambda: is_none("pg_stat_activity where query ilike 'listen %'"), timeout=30, what="nobody listens"
        )
    finally:
        await direct.close()


async def test_a_pooler_that_was_not_named_is_told(pooled_url: str, options: SqlOptions) -> None:
    with pytest.raises(StoreRefused, match="set the option pooler"):
        async with SqlStore.open(pooled_url, options):
            pass


async def test_a_task_goes_in_with_a_transaction_behind_a_pooler(pooled_url: str, options: SqlOptions) -> None:
    engine = create_async_engine(
        pooled_url.replace("postgresql:", "postgresql+psycopg:"), connect_args={"prepare_threshold": None}
    )
    async with open_store(pooled_url, options={"sql": {"pooler": True}}, network=options.network) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        async with engine.begin() as connection:
            task_id = await TaskManager(store.within(connection)).submit(Task(pool_id="docs"))
        assert (await TaskManager(store).get(task_id)).id == task_id
    await engine.dispose()


async def test_a_schema_of_its_own_keeps_a_network_apart(
    pooled_url: str, postgres_url: str, options: SqlOptions
) -> None:
    connection = await asyncpg.connect(postgres_url)
    schema = f"s_{options.network}"
    try:
        await connection.execute(f"create schema {schema}")
        placed = SqlOptions(network=options.network, schema=schema)
        async with SqlStore.open(postgres_url, placed) as there, SqlStore.open(postgres_url, options) as here:
            (outcome,) = await there.commit([Batch(puts=[(POOL("p"), b"1")])])
            assert isinstance(outcome, Committed)
            assert await here.get([POOL("p")]) == [None]
            pooled = SqlOptions(network=options.network, schema=schema, pooler=True)
            async with SqlStore.open(pooled_url, pooled) as behind:
                (entry,) = await behind.get([POOL("p")])
                assert entry is not None and entry.value == b"1"
    finally:
        await connection.execute(f"drop schema {schema} cascade")
        await connection.close()


@pytest.fixture(scope="module")
async def tls_server(debian: Callable[[str, str], str]) -> AsyncIterator[tuple[str, Path]]:
    """A server that takes only TLS, and the certificate of the authority that it is known by. The wheels' servers have
    no TLS, Debian's has.
    """
    debian("postgresql-15", "postgres")
    folder = Path("/tmp") / f"converge-tls-{free_port()}"
    folder.mkdir()
    key, certificate = folder / "key.pem", folder / "cert.pem"
    await anyio.run_process(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key),
         "-out", str(certificate)]
    )  # fmt: skip
    key.chmod(0o600)
    rules = folder / "pg_hba.conf"
    rules.write_text(
        "local all all trust\nhost all postgres 127.0.0.1/32 trust\nhostssl all agents 127.0.0.1/32 trust\n"
    )
    for path in (folder, key, certificate, rules):
        if os.geteuid() == 0:
            shutil.chown(path, "postgres")  # Debian's package makes it, and the server runs as this user then
    settings = [f"ssl_cert_file={certificate}", f"ssl_key_file={key}", "ssl=on", f"hba_file={rules}"]
    try:
        with postgres_server(fsync=False, options=settings, version=15) as url:
            connection = await asyncpg.connect(url)
            await connection.execute("create role agents superuser login")
            await connection.close()
            yield url.replace("postgres@127.0.0.1", "agents@localhost"), certificate
    finally:
        shutil.rmtree(folder)


async def test_tls_is_used_and_checked_as_the_url_says(
    tls_server: tuple[str, Path], options: SqlOptions, tmp_path: Path
) -> None:
    url, certificate = tls_server
    trusted = f"{url}?sslmode=verify-full&sslrootcert={certificate}"
    async with SqlStore.open(trusted, options) as store, store.reopen() as other:
        await store.commit([Batch(puts=[(POOL("p"), b"1")])])
        assert (await other.get([POOL("p")]))[0] is not None
        watch = aiter(other.watch(["c"]))
        await anext(watch)
        await watch.aclose()  # type: ignore[attr-defined]  # every watch is an async generator
        used = "select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where usename = 'agents'"
        checked = await asyncpg.connect(trusted)
        assert await checked.fetchval(used)
        assert Settings(*await checked.fetchrow(SETTINGS)).is_encrypted
        await checked.close()
    wrong_name = trusted.replace("localhost:", "127.0.0.1:")
    for refused in (f"{url}?sslmode=disable", f"{url}?sslmode=verify-full&sslrootcert=system", wrong_name):
        with pytest.raises((StoreRefused, StoreUnavailable)):
            async with SqlStore.open(refused, options):
                pass
