"""Does this release work as fast as an earlier one?

    python tests/bench/bench_pairs.py --before OLD/bin/python --after NEW/bin/python

Each pair runs the same node of 100 agents first in one environment, then in the other (the order alternates), each in
a process of its own on one server; what counts is the median of the ratios. *drain*: the tasks were submitted before.
*whole*: from the first submit to the last task completed. The handler reads `id`, `inputs` and `attempts`. Only public
names are used, so any release can be measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import anyio

from converge import Agent, Node, Pool, Task

STORES = ("memory", "file", "redis", "postgresql")
PLUGINS = {"redis": ["redis"], "postgresql": ["sql"]}
CALL = 500
"""Tasks of one call of submit."""

CHILD_SEC = 120
"""Longer than any round takes."""

seen = list[str]()


class Reader(Agent):
    """Reads what most handlers read, and returns at once."""

    async def on_task(self, task: Task) -> None:
        assert task.attempts == 1 and task.inputs["n"] >= 0
        seen.append(task.id)


async def submit(node: Node, count: int) -> None:
    """Submit no-op tasks with small inputs."""
    for at in range(0, count, CALL):
        await node.tasks.submit_many([Task(pool_id="docs", inputs={"n": at + n}) for n in range(min(CALL, count - at))])


async def completed(node: Node, count: int) -> None:
    """Return when that many handlers have returned and the last of their results are stored."""
    while len(seen) < count:  # noqa: ASYNC110  # the agents tell nobody of a number reached
        await anyio.sleep(0.001 if count - len(seen) < 2_000 else 0.01)
    for id_ in seen[count - 100 : count]:
        await node.tasks.result(id_, timeout=CHILD_SEC)


async def round_(url: str, network: str, tasks: int) -> dict[str, float]:
    """Return tasks a second, and microseconds of this process's CPU a task, of one drain and one whole run."""
    plugins = PLUGINS.get(url.partition(":")[0], [])
    async with Node(store=url, plugins=plugins, network=network) as node:
        await node.pools.create_pool(Pool(id="docs"))
        await submit(node, tasks)
        gc.collect()
        await node.spawn(Reader, count=100, pool="docs")
        rates = {}
        for name in ("drain", "whole"):
            began, cpu_began = time.perf_counter(), time.process_time()
            if name == "whole":
                await submit(node, tasks)
            await completed(node, tasks if name == "drain" else 2 * tasks)
            rates[name] = tasks / (time.perf_counter() - began)
            rates[f"{name}_per_cpu_sec"] = tasks / (time.process_time() - cpu_began)
            gc.collect()
    return rates


def measured(python: str, url: str, tasks: int) -> dict[str, float]:
    """Run one round in another environment; return its rates."""
    network = "converge" if url.startswith(("file:", "memory:")) else f"n{uuid4().hex[:16]}"
    place = f"{url}/{uuid4().hex}.db" if url.startswith("file:") else url
    command = [python, __file__, "--url", place, "--network", network, "--tasks", str(tasks)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=CHILD_SEC)
    if ran.returncode:
        raise SystemExit(f"{python} failed:\n{ran.stderr[-2_000:]}")
    rates: dict[str, float] = json.loads(ran.stdout)
    return rates


@contextmanager
def served(store: str) -> Iterator[str]:
    """Start what the store needs; give its URL."""
    from converge.testing.servers import postgres_server, redis_server

    if store == "redis":
        with redis_server() as url:
            yield url
    elif store == "postgresql":
        with postgres_server() as url:
            yield url
    elif store == "file":
        with tempfile.TemporaryDirectory(prefix="bench-pairs-", dir=Path.cwd()) as folder:
            yield f"file:{folder}"
    else:
        yield "memory:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", help="the interpreter of the environment to compare with")
    parser.add_argument("--after", default=sys.executable, help="the interpreter of the environment that is judged")
    parser.add_argument("--stores", nargs="+", default=STORES, choices=STORES)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--network", default="converge", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.url:
        gc.set_threshold(100_000, 20, 20)
        options = {"use_uvloop": True}
        print(json.dumps(anyio.run(round_, arguments.url, arguments.network, arguments.tasks, backend_options=options)))
        return
    if not arguments.before:
        parser.error("--before is needed")
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.pairs} pairs of {arguments.tasks:,} tasks"
    )
    for store in arguments.stores:
        ratios: dict[str, list[float]] = {}
        rates: dict[str, list[float]] = {}
        with served(store) as url:
            for number in range(arguments.pairs):
                order = (arguments.before, arguments.after) if number % 2 else (arguments.after, arguments.before)
                result = {python: measured(python, url, arguments.tasks) for python in order}
                for name, rate in result[arguments.after].items():
                    ratios.setdefault(name, []).append(rate / result[arguments.before][name])
                    rates.setdefault(name, []).append(rate)
        for name, found in ratios.items():
            print(
                f"{store:10} {name:18} {statistics.median(found):.3f} of before ({min(found):.2f}-{max(found):.2f}), "
                f"{statistics.median(rates[name]):,.0f}/s now",
                flush=True,
            )


if __name__ == "__main__":
    main()
