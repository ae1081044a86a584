"""Several processes at one file: nothing acknowledged is lost by kill -9, nothing is taken twice, a lone writer gets
its turn, wake-ups cross.
"""

from __future__ import annotations

import random
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import preloaded
import pytest

from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Committed, Range
from converge.model.keys import EXPIRY, HELD, POOL, READY, TASK

PROGRAM = Path(__file__).with_name("file_process.py")
LANE = b"lane" * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@contextmanager
def process(what: str, path: Path, number: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Another process; killed at the end if it still runs."""
    with preloaded.start([sys.executable, str(PROGRAM), what, str(path), str(number)], stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[bytes]) -> IO[bytes]:
    assert child.stdout is not None
    return child.stdout


def id_of(writer: int, number: int, part: int) -> bytes:
    return b"%03d.%09d.%02d" % (writer, number, part)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_kill_9_amid_commits_loses_nothing_acknowledged_and_leaves_no_half(path: Path) -> None:
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")  # noqa: T201  # a failure can be played again
    dice, last = random.Random(seed), 0
    async with FileStore.open(f"file:{path}") as store:
        for round_ in range(6):
            with process("write", path, 2 * round_) as first, process("write", path, 2 * round_ + 1) as second:
                for child in (first, second):
                    said(child).readline()
                time.sleep(dice.uniform(0.01, 0.2))  # noqa: ASYNC251  # the moment of the kill is what is drawn
                for child in (first, second):
                    child.send_signal(signal.SIGKILL)
                told = [[line.split() for line in (*said(child),) if line.endswith(b"\n")] for child in (first, second)]
            for writer, lines in enumerate(told, 2 * round_):
                numbers = range(
                    (int(lines[-1][0]) if lines else 0) + 2
                )  # and one that may have been written, unacknowledged
                for number in numbers:
                    entries = await store.get([TASK(id_of(writer, number, part)) for part in range(3)])
                    there = [entry is not None for entry in entries]
                    assert len(set(there)) == 1, f"half of batch {number} of writer {writer}"
                    assert all(there) or number == numbers[-1], (
                        f"batch {number} of writer {writer} was acknowledged and is lost"
                    )
                    last = max([last, *(entry.revision for entry in entries if entry is not None)])
            (outcome,) = await store.commit([Batch(puts=[(POOL("docs"), b"{}")])])
            assert type(outcome) is Committed and outcome.revision > last, "a revision was given twice"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_three_processes_take_each_task_once_and_a_lone_writer_gets_its_turn(path: Path) -> None:
    ids = [b"%016d" % number for number in range(6_000)]
    waits: list[float] = []
    async with FileStore.open(f"file:{path}") as store:
        for at in range(0, len(ids), 500):
            await store.commit(
                [Batch(puts=[(READY(LANE, rank, id_), b"") for rank, id_ in enumerate(ids[at : at + 500], at)])]
            )
        with process("take", path, 1) as first, process("take", path, 2) as second, process("take", path, 3) as third:
            children = (first, second, third)
            assert [said(child).readline() for child in children] == [b"ready\n"] * 3
            await store.commit([Batch(puts=[(POOL("start"), b"{}")])])  # now, since one of them alone is soon done
            taken = Counter(word for child in children for word in said(child).readline().split())
            while all(child.poll() is None for child in children) and len(waits) < 20:
                began = time.monotonic()
                await store.commit([Batch(puts=[(EXPIRY(bytes(16)), b"1")])])
                waits.append(time.monotonic() - began)
            taken.update(word for child in children for word in said(child).read().split())
            assert [child.wait() for child in children] == [0, 0, 0]
        left = await store.count([READY(LANE), HELD()])
    assert taken == Counter(id_.hex().encode() for id_ in ids)
    assert list(left) == [0, 0]
    assert len(waits) >= 3, "nobody was draining"
    # All but one: a machine that stands still makes one wait.
    assert sorted(waits)[-2] < 2.0, f"lone commits waited for {waits}, as without the turnstile"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_wake_reaches_a_watcher_in_another_process_after_its_writes(path: Path) -> None:
    latencies = []
    async with FileStore.open(f"file:{path}") as store:
        with process("watch", path) as child:
            assert said(child).readline() == b"none\n"
            for number in range(30):
                began = time.monotonic()
                await store.commit([Batch(puts=[(POOL("docs"), b"%d" % number)])], wake=["lane.x"])
                assert said(child).readline() == b"%d\n" % number
                latencies.append(time.monotonic() - began)
    assert statistics.median(latencies) < 0.5, f"the wake-ups came after {latencies}"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_killed_watcher_leaves_is_removed_by_the_next_to_open(path: Path) -> None:
    folder = path.with_name("state.db.wake")
    with process("watch", path) as child:
        said(child).readline()
        assert len(list(folder.iterdir())) == 2
    async with FileStore.open(f"file:{path}") as store:
        assert list(folder.iterdir()) == []
        assert (await store.scan([Range(POOL())]))[0] == []
