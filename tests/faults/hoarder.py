"""A process through which many tasks and agents go: `hoarder.py PATH ROUNDS`. It writes a line of JSON with what is
there after each round.

A round is 5,000 tasks, and 100 agents that come and go. After the first round and after the last it waits until
retention has removed all of it.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import sys
import time
from contextlib import suppress

import anyio

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import LIMITS, Range, Store
from converge.errors import NoSuchTask
from converge.model.keys import DONE, FAMILIES
from converge.testing.fixtures import wait_until

TASKS, AGENTS, RETENTION_SEC = 5_000, 100, 5.0
PROBES = 60


class Worker(Agent):
    """Does nothing, quickly."""

    concurrency = 50

    async def on_task(self, task: Task) -> int:
        return 1


async def main(path: str, rounds: int) -> None:
    """Go through the rounds."""
    async with open_store(f"file:{path}") as store:
        pools = PoolManager(store)
        for pool in ("load", "probe"):
            await pools.create_pool(Pool(id=pool, keep_completed_sec=RETENTION_SEC, keep_failed_sec=RETENTION_SEC))
        async with Node(store=f"file:{path}", poll_sec=0.2, grace_sec=1.0) as node:
            await node.spawn(Worker, count=4, pool="load")
            for number in range(rounds):
                await work(path, store)
                claim_cost = await probe(store, f"{path}.{number}")
                if number in (0, rounds - 1):
                    await until_removed(store)
                print(json.dumps({"claim_cost": claim_cost, **await what_is_there(path, store)}), flush=True)  # noqa: T201 - read by the test


async def work(path: str, store: Store) -> None:
    """5,000 tasks, and 100 agents that work on some of them."""
    tasks = TaskManager(store)
    async with Node(store=f"file:{path}", poll_sec=0.2, grace_sec=1.0) as visitor:
        await visitor.spawn(Worker, count=AGENTS, pool="load")
        for _ in range(10):
            ids = await tasks.submit_many(
                [Task(pool_id="load", topic=f"t{number % 20}") for number in range(TASKS // 10)]
            )
        for task_id in ids:
            with suppress(NoSuchTask):  # on a slow machine its retention may have passed
                await tasks.result(task_id)

        async def is_done() -> bool:
            return not any(
                [await tasks.list(state=state, pool_id="load", limit=1) for state in ("PENDING", "ASSIGNED")]
            )

        await wait_until(is_done, timeout=60, what="all have ended")


async def probe(store: Store, fresh_path: str) -> float:
    """How much longer one claim takes at its best than in a fresh store: both in turn, on the same busy machine."""
    async with open_store(f"file:{fresh_path}") as fresh:
        await PoolManager(fresh).create_pool(Pool(id="probe"))
        both = [TaskManager(one) for one in (store, fresh)]
        for tasks in both:
            await tasks.submit_many([Task(pool_id="probe") for _ in range(PROBES)])
        took: dict[TaskManager, list[float]] = {tasks: [] for tasks in both}
        for tasks in PROBES * both:
            began = time.perf_counter()
            claimed = await tasks.claim("prober", ["probe"])
            took[tasks].append(time.perf_counter() - began)
            await tasks.complete(claimed[0])
    here, there = (min(took[tasks]) for tasks in both)
    return here / there


async def until_removed(store: Store) -> None:
    """Wait for retention."""

    async def is_removed() -> bool:
        return not any(await store.scan([Range(DONE(), None, 1)]))

    await wait_until(is_removed, timeout=60, what="retention has removed all")


async def what_is_there(path: str, store: Store) -> dict[str, object]:
    """The rows of each family, the pages of the file, the objects and the memory of this process."""
    rows = {}
    for family in FAMILIES.values():
        (page,) = await store.scan([Range(family(), None, LIMITS.keys)])
        rows[str(family)] = len(page)
    connection = sqlite3.connect(path)
    pages, free = (
        connection.execute("pragma page_count").fetchone()[0],
        connection.execute("pragma freelist_count").fetchone()[0],
    )
    connection.close()
    gc.collect()
    with open("/proc/self/statm") as statm:  # noqa: ASYNC230 - no file on a disk
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    objects = len(gc.get_objects())
    return {
        "rows": rows,
        "file_pages": pages,
        "used_pages": pages - free,
        "objects": objects,
        "resident_mb": resident / 1e6,
    }


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))
