"""A forked child cannot use, break or keep what it inherits of a store: its own handles work, its parent's go on."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Channel, Range, Store
from converge.errors import ForkedHandle
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until, wait_until_sync

# Python warns of forks beside threads: these tests are about just that.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

PROGRAM = Path(__file__).with_name("file_process.py")
FORKS = 1_000 if os.environ.get("FULL_TESTS") else 30
LANE: Channel = "lane.x"


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Store]:
    async with open_store("memory:" if kind == "memory" else f"file:{folder}/state.db") as store:
        yield store


async def in_child(work: Callable[[], None]) -> int:
    """Do this in a forked child; return its exit code: 0 if nothing was raised."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    with anyio.move_on_after(30):
        _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0, abandon_on_cancel=True)
        return os.waitstatus_to_exitcode(status)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the child hangs")


def refused(call: Coroutine[Any, Any, object]) -> None:
    """Expect a call to be refused at once: there is no event loop that it could wait in."""
    with pytest.raises(ForkedHandle, match="open the store in the child"):
        call.send(None)


def in_a_loop(work: Callable[[], Awaitable[object]], loop: str) -> None:
    """Do this in an event loop of a thread: the loop of this one is the parent's."""
    errors: list[BaseException] = []

    async def run() -> None:
        await work()

    def catch() -> None:
        try:
            anyio.run(run, backend=loop)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_a_child_cannot_use_an_inherited_handle_and_the_parent_can(
    tmp_path: Path, kind: str, anyio_backend_name: str
) -> None:
    async with opened(kind, tmp_path) as store:
        pools, tasks = PoolManager(store), TaskManager(store)
        await pools.create_pool(Pool(id="p"))
        id_ = await tasks.submit(Task(pool_id="p"))
        watch = aiter(store.watch([LANE]))
        await anext(watch)

        def use() -> None:
            refused(store.get([POOL("p")]))
            refused(store.scan([Range(POOL())]))
            refused(store.count([POOL()]))
            refused(store.commit([Batch(puts=[(POOL("q"), b"{}")])]))
            refused(store.turn([], None))
            refused(store.time())
            refused(store.facts())
            refused(anext(aiter(store.watch([LANE]))))  # type: ignore[arg-type]
            with pytest.raises(ForkedHandle):
                store.reopen()
            refused(pools.get("p"))
            refused(tasks.get(id_))
            refused(tasks.submit(Task(pool_id="p")))
            with pytest.raises(ForkedHandle):
                in_a_loop(lambda: tasks.claim("a", ["p"]), anyio_backend_name)

        assert await in_child(use) == 0
        (task,) = await tasks.claim("a", ["p"])
        await tasks.complete(task, 1)
        assert (await tasks.result(id_, timeout=10)).result == 1
        await watch.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_a_child_opens_the_store_anew_and_both_work_on(tmp_path: Path, anyio_backend_name: str) -> None:
    url = f"file:{tmp_path}/state.db"

    async def put(name: str) -> None:
        async with FileStore.open(url) as own:
            assert (await own.get([POOL("parent")]))[0] is not None
            await own.commit([Batch(puts=[(POOL(name), b"{}")])])

    async with FileStore.open(url) as store:
        stop = False

        async def write() -> None:
            while not stop:
                await store.commit([Batch(puts=[(POOL("parent"), b"{}")])])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            await wait_until(lambda: parent_is_there(store))
            for number in range(3):
                work = partial(put, f"child{number}")
                assert await in_child(partial(in_a_loop, work, anyio_backend_name)) == 0
            stop = True
        names = [entry.key[1] for entry in (await store.scan([Range(POOL())]))[0]]
    assert names == ["child0", "child1", "child2", "parent"]


async def parent_is_there(store: Store) -> bool:
    return (await store.get([POOL("parent")]))[0] is not None


def test_a_parent_killed_amid_a_write_leaves_no_lock_and_no_socket_to_its_child(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with subprocess.Popen([sys.executable, str(PROGRAM), "orphan", str(path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    try:

        async def work() -> None:
            async with FileStore.open(f"file:{path}") as store:
                await store.commit([Batch(puts=[(POOL("after"), b"{}")])])

        began = time.monotonic()
        anyio.run(work)
        assert time.monotonic() - began < 30.0, "the child holds the lock, as long as it lives"
        assert [name for name in os.listdir(f"{path}.wake") if name.endswith(".sock")] == [], (
            "the child keeps the socket"
        )
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
        wait_until_sync(lambda: not is_running(child), what="the end of the child")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_children_that_end_amid_writes_with_all_their_destructors_harm_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    command = [sys.executable, str(PROGRAM), "destroy", str(path), str(FORKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100 + FORKS / 5, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    acknowledged = int(done.stdout)
    connection = sqlite3.connect(path)
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    (there,) = connection.execute("select count(*) from f_task").fetchone()
    connection.close()
    assert there == acknowledged > 0


def test_a_signal_that_comes_with_the_fork_itself_ends_the_child_and_is_not_heard_by_its_parent() -> None:
    done = subprocess.run([sys.executable, "-c", STRUCK], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "child ended by 15, parent heard 0\n", "")


STRUCK = """
import os, signal, threading, warnings
import anyio

# Runs in the child before what converge does there: a signal that comes as early as any can.
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
from converge.operations.signals import stop_asked

warnings.simplefilter("ignore", DeprecationWarning)

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

async def main():
    with stop_asked(60) as asked:
        code = await anyio.to_thread.run_sync(fork)
        await anyio.sleep(0.2)  # in which a thread would hear what was meant for the child
        print(f"child ended by {-code}, parent heard {asked.number}")

anyio.run(main)
"""


def test_a_signal_to_a_forked_child_ends_the_child_and_does_not_stop_its_parent(tmp_path: Path) -> None:
    (tmp_path / "pooled.py").write_text(POOLED)
    (tmp_path / "tasks.jsonl").write_text('{"inputs": {"numbers": [1, 2, 3]}}\n' * 4)
    command = [
        *(sys.executable, "-m", "converge", "run", "pooled:Squares", "--pool", "p", "--store", "file:s.db"),
        *("--submit", "tasks.jsonl", "--drain"),
    ]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "SIGTERM" not in ran.stderr
    connection = sqlite3.connect(tmp_path / "s.db")
    assert connection.execute("select place, count(*) from converge_tasks group by place").fetchall() == [("done", 4)]
    connection.close()


POOLED = """
import multiprocessing
from converge import Agent, Task

def square(number):
    return number * number

class Squares(Agent):
    def on_task(self, task: Task):
        with multiprocessing.get_context("fork").Pool(2) as pool:  # its end sends SIGTERM to its own processes
            return pool.map(square, task.inputs["numbers"])
"""
