"""How does one worker process compare with that of other task systems on the same server?

    python -m venv peers && peers/bin/pip install dramatiq taskiq taskiq-redis pgqueuer asyncpg huey redis uvloop
    python tests/bench/bench_peers.py --peers peers/bin/python

Each system runs in a process of its own on one server, Converge first in one round and last in the next; what counts
is the median of the ratios of a round. *enqueue* and *drain* are no-op tasks a second (Converge: `submit_many` in calls
of 500, 100 agents); *p50* and *p99* are milliseconds from the call of submit to the start of the handler in an idle
process, where a smaller ratio is better. Redis keeps an append-only file (everysec), PostgreSQL syncs each commit, as
does SQLite, on which huey runs at its default. Peers are set as fast as they go: dramatiq 16 threads, pgqueuer batches
of 100 over asyncpg, taskiq a stream without results; asyncio ones on uvloop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

PEERS = {"redis": ("dramatiq", "taskiq"), "postgresql": ("pgqueuer",), "file": ("huey",)}
COUNTS = {"converge": 20_000, "pgqueuer": 20_000}
FEW = 2_000
"""Tasks of a round of the others, which do fewer than 5,000 a second."""

IDLE_ROUNDS, IDLE_SEC = 100, 0.02
"""Tasks that an idle process is given one by one, and the pause after each: it shall be idle again."""

CHILD_SEC = 300

Rates = dict[str, float]


class Done:
    """Counts what has begun, from any thread."""

    def __init__(self) -> None:
        self.count, self.at = 0, 0.0

    def begin(self, *_: object) -> None:
        self.at = time.perf_counter()
        self.count += 1

    async def reach(self, count: int) -> None:
        """Return when so many have begun."""
        while self.count < count:  # noqa: ASYNC110  # nobody tells of a number reached
            await asyncio.sleep(0.0005)


async def idle(done: Done, submit: Callable[[], Awaitable[object]]) -> Rates:
    """Return how long an idle process takes to begin a task."""
    took = []
    for _ in range(IDLE_ROUNDS):
        count, began = done.count, time.perf_counter()
        await submit()
        await done.reach(count + 1)
        took.append((done.at - began) * 1_000)
        await asyncio.sleep(IDLE_SEC)
    took.sort()
    return {"p50": took[len(took) // 2], "p99": took[-2]}


async def timed(done: Done, count: int, enqueue: Awaitable[object], start: Callable[[], object]) -> Rates:
    """Return the rates of an enqueue, and of a drain that `start` begins."""
    began = time.perf_counter()
    await enqueue
    enqueued = time.perf_counter()
    started = start()
    if isinstance(started, Awaitable):
        await started
    await done.reach(count)
    return {"enqueue": count / (enqueued - began), "drain": count / (done.at - enqueued)}


async def converge(url: str, count: int) -> Rates:
    """Measure Converge on any store."""
    from converge import Agent, Node, Pool, Task

    done = Done()

    class Idle(Agent):
        async def on_task(self, task: Task) -> None:
            done.begin()

    plugins = {"redis": ["redis"], "postgresql": ["sql"]}.get(url.partition(":")[0], [])
    network = "converge" if url.startswith("file:") else f"n{uuid4().hex[:16]}"
    async with Node(store=url, plugins=plugins, network=network) as node:
        await node.pools.create_pool(Pool(id="docs"))

        async def enqueue() -> None:
            for _ in range(0, count, 500):
                await node.tasks.submit_many([Task(pool_id="docs") for _ in range(500)])

        rates = await timed(done, count, enqueue(), lambda: node.spawn(Idle, count=100, pool="docs"))
        await asyncio.sleep(0.5)  # the last finishes are stored, and it is idle
        return rates | await idle(done, lambda: node.tasks.submit(Task(pool_id="docs")))


async def dramatiq(url: str, count: int) -> Rates:
    """Measure dramatiq on Redis."""
    module: Any = import_module("dramatiq")
    broker = import_module("dramatiq.brokers.redis").RedisBroker(url=url, namespace=uuid4().hex)
    module.set_broker(broker)
    done = Done()
    actor = module.actor(done.begin, queue_name="bench", actor_name="bench")
    worker = module.Worker(broker, worker_threads=16)

    async def enqueue() -> None:
        for _ in range(count):
            actor.send()

    rates = await timed(done, count, enqueue(), worker.start)
    worker.stop()
    return rates


async def taskiq(url: str, count: int) -> Rates:
    """Measure taskiq on a Redis stream."""
    broker = import_module("taskiq_redis").RedisStreamBroker(url, queue_name=uuid4().hex)
    done = Done()

    @broker.task  # type: ignore[untyped-decorator]  # the peer is not installed where types are checked
    async def bench() -> None:
        done.begin()

    await broker.startup()
    receiver: list[asyncio.Task[object]] = []

    def start() -> None:
        run = import_module("taskiq.api").run_receiver_task
        receiver.append(asyncio.create_task(run(broker, max_async_tasks=100)))

    async def enqueue() -> None:
        for _ in range(count):
            await bench.kiq()

    rates = await timed(done, count, enqueue(), start)
    rates |= await idle(done, bench.kiq)
    receiver[0].cancel()
    return rates


async def pgqueuer(url: str, count: int) -> Rates:
    """Measure pgqueuer on PostgreSQL."""
    asyncpg: Any = import_module("asyncpg")
    driver = import_module("pgqueuer.db").AsyncpgDriver
    connections = [await asyncpg.connect(url) for _ in range(2)]
    queries = import_module("pgqueuer.queries").Queries(driver(connections[0]))
    with suppress(asyncpg.exceptions.DuplicateObjectError):  # an earlier round's
        await queries.install()
    queue = import_module("pgqueuer").PgQueuer(driver(connections[1]))
    done = Done()

    @queue.entrypoint("bench")  # type: ignore[untyped-decorator]  # as above
    async def bench(job: object) -> None:
        done.begin()

    async def enqueue() -> None:
        for _ in range(0, count, 1_000):
            await queries.enqueue(["bench"] * 1_000, [None] * 1_000, [0] * 1_000)

    running: list[asyncio.Task[object]] = []
    rates = await timed(done, count, enqueue(), lambda: running.append(asyncio.create_task(queue.run(batch_size=100))))
    rates |= await idle(done, lambda: queries.enqueue(["bench"], [None], [0]))
    running[0].cancel()
    return rates


async def huey(url: str, count: int) -> Rates:
    """Measure huey on SQLite."""
    found = import_module("huey").SqliteHuey("bench", filename=url.removeprefix("file:"))
    done = Done()
    task = found.task()(done.begin)
    consumer = found.create_consumer(workers=4, worker_type="thread", periodic=False)

    async def enqueue() -> None:
        for _ in range(count):
            task()

    rates = await timed(done, count, enqueue(), lambda: threading.Thread(target=consumer.start, daemon=True).start())
    consumer.stop(graceful=False)
    return rates


SYSTEMS = {"converge": converge, "dramatiq": dramatiq, "taskiq": taskiq, "pgqueuer": pgqueuer, "huey": huey}


def measured(python: str, system: str, url: str) -> Rates:
    """Run one round of one system in its environment."""
    command = [python, __file__, "--system", system, "--url", url]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=CHILD_SEC)
    if ran.returncode:
        raise SystemExit(f"{system} failed:\n{ran.stderr[-2_000:]}")
    rates: Rates = json.loads(ran.stdout.splitlines()[-1])
    return rates


@contextmanager
def served(store: str) -> Iterator[Callable[[], str]]:
    """Start what the store needs; yield what gives the URL for a round."""
    from converge.testing.servers import postgres_server, redis_server

    if store == "file":
        with tempfile.TemporaryDirectory(prefix="bench-peers-", dir=Path.cwd()) as folder:
            yield lambda: f"file:{folder}/{uuid4().hex}.db"
    else:
        with redis_server() if store == "redis" else postgres_server() as url:
            yield lambda: url


def compare(store: str, python: str, rounds: int) -> None:
    """Print each rate of Converge and of its peers on a store, and the medians of their ratios."""
    ratios: dict[tuple[str, str], list[float]] = {}
    rates: dict[tuple[str, str], list[float]] = {}
    with served(store) as url:
        for number in range(rounds):
            systems = ["converge", *PEERS[store]]
            round_ = {
                one: measured(sys.executable if one == "converge" else python, one, url())
                for one in (systems if number % 2 else reversed(systems))
            }
            for system, found in round_.items():
                for name, rate in found.items():
                    rates.setdefault((system, name), []).append(rate)
                    ratios.setdefault((system, name), []).append(round_["converge"][name] / rate)
    for (system, name), some in sorted(rates.items()):
        against = (
            "" if system == "converge" else f"   Converge {statistics.median(ratios[system, name]):.2f} times that"
        )
        unit = " ms" if name.startswith("p") else "/s"
        print(f"{store:10} {system:9} {name:8} {statistics.median(some):>10,.2f}{unit}{against}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="the interpreter of an environment with the peers")
    parser.add_argument("--stores", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--system", choices=list(SYSTEMS), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.system:
        logging.disable(logging.WARNING)
        import_module("uvloop").install()
        rates = asyncio.run(SYSTEMS[arguments.system](arguments.url, COUNTS.get(arguments.system, FEW)))
        print(json.dumps(rates), flush=True)
        os._exit(0)  # a peer's threads and connections may wait for long
    if not arguments.peers:
        parser.error("--peers is needed")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds")
    for store in arguments.stores:
        compare(store, arguments.peers, arguments.rounds)


if __name__ == "__main__":
    main()
