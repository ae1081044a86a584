"""Workers that are killed and stopped, a server that crashes and restarts: nothing acknowledged is lost on MariaDB, and
nothing is completed twice.
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
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from converge import Pool, PoolManager, TaskManager, open_store
from converge.errors import NoSuchTask
from converge.testing.servers import free_port, mariadb_server

SECONDS, RESTARTS = (60.0, 6) if os.environ.get("FULL_TESTS") == "1" else (5.0, 1)
WORKERS = 3
PROGRAM = Path(__file__).with_name("mysql_worker.py")

pytestmark = pytest.mark.timeout(240)


class Workers:
    """The processes, and what they have said."""

    def __init__(self, url: str, network: str, dice: random.Random) -> None:
        self._url, self._network, self.dice = url, network, dice
        self._alive: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        self.said: Counter[tuple[str, ...]] = Counter()

    def start(self) -> None:
        """Start one more."""
        command = [sys.executable, str(PROGRAM), self._url, self._network, str(self.dice.randrange(10**9))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        thread = threading.Thread(target=self._read, args=[process])
        thread.start()
        self._alive.append((process, thread))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as said:
            for line in said:
                if line.endswith("\n"):
                    self.said[tuple(line.split())] += 1

    def kill(self) -> None:
        """Kill one, at whatever it is."""
        process, thread = self._alive.pop(self.dice.randrange(len(self._alive)))
        process.kill()
        process.wait(30)
        thread.join(30)

    def kill_all(self) -> None:
        """Kill all."""
        while self._alive:
            self.kill()

    def ids(self, what: str) -> dict[str, int]:
        """Return the tasks of which this was said, with how often."""
        return {words[1]: count for words, count in self.said.items() if words[0] == what}

    def storm(self, seconds: float) -> None:
        """Kill and start workers for so long."""
        while not self.said:
            time.sleep(0.02)  # until the first of them has begun
        before, until = sum(self.said.values()), time.monotonic() + seconds
        while time.monotonic() < until or sum(self.said.values()) < before + 20:
            assert time.monotonic() < until + 60, "nothing goes on"
            time.sleep(self.dice.uniform(0.1, 0.8))  # between two kills
            self.kill()
            self.start()


async def test_nothing_acknowledged_is_lost_or_done_twice_while_workers_and_the_server_are_killed(
    debian: Callable[[str, str], str], namespace: str
) -> None:
    debian("mariadb-server", "mariadbd")
    seed, port = secrets.randbelow(10**6), free_port()
    print(f"seed {seed}")  # noqa: T201  # a failure can be played again
    with tempfile.TemporaryDirectory(prefix="converge-chaos-", ignore_cleanup_errors=True) as folder:
        workers: Workers | None = None
        try:
            for round_ in range(RESTARTS + 1):
                with mariadb_server(directory=Path(folder), port=port) as url:
                    if workers is None:
                        async with open_store(url, network=namespace) as store:
                            await PoolManager(store).create_pool(Pool(id="p"))
                        workers = Workers(url, namespace, random.Random(seed))
                        for _ in range(WORKERS):
                            workers.start()
                    await anyio.to_thread.run_sync(workers.storm, SECONDS / (RESTARTS + 1))
                    if round_ < RESTARTS:
                        os.kill(url.pid, signal.SIGKILL)
                        continue
                    workers.kill_all()
                    await _check(url, namespace, workers)
        finally:
            if workers is not None:
                workers.kill_all()


async def _check(url: str, network: str, workers: Workers) -> None:
    submitted, completed = workers.ids("submitted"), workers.ids("completed")
    lost, undone = [], []
    async with open_store(url, network=network) as store:
        tasks = TaskManager(store)
        for id_ in submitted:
            try:
                task = await tasks.get(id_)
            except NoSuchTask:
                lost.append(id_)
                continue
            if id_ in completed and task.state != "COMPLETED":
                undone.append(id_)
    counts = {what: len(workers.ids(what)) for what in ("submitted", "completed", "stale")}
    assert (lost, undone) == ([], []), counts
    assert [id_ for id_, count in completed.items() if count > 1] == []
    assert len(submitted) > 20 and len(completed) > 10, counts
