"""A process that registers when it is told to: `registrar.py URL`.

It says "ready", waits for a line, creates the pool and joins it, says what came of it, and leaves when its standard
input ends.
"""

from __future__ import annotations

import sys

import anyio
import anyio.to_thread

from converge import Agent, Node, Pool, Task

POOL = "faults"


class Member(Agent):
    """Is a member; its pool's tasks are for others."""

    task_types = ("nothing",)

    async def on_task(self, task: Task) -> None:
        return None


async def main(url: str) -> None:
    """Register at the barrier."""
    print("ready", flush=True)  # noqa: T201 - read by the test
    await anyio.to_thread.run_sync(sys.stdin.readline)
    async with Node(store=url, lease_sec=30.0, poll_sec=0.5, grace_sec=0.0) as node:
        created = await node.pools.create_pool(Pool(id=POOL))
        (agent,) = await node.spawn(Member, pool=POOL)
        print(f"{agent.id} {created}", flush=True)  # noqa: T201 - read by the test
        await anyio.to_thread.run_sync(sys.stdin.readline)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
