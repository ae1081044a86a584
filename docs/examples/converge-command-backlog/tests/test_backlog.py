"""The command, as users run it."""

import os
import subprocess
import sys
from pathlib import Path

import anyio

from converge import Pool, PoolManager, Task, TaskManager, open_store

PLUGIN = "converge_command_backlog.plugin:"
"""By its import path: that works from the sources, too; installed, `--plugin backlog` does."""


def converge(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command; the plugin is found where this process finds it."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "converge", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


async def fill(url: str) -> None:
    """Make a pool in which three tasks of two types wait."""
    async with open_store(url) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        await TaskManager(store).submit_many(
            [Task(pool_id="docs", type=type_) for type_ in ("count", "count", "spell")]
        )


def test_what_waits_is_listed_by_type(tmp_path: Path) -> None:
    url = f"file:{tmp_path}/state.db"
    anyio.run(fill, url)
    done = converge("backlog", "docs", "--plugin", PLUGIN, "--store", url)
    lines = [line.partition(", the oldest")[0] for line in done.stdout.splitlines()]
    assert (done.returncode, lines) == (1, ["count: 2", "spell: 1"]), done.stderr


def test_a_pool_that_is_not_there_is_told_as_by_any_command(tmp_path: Path) -> None:
    url = f"file:{tmp_path}/state.db"
    anyio.run(fill, url)
    done = converge("backlog", "dcos", "--plugin", PLUGIN, "--store", url)
    assert (done.returncode, "dcos" in done.stderr, "Traceback" in done.stderr) == (3, True, False)


def test_the_command_exists_only_where_its_plugin_is_named() -> None:
    done = converge("backlog", "docs")
    assert (done.returncode, "backlog" in done.stderr) == (2, True)
