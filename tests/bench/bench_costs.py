"""What does a task cost a server, and what does an idle process: bytes and calls, whatever the machine does beside.

    python tests/bench/bench_costs.py --tasks 20000 --seconds 30

One node of 100 agents submits no-op tasks in calls of 500, works on them, then stays idle. *calls*: scripts on
Redis, transactions on PostgreSQL. *kept*: what a finished task weighs until its retention ends: memory on Redis,
tables and indexes on PostgreSQL. *log*: what a task's whole life adds to the append-only file or the write-ahead log.
*idle*: calls a second of a process with nothing to do, its lease's renewals and sweeps among them.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any
from uuid import uuid4

import anyio
from bench_node import completed, submit

from converge import Agent, Node, Pool, Task
from converge.testing.servers import postgres_server, redis_server

PLUGINS = {"redis": ["redis"], "postgresql": ["sql"]}
SETTLE_SEC = 3.0
"""What the start, or the last task, has set off comes to rest."""

SENT = ("cmdstat_evalsha", "cmdstat_eval")
"""What processes send: other commands are those of the scripts, or of this benchmark."""

Facts = dict[str, int]
"""Calls so far, bytes kept, bytes logged."""


class Idle(Agent):
    """Returns at once."""

    async def on_task(self, task: Task) -> None:
        return None


async def redis_facts(url: str) -> Facts:
    """Read the server's own counters."""
    client: Any = import_module("redis.asyncio").Redis.from_url(url)
    try:
        stats, info = await client.info("commandstats"), await client.info()
    finally:
        await client.aclose()
    calls = sum(found["calls"] for name, found in stats.items() if name in SENT)
    return {"calls": calls, "kept": info["used_memory"], "log": info.get("aof_current_size", 0)}


async def postgres_facts(url: str) -> Facts:
    """Read the server's own counters."""
    connection = await import_module("asyncpg").connect(url)
    try:
        await connection.execute("vacuum")
        row = await connection.fetchrow(
            "select xact_commit + xact_rollback as calls, pg_database_size(current_database()) as kept, "
            "(pg_current_wal_lsn() - '0/0')::bigint as log from pg_stat_database where datname = current_database()"
        )
    finally:
        await connection.close()
    return {name: int(value) for name, value in row.items()}


async def measure(store: str, url: str, tasks: int, seconds: float) -> None:
    """Print what one store's server was asked."""
    facts: Callable[[str], Awaitable[Facts]] = redis_facts if store == "redis" else postgres_facts
    network = f"n{uuid4().hex[:16]}"
    async with Node(store=url, plugins=PLUGINS[store], network=network) as node:
        await node.pools.create_pool(Pool(id="docs"))
        await node.spawn(Idle, count=100, pool="docs")
        await submit(node, 500)
        await completed(node, 500)
        await anyio.sleep(SETTLE_SEC)
        before = await facts(url)
        await submit(node, tasks)
        await completed(node, 500 + tasks)
        await anyio.sleep(SETTLE_SEC)
        after = await facts(url)
        await anyio.sleep(seconds)
        end = await facts(url)
    each = {name: (after[name] - before[name]) / tasks for name in before}
    print(
        f"{store:10} a task: {each['calls']:.3f} calls, {each['kept']:,.0f} bytes kept, "
        f"{each['log']:,.0f} bytes of log; idle: {(end['calls'] - after['calls']) / seconds:.2f} calls/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=list(PLUGINS), choices=list(PLUGINS))
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.tasks:,} tasks")
    for store in arguments.stores:
        with redis_server() if store == "redis" else postgres_server() as url:
            anyio.run(measure, store, url, arguments.tasks, arguments.seconds)


if __name__ == "__main__":
    main()
