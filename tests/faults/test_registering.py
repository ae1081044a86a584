"""F11: many processes that begin at once lose no agent and no pool, and one that comes later wipes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio.to_thread
import preloaded
import pytest

from converge import DiscoveryQuery, DiscoveryService, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Range
from converge.model.keys import LEASE, MEMBER, POOL

SCRIPT = Path(__file__).with_name("registrar.py")
PROCESSES = 20 if os.environ.get("FULL_TESTS") == "1" else 6

pytestmark = [pytest.mark.timeout(90), pytest.mark.parametrize("anyio_backend", ["asyncio"])]

Process = subprocess.Popen[str]


@contextmanager
def started(url: str) -> Iterator[Process]:
    """A process that is at the barrier; it is told to leave at the end."""
    process = preloaded.start(
        [sys.executable, str(SCRIPT), url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        with process:
            yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def say(process: Process, line: str) -> None:
    """Send it a line."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: Process) -> str:
    """Wait for its next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def register(processes: Sequence[Process]) -> dict[str, bool]:
    """Let all begin at once; return the id of each one's agent, and whether it created the pool."""
    assert {hear(process) for process in processes} == {"ready"}
    for process in processes:
        say(process, "go")
    lines = [hear(process).split() for process in processes]
    return {agent: created == "True" for agent, created in lines}


async def test_f11_processes_that_register_at_once_are_all_there(tmp_path: Path) -> None:
    """20 at a barrier, on a file that is not there yet, and a 21st later: 21 members, 21 descriptors, one pool with
    what was in it.
    """
    url = f"file:{tmp_path / 'state.db'}"
    with ExitStack() as stack:
        processes = [stack.enter_context(started(url)) for _ in range(PROCESSES)]
        first = await anyio.to_thread.run_sync(register, processes)
        assert len(first) == PROCESSES
        assert sum(first.values()) == 1, "several processes say that they created the pool"
        async with open_store(url) as store:
            tasks = TaskManager(store)
            ids = await tasks.submit_many([Task(pool_id="faults") for _ in range(30)])
            late = stack.enter_context(started(url))
            last = await anyio.to_thread.run_sync(register, [late])
            assert list(last.values()) == [False], "a process that came later created the pool again"
            pools, members, leases = await store.scan(
                [Range(POOL(), None, 100), Range(MEMBER(), None, 100), Range(LEASE(), None, 100)]
            )
            assert [entry.key[1] for entry in pools] == ["faults"]
            assert {entry.key[2] for entry in members} == first.keys() | last.keys()
            assert len(leases) == PROCESSES + 1
            found = await DiscoveryService(store=store).query(DiscoveryQuery(pool_id="faults"), refresh_from_store=True)
            assert {agent.id for agent in found} == first.keys() | last.keys()
            assert await PoolManager(store).create_pool(Pool(id="faults")) is False
            assert {task.id for task in await tasks.list(state=TaskState.PENDING, pool_id="faults")} == set(ids), (
                "a starting process wiped the pool"
            )
            for process in (*processes, late):
                say(process, "leave")
            assert [process.wait(30) for process in (*processes, late)] == [0] * (PROCESSES + 1)
