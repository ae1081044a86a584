"""A process of one agent with four slots: `python spreading.py URL PLUGIN...`; ends with its standard input."""

from __future__ import annotations

import os
import sys

import anyio
from anyio import to_thread

from converge import Agent, Node, Task


class Slow(Agent):
    """Says where it works."""

    concurrency = 4

    async def on_task(self, task: Task) -> int:
        await anyio.sleep(task.inputs["sec"])
        return os.getpid()


async def main(url: str, plugins: list[str]) -> None:
    async with Node(store=url, plugins=plugins, poll_sec=5.0) as node:
        await node.spawn(Slow, pool="docs")
        await anyio.sleep(0.5)  # it has looked, and sleeps
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await to_thread.run_sync(sys.stdin.read)


anyio.run(main, sys.argv[1], sys.argv[2:])
