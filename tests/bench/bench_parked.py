"""What do tasks cost that wait: memory of the node, its calls while nothing happens, bytes in the store?

    python tests/bench/bench_parked.py --stores file redis postgresql --count 100000

A node runs tasks that wait at once for a signal. Its memory and what it asks of the store while idle are printed for
no task and for all of them, so that each figure is a difference within one process; then one of them is signalled.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
from bench_pairs import PLUGINS, served

from converge import Agent, Node, Task, TaskState
from converge.model.keys import HELD, LATER, READY
from converge.testing.fixtures import wait_until

POOL = "bench"
TOGETHER = 1_000
"""Tasks of one submit; the next ones come when all of them wait."""

WARM = 2_000
"""Tasks that wait and end first, so that what a node keeps for itself is there before its memory is first read."""

IDLE_SEC = 20.0
"""How long calls are counted: some rounds of everything that a node does by itself."""

CALLS = ("get", "scan", "count", "turn", "commit", "time", "take")

STORES = ("file", "redis", "postgresql")


class Waits(Agent):
    """Waits for one signal."""

    concurrency = 100

    async def on_task(self, task: Task) -> int:
        await task.wait_for("go")
        return 1


def count_calls(store: Any) -> Counter[str]:
    """Count what is asked of the store from now on."""
    calls = Counter[str]()

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls[name] += 1
            return plain(*args, **more)

        return call

    for name in CALLS:
        if hasattr(store, name):
            setattr(store, name, counted(name, getattr(store, name)))
    return calls


def memory() -> tuple[float, int]:
    """Return the MiB of memory of this process's own, and how many blocks of Python's it has."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1_024, sys.getallocatedblocks()
    raise AssertionError("Linux says so")


def stored(store: str, url: str) -> int:
    """Return how many bytes the store takes, without what it has ready for others to use."""
    if store == "file":
        with sqlite3.connect(url.removeprefix("file:")) as opened:
            pages, free, size = (
                opened.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count", "page_size")
            )
        return int(size * (pages - free))
    if store == "redis":
        import redis

        with redis.Redis.from_url(url) as client:
            return int(client.info("memory")["used_memory_dataset"])
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM FULL")
        row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
        assert row is not None
        return int(row[0])


class Parked:
    """The figures of one store."""

    def __init__(self, node: Node, store: str, url: str, calls: Counter[str]) -> None:
        self._node, self._store, self._url, self._calls = node, store, url, calls

    def say(self, text: str) -> None:
        print(f"{self._store:10} {text}", flush=True)

    async def idle(self, what: str) -> tuple[float, int, int]:
        """Say what the node asks while nothing happens; return its memory, and the bytes in the store."""
        await anyio.sleep(5.0)  # the last work's own looks are over
        before = Counter(self._calls)
        await anyio.sleep(IDLE_SEC)  # what is counted is what nobody asked for
        made = self._calls - before
        self.say(f"{what}: {made.total()} calls in {IDLE_SEC:.0f} idle seconds {dict(sorted(made.items()))}")
        mib, blocks = memory()
        return mib, blocks, await anyio.to_thread.run_sync(stored, self._store, self._url)

    async def park(self, more: int, all_: int) -> list[str]:
        """Submit more tasks; return their ids when all tasks of the store wait."""
        ids = await self._node.tasks.submit_many([Task(pool_id=POOL) for _ in range(more)])
        await self.stand()
        assert await self._node.store.count([LATER()]) == [all_]
        return ids

    async def stand(self) -> None:
        """Return when no task is ready or runs."""

        async def all_stand() -> bool:
            return await self._node.store.count([READY(), HELD()]) == [0, 0]

        await wait_until(all_stand, timeout=600)

    async def all(self, count: int) -> None:
        ids = await self.park(WARM, WARM)
        async with anyio.create_task_group() as group:
            for id_ in ids:
                group.start_soon(self._node.tasks.signal, id_, "go")
        await self.stand()
        await anyio.to_thread.run_sync(stored, self._store, self._url)  # imports what it needs
        mib, blocks, size = await self.idle("none waits")
        began, cpu = time.perf_counter(), time.process_time()
        for so_far in range(0, count, TOGETHER):
            more = min(TOGETHER, count - so_far)
            (*_, last) = await self.park(more, so_far + more)
            if so_far + more in (count // 10, count // 2):
                self.say(f"{so_far + more:,} wait: {memory()[0] - mib:+.2f} MiB")
        took, used = time.perf_counter() - began, time.process_time() - cpu
        self.say(f"{count:,} submitted and parked in {took:.0f} s, of which {used:.0f} s of this process")
        mib_now, blocks_now, size_now = await self.idle(f"{count:,} wait")
        self.say(f"memory of the node {mib:.1f} MiB, then {mib_now - mib:+.2f} MiB, {blocks_now - blocks:+,} blocks")
        self.say(f"{(size_now - size) / count:,.0f} bytes each in the store")
        await self._node.tasks.signal(last, "go")
        assert (await self._node.tasks.result(last, timeout=60)).state == TaskState.COMPLETED
        self.say("one of them was signalled, and has ended")


async def measure(store: str, url: str, count: int) -> None:
    place = f"{url}/{uuid4().hex}.db" if store == "file" else url
    network = "converge" if store == "file" else f"n{uuid4().hex[:16]}"
    async with Node(store=place, plugins=PLUGINS.get(store, []), network=network) as node:
        await node.spawn(Waits, pool=POOL)
        await Parked(node, store, place, count_calls(node.store)).all(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--count", type=int, default=100_000, help="tasks that wait")
    arguments: argparse.Namespace = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    stores: Sequence[str] = arguments.stores
    for store in stores:
        with served(store) as url:
            anyio.run(measure, store, url, arguments.count, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
