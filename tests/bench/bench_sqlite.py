"""How many no-op tasks a second pass through agents on a SQLite file that is synced for each commit, beside huey on
SQLite at its defaults?

    python tests/bench/bench_sqlite.py --peers PYTHON [--tasks 5000] [--rounds 5] [--json]

PYTHON is an interpreter of an environment with huey in it. Its tasks are taken and run in a loop on one thread, without
the pauses of its consumer, which would make it slower; its file is not synced (`fsync=False` is its default). Both
drain tasks that were submitted before, and take turns within each round; the median of the rounds' ratios is what
counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
from bench_node import completed, submit
from workload import median

from converge import Agent, Node, Pool, Task

AGENTS = 100

HUEY = """
import sys, time
from huey import SqliteHuey

huey = SqliteHuey(filename=sys.argv[1])

@huey.task()
def nothing(n):
    return None

count = int(sys.argv[2])
began = time.perf_counter()
for n in range(count):
    nothing(n)
submitted = time.perf_counter()
done = 0
while (task := huey.dequeue()) is not None:
    huey.execute(task)
    done += 1
assert done == count, done
print(count / (submitted - began), count / (time.perf_counter() - submitted))
"""


class Nothing(Agent):
    """Does nothing."""

    async def on_task(self, task: Task) -> None:
        """Return at once."""


async def converge(url: str, tasks: int) -> tuple[float, float]:
    """Return how many tasks a second were submitted, and how many went through agents."""
    async with Node(store=url, plugins=["sql"]) as node:
        await node.pools.create_pool(Pool(id="docs"))
        began = time.perf_counter()
        await submit(node, tasks)
        submitted = time.perf_counter()
        await node.spawn(Nothing, count=AGENTS, pool="docs")
        drained = time.perf_counter()
        await completed(node, tasks)
        return tasks / (submitted - began), tasks / (time.perf_counter() - drained)


def huey(python: str, path: Path, tasks: int) -> tuple[float, float]:
    """Return the same of huey."""
    command = [python, "-c", HUEY, str(path), str(tasks)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    submitted, drained = map(float, answer.split())
    return submitted, drained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--tasks", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    own, peer = list[tuple[float, float]](), list[tuple[float, float]]()
    with tempfile.TemporaryDirectory(prefix="bench-sqlite-", dir=Path.cwd()) as folder:
        for number in range(arguments.rounds):
            url = f"sqlite:///{folder}/{number}.db"
            own.append(anyio.run(converge, url, arguments.tasks, backend_options={"use_uvloop": True}))
            if arguments.peers:
                peer.append(huey(arguments.peers, Path(folder) / f"{number}.huey", arguments.tasks))
    found = {"submit": median([one[0] for one in own]), "drain": median([one[1] for one in own])}
    if peer:
        pairs = list(zip(own, peer, strict=True))
        found |= {"huey_submit": median([one[0] for one in peer]), "huey_drain": median([one[1] for one in peer])}
        found |= {
            f"{name}_ratio": median([a[at] / b[at] for a, b in pairs]) for at, name in enumerate(("submit", "drain"))
        }
    if arguments.json:
        print(json.dumps({"v": 1, "command": sys.argv, "python": platform.python_version(), "results": found}))
    else:
        print(", ".join(f"{name} {value:,.1f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
