"""How many no-op tasks a second pass through a whole node of 100 agents, beside the bare turns of the contract on the
same store?

    python tests/bench/bench_node.py --stores memory file redis --loops uvloop asyncio

Each round of a store runs the bare contract (claim 100 and finish them over `turn`, two in flight) and then the node,
in one process, so the ratio holds however busy the machine is; so do the microseconds of processor time that the node's
process spends on a task.
*drain*: the tasks were submitted before. *whole*: from the first submit to the last task completed, submits included;
its ratio is to
*handlers_alone*, an event loop that only calls the handler. A round begins with an empty store. Redis and
PostgreSQL are private servers. `--idle` measures instead, on stores that processes share, how long it is from the
submit of a single task to the start of its handler, and to its result, when the agents are in another process and have
nothing to do. `--profile` prints where the node's time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import platform
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import anyio
import attrs
from workload import median, shown, site

from converge import Agent, Node, Pool, Task, TaskManager
from converge.operations.run import tune_interpreter
from converge.services.store.opening import open_store
from converge.testing.servers import postgres_server, redis_server

CALL = 500
"""Tasks of one call of submit."""

POLL_SEC = 0.001
"""How often the clock is looked at when the end is near, a tenth as often before: to look takes time from what is
measured.
"""

NEAR = 2_000
"""So many tasks before the end it is near."""


class Idle(Agent):
    """Returns at once."""

    async def on_task(self, task: Task) -> None:
        return None


class Clock(Agent):
    """Says when it began."""

    async def on_task(self, task: Task) -> float:
        return time.perf_counter()  # of the machine, not of the process


@attrs.frozen(kw_only=True)
class Round:
    """Tasks a second of one round."""

    contract: float
    drain: float
    drain_cpu_us: float
    whole: float
    whole_cpu_us: float
    handlers: float


class Bench:
    """The rounds of one store on one event loop."""

    def __init__(self, arguments: argparse.Namespace, profile: cProfile.Profile | None) -> None:
        self.tasks, self.agents = arguments.tasks, arguments.agents
        self.profile = profile

    async def round(self, url: str) -> Round:
        """Run the contract, then the node, each in a network of its own."""
        contract = await self._contract(url)
        drain, drain_cpu_us, whole, whole_cpu_us = await self._node(url)
        handlers = await handlers_alone(20 * self.tasks)
        return Round(
            contract=contract,
            drain=drain,
            drain_cpu_us=drain_cpu_us,
            whole=whole,
            whole_cpu_us=whole_cpu_us,
            handlers=handlers,
        )

    async def _contract(self, url: str) -> float:
        async with open_store(fresh(url), plugins=plugins(url), network=network(url)) as store:
            own = await site(store)
            await own.submit(self.tasks)
            gc.collect()
            return await own.drain(in_flight=2)

    async def _node(self, url: str) -> tuple[float, float, float, float]:
        async with Node(store=fresh(url), plugins=plugins(url), network=network(url)) as node:
            await node.pools.create_pool(Pool(id="docs"))
            await submit(node, self.tasks)
            gc.collect()
            if self.profile is not None:
                self.profile.enable()
            await node.spawn(Idle, count=self.agents, pool="docs")
            began, cpu_began = (
                time.perf_counter(),
                time.process_time(),
            )  # the feed has been told to start, and has not run yet
            await completed(node, self.tasks)
            drain, cpu_us = (
                self.tasks / (time.perf_counter() - began),
                (time.process_time() - cpu_began) / self.tasks * 1e6,
            )
            if self.profile is not None:
                self.profile.disable()
            gc.collect()
            began, cpu_began = time.perf_counter(), time.process_time()
            await submit(node, self.tasks)
            await completed(node, 2 * self.tasks)
            whole = self.tasks / (time.perf_counter() - began)
            return drain, cpu_us, whole, (time.process_time() - cpu_began) / self.tasks * 1e6


async def serve(url: str, agents: int) -> None:
    """Run agents until killed."""
    async with Node(store=url, plugins=plugins(url)) as node:
        await node.spawn(Clock, count=agents, pool="docs")
        print("ready", flush=True)
        await anyio.sleep_forever()


async def idle(url: str, count: int) -> tuple[list[float], list[float]]:
    """Return the milliseconds of single tasks that another process works on: from submit to the start of the handler,
    and to the result.
    """
    starts, results = [], []
    async with open_store(url, plugins=plugins(url)) as store:
        tasks = TaskManager(store)
        for number in range(count):
            began = time.perf_counter()
            task = await tasks.result(await tasks.submit(Task(pool_id="docs", inputs={"n": number})), timeout=10)
            results.append((time.perf_counter() - began) * 1e3)
            starts.append((task.result - began) * 1e3)
            await anyio.sleep(0.01)
    return sorted(starts), sorted(results)


def measure_idle(store: str, loop: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run the agents in a child; return the quantiles of the waits."""
    with served(store) as served_url:
        url = fresh(served_url)
        command = [sys.executable, __file__, "--serve", url, "--loops", loop, "--agents", str(arguments.agents)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            try:
                assert child.stdout is not None
                child.stdout.readline()
                starts, took = anyio.run(idle, url, 300, backend_options={"use_uvloop": loop == "uvloop"})
            finally:
                child.kill()
    middle, late = len(took) // 2, len(took) * 99 // 100
    return {
        "start_p50_ms": starts[middle],
        "start_p99_ms": starts[late],
        "result_p50_ms": took[middle],
        "result_p99_ms": took[late],
    }


async def submit(node: Node, count: int) -> None:
    """Submit no-op tasks with small inputs."""
    for at in range(0, count, CALL):
        await node.tasks.submit_many([Task(pool_id="docs", inputs={"n": at + n}) for n in range(min(CALL, count - at))])


async def completed(node: Node, count: int) -> None:
    """Return when the store has acknowledged so many finishes."""
    while (left := count - completed_by(node)) > 0:  # noqa: ASYNC110  # the node tells nobody of a number reached
        await anyio.sleep(POLL_SEC if left < NEAR else 10 * POLL_SEC)


def completed_by(node: Node) -> int:
    """Return how many finishes of this node the store has acknowledged."""
    return sum(feed.finishing.completed for feed in node.feeds)


async def handlers_alone(count: int) -> float:
    """Return how many handlers a second an event loop calls that does nothing else."""
    agent, task = Idle(), Task(pool_id="docs")
    began = time.perf_counter()
    for _ in range(count):
        await agent.on_task(task)
    return count / (time.perf_counter() - began)


def fresh(url: str) -> str:
    """Return the URL, with a new file where it names a folder."""
    return f"{url}/{uuid4().hex}.db" if url.startswith("file:") else url


def network(url: str) -> str:
    """Return the name of a network of its own, where the store keeps several."""
    return "converge" if url.startswith(("file:", "memory:")) else f"n{uuid4().hex[:16]}"


def plugins(url: str) -> list[str]:
    """Return what must be named for a URL."""
    return {"redis": ["redis"], "postgresql": ["sql"]}.get(url.partition(":")[0], [])


@contextmanager
def served(store: str) -> Iterator[str]:
    """Start what the store needs; give its URL."""
    if store == "redis":
        with redis_server() as url:
            yield url
    elif store == "postgresql":
        with postgres_server() as url:
            yield url
    elif store == "file":
        with tempfile.TemporaryDirectory(prefix="bench-node-", dir=Path.cwd()) as folder:
            yield f"file:{folder}"
    else:
        yield "memory:"


def measure(store: str, loop: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run the rounds of one store on one event loop; return the medians."""
    if arguments.interpreter == "run":
        tune_interpreter()
    profile = cProfile.Profile() if arguments.profile else None
    bench = Bench(arguments, profile)
    options = {} if loop == "trio" else {"use_uvloop": loop == "uvloop"}
    with served(store) as url:
        rounds = [
            anyio.run(bench.round, url, backend="trio" if loop == "trio" else "asyncio", backend_options=options)
            for _ in range(arguments.rounds)
        ]
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(arguments.lines)
    return {
        "contract": median([one.contract for one in rounds]),
        "drain": median([one.drain for one in rounds]),
        "drain_cpu_us": min(one.drain_cpu_us for one in rounds),
        "drain_ratio": median([one.drain / one.contract for one in rounds]),
        "whole": median([one.whole for one in rounds]),
        "whole_cpu_us": min(one.whole_cpu_us for one in rounds),
        "handlers_alone": median([one.handlers for one in rounds]),
        "whole_ratio": median([one.whole / one.handlers for one in rounds]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stores", nargs="+", default=["memory", "file", "redis"], choices=["memory", "file", "redis", "postgresql"]
    )
    parser.add_argument("--loops", nargs="+", default=["uvloop", "asyncio"], choices=["uvloop", "asyncio", "trio"])
    parser.add_argument("--tasks", type=int, default=15_000)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--interpreter",
        default="run",
        choices=["run", "python"],
        help="garbage collector and threads as in `converge run`, or as Python has them",
    )
    parser.add_argument("--idle", action="store_true", help="submit to result of single tasks between two processes")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument(
        "--profile", action="store_true", help="print the lines of the node's drain that take most time"
    )
    parser.add_argument("--lines", type=int, default=45)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.serve:
        tune_interpreter()
        anyio.run(
            serve, arguments.serve, arguments.agents, backend_options={"use_uvloop": arguments.loops[0] == "uvloop"}
        )
        return
    if arguments.quick:
        arguments.tasks, arguments.rounds = 5_000, 1
    results = {}
    for store in arguments.stores:
        for loop in arguments.loops:
            found = results[f"{store}, {loop}"] = (measure_idle if arguments.idle else measure)(store, loop, arguments)
            if not arguments.json:
                print(f"{store}, {loop}: {shown(found)}", flush=True)
    if arguments.json:
        print(
            json.dumps(
                {
                    "v": 1,
                    "command": sys.argv,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "results": results,
                }
            )
        )


if __name__ == "__main__":
    main()
