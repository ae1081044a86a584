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
from importlib import import_module
from typing import Any
from uuid import uuid4

import anyio
from bench_node import completed, submit

from converge import Agent, Node, Pool, Task, open_store
from converge.testing.servers import postgres_server, redis_server

PLUGINS = {"redis": ["redis"], "postgresql": ["sql"]}
SETTLE_SEC = 3.0
"""What the start, or the last task, has set off comes to rest."""

LONG_USE = 10**8
"""Revisions that the store has given before: each task's token is one, and takes as many digits as after years."""

SENT = ("cmdstat_evalsha", "cmdstat_eval")
"""What processes send: other commands are those of the scripts, or of this benchmark."""


class Idle(Agent):
    """Returns at once."""

    async def on_task(self, task: Task) -> None:
        return None


class RedisServer:
    """Reads the server's own counters."""

    def __init__(self, url: str) -> None:
        self._client: Any = import_module("redis.asyncio").Redis.from_url(url)

    async def calls(self) -> int:
        """Return how many calls there were."""
        stats = await self._client.info("commandstats")
        return sum(found["calls"] for name, found in stats.items() if name in SENT)

    async def bytes(self) -> tuple[int, int]:
        """Return what is kept, and what was logged."""
        info = await self._client.info()
        return info["used_memory"], info.get("aof_current_size", 0)


class PostgresServer:
    """Reads the server's own counters."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def _ask(self, text: str, *, vacuums: bool = False) -> Any:
        connection = await import_module("asyncpg").connect(self._url)
        try:
            if vacuums:
                await connection.execute("vacuum")
            return await connection.fetchrow(text)
        finally:
            await connection.close()

    async def calls(self) -> int:
        """Return how many transactions there were."""
        row = await self._ask("select xact_commit from pg_stat_database where datname = current_database()")
        return int(row[0])

    async def bytes(self) -> tuple[int, int]:
        """Return what is kept, and what was logged."""
        text = "select pg_database_size(current_database()), (pg_current_wal_lsn() - '0/0')::bigint"
        return tuple(await self._ask(text, vacuums=True))


async def measure(store: str, url: str, tasks: int, seconds: float) -> None:
    """Print what one store's server was asked."""
    server = RedisServer(url) if store == "redis" else PostgresServer(url)
    network = f"n{uuid4().hex[:16]}"
    async with open_store(url, plugins=PLUGINS[store], network=network) as opened:
        await opened.advance(LONG_USE)
    async with Node(store=url, plugins=PLUGINS[store], network=network) as node:
        await node.pools.create_pool(Pool(id="docs"))
        await node.spawn(Idle, count=100, pool="docs")
        await submit(node, 500)
        await completed(node, 500)
        kept, logged = await server.bytes()
        await anyio.sleep(SETTLE_SEC)
        calls = await server.calls()
        await submit(node, tasks)
        await completed(node, 500 + tasks)
        await anyio.sleep(SETTLE_SEC)
        calls = await server.calls() - calls
        kept, logged = (end - begin for begin, end in zip((kept, logged), await server.bytes(), strict=True))
        await anyio.sleep(SETTLE_SEC)
        idle = await server.calls()
        await anyio.sleep(seconds)
        idle = await server.calls() - idle
    print(
        f"{store:10} a task: {calls / tasks:.3f} calls, {kept / tasks:,.0f} bytes kept, {logged / tasks:,.0f} bytes of "
        f"log; idle: {idle / seconds:.2f} calls/s",
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
