"""`converge run` finishes its other tasks whatever user code does, also to the event loop and beside its calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import misbehaviour

AGENTS = """
import asyncio
import inspect
import multiprocessing
import sys

import misbehaviour as bad
from converge import Agent

KINDS = {**bad.PLAIN, **bad.ASYNC}


def square(n):
    return n * n


async def bye():
    sys.exit(3)


class Worker(Agent):
    async def on_task(self, task):
        kind = task.inputs["kind"]
        if kind == "good":
            return await bad.behaves()
        if kind == "a task that exits":
            self.kept = asyncio.create_task(bye())
            return await asyncio.sleep(0.01)
        if kind == "a loop that is stopped":
            asyncio.get_running_loop().stop()
            return await asyncio.sleep(0.01)
        if kind == "a pool of processes":
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(square, range(3))
        did = KINDS[kind]()
        return await did if inspect.isawaitable(did) else did
"""

KINDS = [*misbehaviour.PLAIN, *misbehaviour.ASYNC, "a task that exits", "a loop that is stopped", "a pool of processes"]


def test_run_finishes_all_other_tasks(folder: Path) -> None:
    (folder / "worker.py").write_text(AGENTS)
    tasks = [{"inputs": {"kind": one}, "max_attempts": 1} for kind in KINDS for one in (kind, "good")]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    command = [sys.executable, "-m", "converge", "run", "worker:Worker", "--pool", "p", "--submit", "tasks.jsonl"]
    path = str(Path(misbehaviour.__file__).parent)
    done = subprocess.run(
        [*command, "--drain", "--json"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": path, "PATH": ""},
    )
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1, done.stderr[-2_000:]
    assert len(ended) == len(tasks) and all(one["state"] in ("COMPLETED", "FAILED") for one in ended)
    assert [one["result"] for one in ended[1::2]] == ["good"] * len(KINDS)
    assert done.stderr.count("it goes on") == 2


FORKING = """
import asyncio
import os
import time

import anyio

from converge.cli.loop import loop_factory
from converge.foreign import children_end_here


async def main():
    await asyncio.sleep(0)  # the loop has begun to wait for threads
    with children_end_here():
        asyncio.get_running_loop().call_soon_threadsafe(int)
        if child := os.fork():
            os.waitpid(child, 0)
        await asyncio.sleep(0)
    await asyncio.to_thread(time.sleep, 0.2)  # until nothing but the thread wakes the loop
    print("woken")


anyio.run(main, backend_options={"loop_factory": loop_factory})
"""


def test_a_forked_child_takes_no_wake_up_of_its_parents(folder: Path) -> None:
    """It comes back to the event loop at its next await, and looks there for what a thread of the parent has written:
    a parent whose wake-up was lost would never hear of a thread again.
    """
    (folder / "forking.py").write_text(FORKING)
    done = subprocess.run([sys.executable, "forking.py"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "woken\n"), done.stderr
