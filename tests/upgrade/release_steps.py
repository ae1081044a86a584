"""What a release does with a store, as a process of its own: only names that every release has are used.

    python release_steps.py URL NETWORK STEP...

Each step prints one JSON line; an error ends the process with its type and text as the line.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio

from converge import Pool, PoolManager, Task, TaskManager, open_store

POOL, KEY, AGENT = "docs", "k", "agent"
WAITING = 3
"""Tasks of the ordering key that `fill` leaves, of which the first is ready."""


async def fill(tasks: TaskManager) -> Any:
    """Leave tasks in every place, and some that have ended in each way."""
    await tasks.submit_many([Task(pool_id=POOL, inputs={"n": n}) for n in range(4)])
    done, failed, retried, held = await tasks.claim(AGENT, [POOL], limit=4)
    await tasks.complete(done, {"words": 3, "raw": b"\x00\xff"})
    await tasks.fail(failed, "for good", retry=False)
    await tasks.fail(retried, "once")
    await tasks.cancel(await tasks.submit(Task(pool_id=POOL, type="unwanted")))
    later = datetime.now(UTC) + timedelta(days=20_000)
    await tasks.submit(Task(pool_id=POOL, type="later", not_before=later, deadline=later + timedelta(days=1)))
    await tasks.submit(Task(pool_id=POOL, type="once", dedup_key="d", inputs={"text": "é"}))
    await ordered(tasks, WAITING)
    return {"held": held.id}


async def ordered(tasks: TaskManager, count: int) -> Any:
    """Submit tasks of one ordering key."""
    return [
        await tasks.submit(Task(pool_id=POOL, type="ordered", ordering_key=KEY, inputs={"n": n})) for n in range(count)
    ]


async def plain(tasks: TaskManager, count: int) -> Any:
    """Pass plain tasks through."""
    ids = await tasks.submit_many([Task(pool_id=POOL, type="plain") for _ in range(count)])
    claimed = await tasks.claim(AGENT, [POOL], types=["plain"], limit=count)
    for task in claimed:
        await tasks.complete(task, task.id)
    return len([one for one in ids if (await tasks.get(one)).result == one])


async def drain(tasks: TaskManager, count: int) -> Any:
    """Work on that many tasks of the ordering key, one after another."""
    seen = []
    for _ in range(count):
        for task in await tasks.claim(AGENT, [POOL], types=["ordered"], limit=10):
            seen.append(task.inputs["n"])
            await tasks.complete(task, 1)
    return seen


async def ended(tasks: TaskManager) -> Any:
    """Read what has ended."""
    found = [one for one in await tasks.list(pool_id=POOL) if one.finished_at is not None]
    return sorted([one.state, one.claimed_by, one.attempts, one.token > 0, one.result is None] for one in found)


async def claims(tasks: TaskManager, count: int) -> Any:
    """Claim whatever there is, which sweeps, too; return the types of what it was given."""
    return [task.type for _ in range(count) for task in await tasks.claim(AGENT, [POOL], limit=10)]


async def wait(_: TaskManager) -> Any:
    """Wait for a line."""
    return await anyio.to_thread.run_sync(sys.stdin.readline)


def say(found: object) -> None:
    """Print a line."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


STEPS = {"fill": fill, "wait": wait, "ended": ended}
COUNTED = {"ordered": ordered, "plain": plain, "drain": drain, "claims": claims}


async def main(url: str, network: str, steps: list[str]) -> int:
    plugins = [] if url.startswith("file:") else ["sql"]
    try:
        async with open_store(url, plugins=plugins, network=network) as store:
            await PoolManager(store).create_pool(Pool(id=POOL))
            tasks = TaskManager(store)
            for step in steps:
                name, _, count = step.partition("=")
                found = await (COUNTED[name](tasks, int(count)) if count else STEPS[name](tasks))
                say(found)
    except Exception as error:
        say(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3:]))
