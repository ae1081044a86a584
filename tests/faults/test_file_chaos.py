"""Everything at once on one file: several handles a process, visitors, forks, replaced files, kill -9. Nothing that was
acknowledged is lost, and nothing is completed twice.
"""

from __future__ import annotations

import fcntl
import os
import random
import secrets
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import preloaded
import pytest

from converge import Pool, PoolManager, TaskManager, open_store
from converge.errors import NoSuchTask

SECONDS = 60.0 if os.environ.get("FULL_TESTS") == "1" else 4.0
WORKERS = 3
PROGRAM = Path(__file__).with_name("chaos_worker.py")

pytestmark = [pytest.mark.timeout(240), pytest.mark.parametrize("anyio_backend", ["asyncio"])]


class Workers:
    """The processes, and what they have said."""

    def __init__(self, path: Path, dice: random.Random) -> None:
        self.path, self.dice = path, dice
        self.alive: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        self.said: Counter[tuple[str, ...]] = Counter()
        self._counting = threading.Lock()  # a thread counts for each process; another one looks meanwhile
        self.errors: list[str] = []

    def start(self) -> None:
        """Start one more."""
        command = [sys.executable, str(PROGRAM), str(self.path), str(self.dice.randrange(10**6))]
        process = preloaded.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        thread = threading.Thread(target=self._read, args=[process])
        thread.start()
        self.alive.append((process, thread))

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None and process.stderr is not None
        with process.stdout as said, process.stderr as errors:
            for line in said:
                if line.endswith("\n"):
                    with self._counting:
                        self.said[tuple(line.split())] += 1
            self.errors += [line for line in errors.read().splitlines() if "Error" in line]

    def kill(self, index: int) -> None:
        """Kill one, at whatever it is."""
        process, thread = self.alive.pop(index)
        process.kill()
        process.wait(30)
        thread.join(30)  # its children hold the pipe for a moment more

    def ids(self, what: str) -> dict[str, int]:
        """Return the tasks of which this was said, with how often."""
        with self._counting:
            return {words[1]: count for words, count in self.said.items() if words[0] == what}


@contextmanager
def nobody_writes(path: Path) -> Iterator[None]:
    """Hold the store's two lock files."""
    with ExitStack() as stack:
        for suffix in (".turn", ".lock"):
            descriptor = os.open(f"{path}{suffix}", os.O_RDWR)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def replace(path: Path) -> None:
    """Put a true copy in the file's place, under living processes."""
    copy = path.with_name("copy.db")
    with nobody_writes(path):
        source, target = sqlite3.connect(path), sqlite3.connect(copy)
        source.backup(target)
        target.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        os.replace(copy, path)
        source.close()


def visit(path: Path) -> None:
    """Open the store with SQLite alone, in another process, and leave."""
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('select count(*) from f_task').fetchone()"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=30, capture_output=True)


def enough(workers: Workers) -> bool:
    """Whether so much was done that the test shows something, however slow the machine is."""
    return len(workers.ids("submitted")) > 20 and len(workers.ids("completed")) > 5


def storm(workers: Workers, path: Path) -> None:
    """Do all this until the time is over."""
    dice, until = workers.dice, time.monotonic() + SECONDS
    for _ in range(WORKERS):
        workers.start()
    while not workers.ids("completed"):
        assert time.monotonic() < until + 60, "nothing was ever completed"
        time.sleep(0.05)
    until = time.monotonic() + SECONDS
    while time.monotonic() < until or (not enough(workers) and time.monotonic() < until + 60):
        choice = dice.randrange(6)
        if choice < 2:
            workers.kill(dice.randrange(len(workers.alive)))
            workers.start()
        elif choice < 5:
            visit(path)
        else:
            replace(path)
        time.sleep(dice.uniform(0, 0.2))
    while workers.alive:
        workers.kill(0)


async def test_nothing_acknowledged_is_lost_or_done_twice_whatever_happens_to_the_file(tmp_path: Path) -> None:
    path, seed = tmp_path / "state.db", secrets.randbelow(10**6)
    print(f"seed {seed}")  # noqa: T201  # a failure can be played again
    async with open_store(f"file:{path}") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
    workers = Workers(path, random.Random(seed))
    try:
        await anyio.to_thread.run_sync(storm, workers, path)
    finally:
        while workers.alive:
            workers.kill(0)
    submitted, completed = workers.ids("submitted"), workers.ids("completed")
    lost, undone = [], []
    async with open_store(f"file:{path}") as store:
        tasks = TaskManager(store)
        for id_ in submitted:
            try:
                task = await tasks.get(id_)
            except NoSuchTask:
                lost.append(id_)
                continue
            if id_ in completed and task.state != "COMPLETED":
                undone.append(id_)
    counts = {what: len(workers.ids(what)) for what in ("submitted", "completed")}
    print(counts, {words: count for words, count in workers.said.items() if words[0] in ("failed", "replaced")})  # noqa: T201
    assert (lost, undone) == ([], []), counts
    assert [id_ for id_, count in completed.items() if count > 1] == []
    assert workers.ids("broken") == {} and enough(workers), workers.errors
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
