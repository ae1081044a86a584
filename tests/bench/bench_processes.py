"""How much faster do plain handlers that compute end in several processes of one command than in one?

    python tests/bench/bench_processes.py --processes 1 2 --rounds 5

Each run is `converge run --processes N --drain` on a new file, with four agents in each process. The time runs from the
first claim to the last finish, as the store's history has them, so that starting Python is no part of it. The numbers
of processes take turns within each round; the median of the rounds' ratios is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
from workload import median

from converge import TaskManager, TaskState, open_store

AGENT = """
from converge import Agent

class Cpu(Agent):
    def on_task(self, task):
        return sum(n * n for n in range(task.inputs["n"]))
"""


def timed(processes: int, tasks: int, size: int) -> float:
    """Return the seconds from the first claim to the last finish of one run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "computing.py").write_text(AGENT)
        line = json.dumps({"inputs": {"n": size}})
        (Path(folder) / "tasks.jsonl").write_text(f"{line}\n" * tasks)
        flags = ["--agents", "4", "--pool", "p", "--store", "file:state.db", "--submit", "tasks.jsonl", "--drain"]
        subprocess.run(
            [sys.executable, "-m", "converge", "run", "computing:Cpu", "--processes", str(processes), *flags],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=600,
        )
        return anyio.run(_span_sec, f"file:{folder}/state.db", tasks)


async def _span_sec(url: str, tasks: int) -> float:
    async with open_store(url) as store:
        done = await TaskManager(store).list(state=TaskState.COMPLETED, pool_id="p", limit=tasks)
    assert len(done) == tasks, "all are completed"
    lines = [task.history[-1] for task in done]
    return (max(line.at for line in lines) - min(line.claimed_at for line in lines)) / 1_000_000


def main() -> None:
    """Measure as the command line says; one JSON object on standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=300)
    parser.add_argument("--size", type=int, default=500_000)
    given = parser.parse_args()
    rounds = [[timed(count, given.tasks, given.size) for count in given.processes] for _ in range(given.rounds)]
    ratios = {count: round(median([one[0] / one[at] for one in rounds]), 2) for at, count in enumerate(given.processes)}
    print(json.dumps({"seconds": rounds, "times as fast": ratios, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
