"""What does an agent cost that has nothing to do: memory, processor time, calls of the store?

    python tests/bench/bench_idle.py --agents 100 1000 10000 --seconds 60

Each number of agents runs in a process of its own, on a store in memory (or `--store file`). *KiB*: what the resident
memory has grown by, an agent, from the node with one agent to the node with all of them, the collector run before each
look. *core*: the part of one processor core that the process uses while nobody asks anything of it. *calls*: what it
asks of the store meanwhile; it should be the same for any number of agents.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
from workload import shown

from converge import Agent, FileStore, MemoryStore, Message, Node, Pool, Task
from converge.operations.run import tune_interpreter

CALLS = ("get", "scan", "commit", "turn", "count", "time")

SETTLE_SEC = 3.0
"""What the start has set off comes to rest."""


class Idle(Agent):
    """Takes tasks and messages, if any came."""

    capabilities = ("swim",)
    topics = ("water",)

    async def on_task(self, task: Task) -> None:
        return None

    async def on_message(self, message: Message) -> None:
        return None


def count_calls(kind: type[Any], calls: Counter[str]) -> None:
    """Count what is asked of every store of this kind from now on."""

    def counted(name: str, inner: Any) -> Any:
        async def call(self: Any, *given: Any, **named: Any) -> Any:
            calls[name] += 1
            return await inner(self, *given, **named)

        return call

    for name in CALLS:
        setattr(kind, name, counted(name, getattr(kind, name)))


def resident() -> int:
    """Return this process's resident memory in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def measure(url: str, agents: int, seconds: float) -> dict[str, float]:
    """Spawn the agents, and look on while they do nothing."""
    calls: Counter[str] = Counter()
    count_calls(FileStore if url.startswith("file:") else MemoryStore, calls)
    async with Node(store=url) as node:
        await node.pools.create_pool(Pool(id="docs"))
        await node.spawn(Idle, count=1, pool="docs")
        await anyio.sleep(SETTLE_SEC)
        before, began = resident(), time.perf_counter()
        spawned = await node.spawn(Idle, count=agents, pool="docs")
        took = time.perf_counter() - began
        await anyio.sleep(SETTLE_SEC)
        grown = resident() - before
        calls.clear()
        began, cpu = time.perf_counter(), time.process_time()
        await anyio.sleep(seconds)
        core = (time.process_time() - cpu) / (time.perf_counter() - began)
        asked = dict(calls)
        assert len(spawned) == agents, "not all were spawned"
    found = {"kib": grown / agents / 1024, "core_percent": core * 100, "spawn_sec": took, "calls": sum(asked.values())}
    return found | {f"calls_{name}": asked.get(name, 0) for name in CALLS}


def measure_apart(store: str, agents: int, seconds: float) -> dict[str, float]:
    """Measure in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-idle-", dir=Path.cwd()) as folder:
        url = f"file:{folder}/state.db" if store == "file" else "memory:"
        command = [sys.executable, __file__, "--child", url, "--agents", str(agents), "--seconds", str(seconds)]
        found: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--store", default="memory", choices=["memory", "file"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        tune_interpreter()
        print(
            json.dumps(
                anyio.run(
                    measure,
                    arguments.child,
                    arguments.agents[0],
                    arguments.seconds,
                    backend_options={"use_uvloop": True},
                )
            )
        )
        return
    results = {}
    for agents in arguments.agents:
        found = results[agents] = measure_apart(arguments.store, agents, arguments.seconds)
        if not arguments.json:
            print(f"{agents:,} agents: {shown(found)}", flush=True)
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
