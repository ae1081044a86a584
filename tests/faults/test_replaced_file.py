"""A store's file that is replaced under live processes, by a backup say: they end, or say so, and never go on as if
nothing were.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import anyio
import preloaded
import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Store
from converge.errors import StoreReplaced, StoreRolledBack
from converge.model.keys import POOL
from converge.runtime.agents.ailments import Code
from converge.testing.fixtures import wait_until

UNREACHABLE = 4


class Echo(Agent):
    """Returns at once."""

    async def on_task(self, task: Task) -> str:
        return "done"


def copied(path: Path, to: Path) -> None:
    source, copy = sqlite3.connect(path), sqlite3.connect(to)
    source.backup(copy)
    source.close()
    copy.close()


def replace(path: Path, backup: Path) -> None:
    """Do what an operator does who restores a backup as the page says, but with the processes alive."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.replace(backup, path)


async def test_a_node_whose_file_was_replaced_is_not_live_and_says_so_to_all_who_call(tmp_path: Path) -> None:
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    async with Node(store=f"file:{path}", grace_sec=0.5, poll_sec=0.2) as node:
        await node.pools.create_pool(Pool(id="p"))
        await node.spawn(Echo, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p"))
        await node.tasks.result(id_, timeout=20)
        copied(path, backup)
        replace(path, backup)
        await wait_until(lambda: not node.health().is_live, timeout=20, what="the node is not live")
        (*_, reason) = [one for one in node.health().reasons if one.code == Code.STORE_AWAY]
        assert "state.db" in reason.text and "restart" in reason.text
        for call in (node.tasks.get(id_), node.tasks.submit(Task(pool_id="p")), node.pools.get("p")):
            with pytest.raises(StoreReplaced):
                await call


def worker(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "converge", "run", "echo:Echo", "--pool", "p", "--store", f"file:{path}"]
    return preloaded.start(command, cwd=path.parent, stderr=subprocess.PIPE, text=True)


async def test_a_process_whose_file_was_replaced_ends_with_code_4(tmp_path: Path) -> None:
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    (tmp_path / "echo.py").write_text(
        "from converge import Agent\nclass Echo(Agent):\n    async def on_task(self, task): return 'done'\n"
    )
    with worker(path) as process:
        try:
            async with open_store(f"file:{path}") as store:
                await wait_until(lambda: has_pool(store), timeout=30, what="the process runs")
                id_ = await TaskManager(store).submit(Task(pool_id="p"))
                await TaskManager(store).result(id_, timeout=20)
                copied(path, backup)
                replace(path, backup)
            await wait_until(lambda: process.poll() is not None, timeout=30, what="the process has ended")
        finally:
            process.kill()
        assert process.stderr is not None
        said = await anyio.to_thread.run_sync(process.stderr.read)
    assert process.returncode == UNREACHABLE, said
    assert "open the store again" in said or "open it again" in said
    async with open_store(f"file:{path}") as store:
        assert (await TaskManager(store).get(id_)).state == "COMPLETED"


async def has_pool(store: Store) -> bool:
    return (await store.get([POOL("p")]))[0] is not None


async def test_a_backup_that_is_copied_into_the_open_file_is_another_history(tmp_path: Path) -> None:
    path, backup = tmp_path / "state.db", tmp_path / "backup.db"
    async with open_store(f"file:{path}") as store:
        tasks = TaskManager(store)
        await PoolManager(store).create_pool(Pool(id="p"))
        copied(path, backup)
        for _ in range(3):
            await tasks.submit(Task(pool_id="p"))
        copied(backup, path)
        with pytest.raises(StoreRolledBack):
            for _ in range(3):
                await tasks.submit(Task(pool_id="p"))
