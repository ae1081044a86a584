"""A process beside which another one dies: `claims_holder.py URL NETWORK LEASE_SEC hold COUNT` claims so many tasks and
keeps them; `... sweep` is a node of no agents; `... claim` claims and completes one task after the other, and says when
each claim began and how long it took.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import anyio

from converge import Node, TaskManager, open_store

PAUSE_SEC = 0.003


def say(*words: object) -> None:
    """Say a line at once."""
    print(*words, flush=True)  # noqa: T201 - read by the test


async def hold(node: Node, count: int) -> None:
    """Claim so many, and stay."""
    while count:
        count -= len(await node.tasks.claim("holder", ["held"], limit=min(count, 450)))
    say("held")
    await anyio.sleep_forever()


async def claim(url: str, plugins: list[str], network: str) -> None:
    """Claim for ever."""
    async with open_store(url, plugins=plugins, network=network) as store:
        tasks = TaskManager(store)
        while True:
            began = time.monotonic()
            (task,) = await tasks.claim("claimer", ["steady"])
            say(began, time.monotonic() - began)
            await tasks.complete(task, None)
            await anyio.sleep(PAUSE_SEC)  # the other processes have their turn at the store


async def main(url: str, network: str, lease_sec: float, what: str, count: int) -> None:
    plugins = ["redis"] if url.startswith("redis:") else ["sql"]
    if what == "claim":
        await claim(url, plugins, network)
    async with Node(store=url, plugins=plugins, network=network, lease_sec=lease_sec) as node:
        await (hold(node, count) if what == "hold" else anyio.sleep_forever())


if __name__ == "__main__":
    anyio.run(partial(main, sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4], int(sys.argv[5])))
