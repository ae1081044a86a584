"""A process that holds a batch ahead of its four busy slots, says so, and waits to be killed:
`python claiming_ahead.py URL NETWORK PLUGIN...`.
"""

from __future__ import annotations

import sys
from unittest import mock

import anyio

from converge import Agent, Node, Task
from converge.testing.fixtures import wait_until

SLOTS = 4


class Blocked(Agent):
    """Returns at once, or never."""

    concurrency = SLOTS

    async def on_task(self, task: Task) -> None:
        if task.inputs["blocks"]:
            await anyio.sleep_forever()


async def main(url: str, network: str, plugins: list[str]) -> None:
    # A busy machine has as much time as it needs: each batch counts as quick, and nothing goes back by itself.
    with mock.patch.multiple("converge.machines.pace", QUICK_SEC=30.0, LATE_SEC=60.0, DOZE_SEC=60.0):
        async with Node(store=url, network=network, plugins=plugins, poll_sec=0.1) as node:
            await node.spawn(Blocked, pool="docs")
            while not node.feeds or not node.feeds[0].ahead.is_on:
                quick = [Task(pool_id="docs", inputs={"blocks": False}) for _ in range(3 * SLOTS)]
                for id_ in await node.tasks.submit_many(quick):
                    await node.tasks.result(id_, timeout=30)
            held = [Task(pool_id="docs", inputs={"blocks": True}) for _ in range(2 * SLOTS)]
            ids = await node.tasks.submit_many(held)
            await wait_until(lambda: node.feeds[0].slots.queued == SLOTS, timeout=30)
            sys.stdout.write(" ".join(ids) + "\n")
            sys.stdout.flush()
            await anyio.sleep_forever()


anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:])
