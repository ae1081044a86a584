"""What do many virtual agents cost: memory of the node, its calls while nothing happens, bytes in the store, and how
long does one of them take to answer, beside a plain task?

    python tests/bench/bench_virtual.py --stores file redis postgresql --count 100000

Each agent is asked once, so that its state is stored. Then plain tasks and questions to agents drawn at random, one at
a time, take turns on the same node: what counts is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import uuid4

import anyio
from bench_pairs import PLUGINS, served
from bench_parked import STORES, Parked, count_calls

from converge import Agent, Node, Task
from converge.model.keys import ACTOR

POOL = "bench"
IN_FLIGHT = 100
WARM = 2_000
"""Agents that are asked first, so that what a node keeps for itself is there before its memory is first read."""

ROUNDS = 300
SEED = 7


class Counts(Agent):
    """Counts how often each virtual agent is asked; a plain task ends at once."""

    concurrency = 100

    async def on_ask(self, state: Any, message: Any) -> tuple[int, int]:
        return (state or 0) + 1, (state or 0) + 1

    async def on_task(self, task: Task) -> None: ...


class Virtual:
    """The figures of one store."""

    def __init__(self, node: Node, parked: Parked) -> None:
        self._node, self._parked = node, parked

    async def all(self, count: int) -> None:
        await self._asked(range(WARM))
        await self._parked.idle("none but the first")  # imports what it needs
        mib, blocks, size = await self._parked.idle(f"{WARM:,} virtual agents")
        began = time.perf_counter()
        await self._asked(range(WARM, WARM + count))
        took = time.perf_counter() - began
        assert await self._node.store.count([ACTOR(POOL)]) == [WARM + count]
        self._parked.say(f"{count:,} more asked for the first time, {count / took:,.0f} a second")
        mib_now, blocks_now, size_now = await self._parked.idle(f"{WARM + count:,} virtual agents")
        self._parked.say(f"memory of the node {mib_now - mib:+.2f} MiB, {blocks_now - blocks:+,} blocks")
        self._parked.say(f"{(size_now - size) / count:,.0f} bytes each in the store, what their tasks left included")
        drawn = random.Random(SEED)
        plain, virtual = [], []
        for _ in range(ROUNDS):
            plain.append(await _timed(self._plain))
            key = drawn.randrange(WARM + count)
            virtual.append(await _timed(partial(self._ask, key)))
        one, other = statistics.median(plain) * 1_000, statistics.median(virtual) * 1_000
        self._parked.say(
            f"p50 of an answer {other:.2f} ms, of a plain task's result {one:.2f} ms: {other / one:.2f} times"
        )

    async def _asked(self, keys: range) -> None:
        left = iter(keys)

        async def ask() -> None:
            for key in left:
                await self._ask(key)

        async with anyio.create_task_group() as group:
            for _ in range(IN_FLIGHT):
                group.start_soon(ask)

    async def _ask(self, key: int) -> None:
        await self._node.agent(f"a{key}", pool=POOL).ask(1)

    async def _plain(self) -> None:
        await self._node.tasks.result(await self._node.tasks.submit(Task(pool_id=POOL)))


async def _timed(call: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


async def measure(store: str, url: str, count: int) -> None:
    place = f"{url}/{uuid4().hex}.db" if store == "file" else url
    network = "converge" if store == "file" else f"n{uuid4().hex[:16]}"
    async with Node(store=place, plugins=PLUGINS.get(store, []), network=network) as node:
        await node.spawn(Counts, pool=POOL)
        calls: Counter[str] = count_calls(node.store)
        await Virtual(node, Parked(node, store, place, calls)).all(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--count", type=int, default=100_000, help="virtual agents")
    arguments: argparse.Namespace = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for store in arguments.stores:
        with served(store) as url:
            anyio.run(measure, store, url, arguments.count, backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
