"""Real processes on PostgreSQL, MariaDB and Redis under kill -9, SIGSTOP beyond the lease, cut connections and crashes
of the server: nothing that was acknowledged is lost, nothing is completed twice, and all ends in time.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import anyio
import asyncpg
import preloaded
import pytest

from converge import Pool, PoolManager, TaskManager, open_store
from converge.errors import NoSuchTask
from converge.testing.cuts import cut_proxy
from converge.testing.servers import ServerUrl, free_port, mariadb_server, postgres_server, redis_server
from converge.testing.store import Cut

IS_FULL = os.environ.get("FULL_TESTS") == "1"
SECONDS, WORKERS, LEAST_STALE = (60.0, 6, 10) if IS_FULL else (4.0, 3, 1)
LEASE_SEC = 2.0  # short: as the processes have it
PROGRAM = Path(__file__).with_name("chaos_agent.py")

pytestmark = pytest.mark.timeout(300)


class Server(ABC):
    """A server that is crashed and started again, on one port and folder; `near` is where the processes connect."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._stack = ExitStack()
        self.url = self.start()
        self.near: str = self.url

    @abstractmethod
    def start(self) -> ServerUrl:
        """Start it."""

    @abstractmethod
    def cut(self, dice: random.Random) -> None:
        """End connections, in whatever they are."""

    def crash(self) -> None:
        """End it at once, as a crash does, and start it again."""
        os.kill(self.url.pid, self.crashing)
        self._stack.close()
        self._stack = ExitStack()
        self.url = self.start()

    crashing = signal.SIGKILL

    def close(self) -> None:
        self._stack.close()


class Postgres(Server):
    """PostgreSQL; half of its connections are ended by itself."""

    crashing = signal.SIGQUIT

    def start(self) -> ServerUrl:
        return self._stack.enter_context(postgres_server(directory=self._folder, port=self._port))

    def cut(self, dice: random.Random) -> None:
        anyio.run(_cut, self.url, dice.randrange(2))


class Proxied(Server):
    """One behind a proxy that breaks a connection before the request or the answer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._proxies = ExitStack()
        self._proxy = self._proxies.enter_context(cut_proxy(self.url))
        self.near = self._proxy.url

    def cut(self, dice: random.Random) -> None:
        for _ in range(6):
            self._proxy.cut(dice.choice(list(Cut)))
            time.sleep(0.1)  # the next call meets it

    def close(self) -> None:
        self._proxies.close()
        super().close()


class Redis(Proxied):
    """Redis, with each write on the disk: else a crash may take what a busy disk was not given yet."""

    def start(self) -> ServerUrl:
        settings = ("--appendfsync", "always")
        return self._stack.enter_context(redis_server(directory=self._folder, port=self._port, options=settings))


class Mariadb(Proxied):
    """MariaDB at its defaults."""

    def start(self) -> ServerUrl:
        return self._stack.enter_context(mariadb_server(directory=self._folder, port=self._port))


class Agents:
    """The processes, and what they have said."""

    def __init__(self, url: str, network: str, dice: random.Random) -> None:
        self._command = [sys.executable, str(PROGRAM), url, network]
        self.dice = dice
        self.alive: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        self.said: Counter[tuple[str, ...]] = Counter()
        self._counting = threading.Lock()  # a thread counts for each process; another one looks meanwhile
        self.last: dict[int, str] = {}  # what each process said last

    def start(self) -> None:
        process = preloaded.start([*self._command, str(self.dice.randrange(10**6))], stdout=subprocess.PIPE, text=True)
        thread = threading.Thread(target=self._read, args=[process])
        thread.start()
        self.alive.append((process, thread))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as said:
            for line in said:
                if line.endswith("\n"):
                    with self._counting:
                        self.said[tuple(line.split())] += 1
                    self.last[process.pid] = line.split()[0]

    def kill(self, index: int) -> None:
        process, thread = self.alive.pop(index)
        process.kill()
        process.wait(30)
        thread.join(30)

    def pause(self) -> None:
        """Stop one that holds a claim for longer than its lease."""
        until = time.monotonic() + 60
        while not (holders := [one for one, _ in self.alive if self.last.get(one.pid) == "holding"]):
            assert time.monotonic() < until, "nobody holds a claim"
            time.sleep(0.01)
        process = self.dice.choice(holders)
        process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_SEC * 1.4)
        process.send_signal(signal.SIGCONT)

    def ids(self, what: str) -> dict[str, int]:
        with self._counting:
            return {words[1]: count for words, count in self.said.items() if words[0] == what}


async def _cut(url: str, part: int) -> None:
    """End half of the connections of the processes, in whatever they are."""
    connection = await asyncpg.connect(url)
    ended = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'converge' "
        "and pid % 2 = $1"
    )
    await connection.fetchval(ended, part)
    await connection.close()


def enough(agents: Agents) -> bool:
    """Whether so much was done that the test shows something, however slow the machine is."""
    submitted, completed, stale = (len(agents.ids(what)) for what in ("submitted", "completed", "stale"))
    return submitted > 20 and completed > 5 and stale >= LEAST_STALE


def storm(agents: Agents, server: Server) -> None:
    for _ in range(WORKERS):
        agents.start()
    until = time.monotonic() + 60
    while len(agents.ids("completed")) < WORKERS:
        assert time.monotonic() < until, "nothing was ever completed"
        time.sleep(0.05)
    until, faults = time.monotonic() + SECONDS, 0
    while time.monotonic() < until or faults < 4 or (not enough(agents) and time.monotonic() < until + 60):
        kind = faults % 4  # each kind in a short run too
        if kind == 0:
            agents.pause()
        elif kind == 1:
            agents.kill(agents.dice.randrange(len(agents.alive)))
            agents.start()
        elif kind == 2:
            server.cut(agents.dice)
        else:
            server.crash()
        faults += 1
        time.sleep(agents.dice.uniform(0, 0.5))


def wrong(submitted: Iterable[str], completed: dict[str, int], stored: dict[str, str]) -> dict[str, list[str]]:
    """What the history says against the store."""
    return {
        "lost": [one for one in submitted if one not in stored],
        "twice": [one for one, count in completed.items() if count > 1],
        "undone": [one for one in completed if stored.get(one) != "COMPLETED"],
    }


def test_what_is_wrong_is_found() -> None:
    assert wrong(["a"], {"b": 2}, {"b": "PENDING"}) == {"lost": ["a"], "twice": ["b"], "undone": ["b"]}


@pytest.mark.parametrize("kind", [Postgres, Mariadb, Redis])
async def test_nothing_acknowledged_is_lost_or_done_twice_whatever_happens(
    kind: type[Server], namespace: str, debian: Callable[[str, str], str]
) -> None:
    if kind is Mariadb:
        debian("mariadb-server", "mariadbd")
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")  # noqa: T201  # a failure can be played again
    with tempfile.TemporaryDirectory(prefix="converge-chaos-", ignore_cleanup_errors=True) as folder:
        server = kind(Path(folder))
        agents = Agents(server.near, namespace, random.Random(seed))
        try:
            async with open_store(server.url, network=namespace) as store:
                await PoolManager(store).create_pool(Pool(id="p"))
            await anyio.to_thread.run_sync(storm, agents, server)
            while len(agents.alive) > 0:
                agents.kill(0)
            # Who is killed between the store's answer and its own word has said nothing of what it submitted.
            known = [*{**agents.ids("submitted"), **agents.ids("completed")}]
            async with open_store(server.url, network=namespace) as store:
                stored = await _finished(TaskManager(store, poll_sec=0.5), known)
        finally:
            while agents.alive:
                agents.kill(0)
            server.close()
    counts = {what: len(agents.ids(what)) for what in ("submitted", "completed", "stale", "unknown")}
    print(counts, {words: count for words, count in agents.said.items() if words[0] == "failed"})  # noqa: T201
    found = wrong(agents.ids("submitted"), agents.ids("completed"), stored)
    assert found == {"lost": [], "twice": [], "undone": []}, counts
    assert len(stored) > 20 and enough(agents), counts


async def _finished(tasks: TaskManager, ids: list[str]) -> dict[str, str]:
    """Work off what is left, within two leases and five seconds after nothing is to be had; return all states."""
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < LEASE_SEC * 2 + 5:
        claimed = await tasks.claim("last", ["p"], limit=100)
        for task in claimed:
            await tasks.complete(task, "done")
        if claimed:
            idle_since = time.monotonic()
        elif not await tasks.list(state="PENDING", limit=1) and not await tasks.list(state="ASSIGNED", limit=1):
            break
        else:
            await anyio.sleep(0.2)  # leases of the dead have to end
    stored = {}
    for task_id in ids:
        try:
            stored[task_id] = (await tasks.get(task_id)).state
        except NoSuchTask:
            continue
    assert set(stored.values()) <= {"COMPLETED", "FAILED"}, Counter(stored.values())
    return stored
