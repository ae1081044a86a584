"""A store that freezes, restarts, or refuses writes, under a real process of `converge run`: its health endpoint says
so in time and does not ask for a restart, and when the store is well again work goes on by itself, with nothing lost.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import attrs
import psycopg
import pytest
from anyio import to_thread
from psycopg import sql
from redis import Redis

from converge import Task, TaskManager, TaskState, open_store
from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, all_terminal
from converge.testing.servers import ServerUrl, free_port, postgres_server, redis_server

IS_FULL = os.environ.get("FULL_TESTS") == "1"
POOL = "faults"
SOON_SEC = 30.0
"""How soon an outage is to show, and its end: 3 s and 5 s where a machine has nothing else to do, which is printed."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

needs_full = pytest.mark.skipif(not IS_FULL, reason="with FULL_TESTS=1 only, for its length")


def processes_of(server: ServerUrl) -> list[int]:
    """The server's process, and those that it has started."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [server.pid, *map(int, children)]


@contextmanager
def frozen(server: ServerUrl) -> Iterator[None]:
    """Keep the server from running; its connections stay."""
    ids = processes_of(server)

    def tell(do: Callable[[int], None]) -> None:
        for id_ in ids:
            with suppress(ProcessLookupError):  # a child of the server that has ended
                do(id_)

    tell(stand_still)
    try:
        yield
    finally:
        tell(lambda id_: os.kill(id_, signal.SIGCONT))


@contextmanager
def redis_refuses(server: ServerUrl) -> Iterator[None]:
    """Let the server answer reads and refuse writes: it misses a replica."""
    with Redis.from_url(server) as redis:
        redis.config_set("min-replicas-to-write", 1)
        try:
            yield
        finally:
            redis.config_set("min-replicas-to-write", 0)


@contextmanager
def postgres_refuses(server: ServerUrl) -> Iterator[None]:
    """Let the server answer reads and no writes: somebody holds its tables, as a migration does."""
    with psycopg.connect(server) as connection:
        tables = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
        for (table,) in tables:
            connection.execute(sql.SQL("lock table {} in exclusive mode").format(sql.Identifier(table)))
        assert tables
        yield
        connection.rollback()


@attrs.frozen
class Kind:
    """A kind of server, and how it is made to refuse writes."""

    plugin: str
    url: str
    server: Callable[..., AbstractContextManager[ServerUrl]]
    refusing: Callable[[ServerUrl], AbstractContextManager[None]]


KINDS = {
    "redis": Kind("redis", "redis://127.0.0.1:{}/0", redis_server, redis_refuses),
    "postgres": Kind("sql", "postgresql://postgres@127.0.0.1:{}/postgres", postgres_server, postgres_refuses),
}


@asynccontextmanager
async def opened(fleet: Fleet) -> AsyncIterator[TaskManager]:
    """Give a task manager of the test's own process."""
    async with open_store(fleet.url, plugins=fleet.plugins, network=fleet.network) as store:
        yield TaskManager(store, poll_sec=0.3)


@attrs.define
class Watched:
    """A process of `converge run`, and what its health endpoint answers."""

    fleet: Fleet
    process: subprocess.Popen[bytes]

    async def asked(self, path: str) -> tuple[int, str]:
        """The status and body of an answer; 0 while nothing listens."""
        return await to_thread.run_sync(self._ask, path)

    def _ask(self, path: str) -> tuple[int, str]:
        if (url := re.search(r"health at (http://[\d.:]+)", self.fleet.log_of(self.process))) is None:
            return 0, ""
        try:
            with urllib.request.urlopen(url[1] + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    async def until_ready(self, within_sec: float) -> None:
        """Return once it is ready."""
        began = time.monotonic()

        async def is_ready() -> bool:
            assert self.process.poll() is None, self.fleet.log_of(self.process)
            return (await self.asked("/readyz"))[0] == 200

        await wait_until(is_ready, timeout=within_sec, what="ready")
        print(f"ready after {time.monotonic() - began:.1f} s")  # noqa: T201  # shown with -s, and when it fails

    async def until_it_tells(self) -> None:
        """Return once it is not ready for the store's sake; it is live all the time."""
        began, told = time.monotonic(), ""

        async def tells() -> bool:
            nonlocal told
            assert (await self.asked("/livez"))[0] == 200, "a restart would not help"
            status, told = await self.asked("/readyz")
            return status == 503 and re.search("store_away|renewal_late|lease_lost|watch_deaf", told) is not None

        await wait_until(tells, timeout=SOON_SEC, what="not ready")
        print(f"told after {time.monotonic() - began:.1f} s: {told}")  # noqa: T201  # as above

        async def names_the_store() -> bool:
            return "store_away" in (await self.asked("/readyz"))[1]

        await wait_until(names_the_store, timeout=30, what="the store is named as the cause")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for the server's data, outside of the test's own, which a server of another user cannot enter."""
    with tempfile.TemporaryDirectory(prefix="converge-outage-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.parametrize("kind", ["redis", pytest.param("postgres", marks=needs_full)])
async def test_f6_an_outage_shows_in_time_and_work_goes_on_after_it_without_a_restart(
    kind: str, tmp_path: Path, folder: Path, namespace: str
) -> None:
    one, port = KINDS[kind], free_port()
    fleet = Fleet(
        tmp_path,
        one.url.format(port),
        agent="worker_agents:Worker",
        agents_folder=Path(__file__).parent,
        pool=POOL,
        network=namespace,
        plugins=[one.plugin],
    )
    ids: list[str] = []

    async def submit(tasks: TaskManager) -> None:
        """Leave some tasks that take a while."""
        ids.extend(await tasks.submit_many([Task(pool_id=POOL, inputs={"sleep": 0.1}) for _ in range(20)]))

    async def within(outage: Callable[[], AbstractContextManager[object]]) -> None:
        """Have an outage amid work, and see it told; when it is over, see all done that was ever submitted."""
        async with opened(fleet) as tasks:
            await submit(tasks)
        with outage():
            await watched.until_it_tells()
        await watched.until_ready(SOON_SEC)
        async with opened(fleet) as tasks:
            await submit(tasks)
            await all_terminal(tasks, ids, timeout=60)
            assert {(await tasks.get(id_)).state for id_ in ids} == {TaskState.COMPLETED}

    with ExitStack() as servers:

        def start() -> ServerUrl:
            return servers.enter_context(one.server(directory=folder, port=port))

        @contextmanager
        def restarting() -> Iterator[None]:
            """Stop the server, and start it again at the end."""
            servers.close()
            yield
            start()

        server = start()
        try:
            watched = Watched(fleet, fleet.start("--health", "127.0.0.1:0", agents=2))
            await watched.until_ready(60)
            await within(lambda: frozen(server))
            await within(lambda: one.refusing(server))
            await within(restarting)
            watched.process.terminate()
            with anyio.fail_after(60):
                assert await to_thread.run_sync(watched.process.wait) == 0
        finally:
            fleet.kill_all()
