"""Ten idle nodes of one process: `python sleeping.py URL NETWORK PLUGIN...`; ends with its standard input."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import anyio
from anyio import to_thread

from converge import Agent, Node, Task
from converge.testing.fixtures import wait_until


class Sleeper(Agent):
    """Claims whatever comes."""

    async def on_task(self, task: Task) -> str:
        return "a sleeper"


async def main(url: str, network: str, plugins: list[str]) -> None:
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(Node(store=url, network=network, plugins=plugins, poll_sec=60.0))
            for _ in range(10)
        ]
        for node in nodes:
            await node.spawn(Sleeper, pool="docs")
        await wait_until(lambda: all(node.feeds[0].hears for node in nodes), timeout=60)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await to_thread.run_sync(sys.stdin.read)


anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
