"""A process that does all at once with a store's file that may be done with it: `python chaos_worker.py PATH SEED`.

It says each task whose submit, and whose completion, was acknowledged.
"""

from __future__ import annotations

import gc
import os
import random
import sqlite3
import sys
import time
from pathlib import Path

import anyio

from converge import Task, TaskManager, open_store
from converge.contracts.store import Store
from converge.errors import ForkedHandle, LeaseEnded, StaleClaim, StoreError, StoreReplaced
from converge.model.keys import POOL
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings

LEASE = LeaseSettings(lease_sec=2.0)  # short: many are to end
LOOPS = ("asyncio", "trio")


def say(*words: str) -> None:
    """Say a line at once: whoever is killed has said it or not."""
    os.write(1, (" ".join(words) + "\n").encode())


async def submit(tasks: TaskManager) -> None:
    """Submit a few tasks."""
    for id_ in await tasks.submit_many([Task(pool_id="p") for _ in range(3)]):
        say("submitted", id_)


async def work(tasks: TaskManager) -> None:
    """Claim and complete."""
    for task in await tasks.claim("agent", ["p"], limit=4):
        try:
            await tasks.complete(task, "done")
        except StaleClaim:
            continue  # it was away for longer than its lease
        say("completed", task.id)


def read(path: Path) -> None:
    """Open and close all that there is, as other code of the process may."""
    for suffix in ("", "-wal", "-shm"):
        try:
            path.with_name(path.name + suffix).read_bytes()
        except FileNotFoundError:
            continue  # the file is being replaced
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.execute("select count(*) from f_task").fetchone()
    except sqlite3.Error:
        return  # as above
    finally:
        connection.close()


def fork(store: Store, dice: random.Random) -> None:
    """Leave a child that tries what it inherits, and lives on for a while."""
    if os.fork() == 0:
        try:
            store.get([POOL("p")]).send(None)
        except ForkedHandle:
            gc.collect()
            time.sleep(dice.uniform(0, 1.0))
            os._exit(0)
        say("broken", "a child used an inherited handle")
        os._exit(1)


def reap() -> None:
    """Forget children that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


async def use(path: Path, dice: random.Random) -> None:
    """Work with two handles until one is dead."""
    url = f"file:{path}"
    async with open_store(url) as store, open_store(url) as other:
        for one in (store, other):
            StoreHandle.of(one, lease_settings=LEASE)
        managers = [TaskManager(one) for one in (store, other)]
        while True:
            reap()
            choice = dice.randrange(12)
            if choice < 5:
                await submit(dice.choice(managers))
            elif choice < 9:
                await work(dice.choice(managers))
            elif choice == 9:
                read(path)
            elif choice == 10:
                fork(store, dice)
            else:
                async with open_store(url) as third:
                    await submit(TaskManager(third))


async def main(path: Path, seed: int) -> None:
    """Go on for ever, whatever the store says."""
    dice = random.Random(seed)
    while True:
        try:
            await use(path, dice)
        except StoreReplaced:
            say("replaced")
        except (StoreError, LeaseEnded) as error:
            say("failed", type(error).__name__)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]), backend=LOOPS[int(sys.argv[2]) % 2])
