"""What does `--health` cost a process that has nothing to do, and how soon is a probe answered while one works?

    python tests/bench/bench_health.py --rounds 7 --seconds 10

*idle*: the part of a core that a process uses whose agents have nothing to do, with the endpoint and without, measured
side by side; nobody asks the endpoint meanwhile. *probe*: how long `/readyz` and `/metrics` take to answer while the
process passes tasks on a store in memory as fast as it can, with the interpreter set as `converge run` sets it; beside
it, in turns, what the same take of a process that has nothing to do: what the machine itself adds.
"""

from __future__ import annotations

import argparse
import http.client
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import anyio

from converge import Agent, MemoryStore, Node, Pool, Task
from converge.operations.run import tune_interpreter

SETTLE_SEC = 3.0
PAUSE_SEC = 0.02


class Quick(Agent):
    """Does nothing with a task."""

    concurrency = 100

    async def on_task(self, task: Task) -> None:
        return None


async def idle(health: str) -> None:
    """Be a node with one agent that has nothing to do, until standard input ends."""
    async with Node(store=MemoryStore(), health=health) as node:
        await node.spawn(Quick, pool="p")
        sys.stdout.write(f"{node.health_url}\n")
        sys.stdout.flush()
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def busy(seconds: str) -> None:
    """Pass tasks for so long; write where the endpoint is, then how many tasks a second that were."""
    async with Node(store=MemoryStore(), health="0") as node:
        await node.pools.create_pool(Pool(id="p", keep_completed_sec=0, keep_failed_sec=0))
        await node.spawn(Quick, count=10, pool="p")
        sys.stdout.write(f"{node.health_url}\n")
        sys.stdout.flush()
        began, passed = time.monotonic(), 0
        while time.monotonic() - began < float(seconds):
            ids = await node.tasks.submit_many([Task(pool_id="p") for _ in range(1_000)])
            await node.tasks.result(ids[-1], timeout=60)
            passed += len(ids)
        sys.stdout.write(f"{passed / (time.monotonic() - began):.0f}\n")
        sys.stdout.flush()


def child(*arguments: str) -> subprocess.Popen[str]:
    """Start this script in another role."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str]) -> str:
    """Return its next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def cpu_sec(process: subprocess.Popen[str]) -> float:
    """Return what it has used of processors so far: the kernel's nanoseconds of its threads."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e9


def measure_idle(rounds: int, seconds: float) -> None:
    """Compare the two side by side, which a busy machine disturbs alike."""
    both = {"with": child("idle", "127.0.0.1:0"), "without": child("idle", "")}
    used: dict[str, list[float]] = {name: [] for name in both}
    for one in both.values():
        line_of(one)
    time.sleep(SETTLE_SEC)  # what the start has set off comes to rest
    for _ in range(rounds):
        before, began = {name: cpu_sec(one) for name, one in both.items()}, time.monotonic()
        time.sleep(seconds)  # what is measured is what happens meanwhile
        for name, one in both.items():
            used[name].append(100 * (cpu_sec(one) - before[name]) / (time.monotonic() - began))
    for one in both.values():
        one.communicate()
    more = median(a - b for a, b in zip(used["with"], used["without"], strict=True))
    print(f"idle: {median(used['with']):.3f} % of a core with, {median(used['without']):.3f} % without; {more:+.3f} %")


def probed(url: str, path: str) -> float:
    """Ask once, over a connection of its own, as an orchestrator does; return how many milliseconds it took."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    connection, began = http.client.HTTPConnection(host, int(port), timeout=10), time.perf_counter()
    connection.request("GET", path)
    assert connection.getresponse().read()
    took = 1_000 * (time.perf_counter() - began)
    connection.close()
    return took


def measure_probe(seconds: float) -> None:
    """Ask a process that works and one that has nothing to do in turns."""
    both = {"busy": child("busy", str(seconds)), "idle": child("idle", "127.0.0.1:0")}
    urls = {name: line_of(one) for name, one in both.items()}
    took: dict[tuple[str, str], list[float]] = {(path, name): [] for path in ("/readyz", "/metrics") for name in both}
    until = time.monotonic() + seconds - 0.5
    while time.monotonic() < until:
        for path, name in took:
            took[path, name].append(probed(urls[name], path))
            time.sleep(PAUSE_SEC)  # between two probes
    print(f"probe: while {line_of(both['busy'])} tasks/s pass")
    for (path, name), some in took.items():
        some.sort()
        p50, p99 = (some[int(len(some) * part)] for part in (0.5, 0.99))
        print(f"  {path} of the {name} process: p50 {p50:.1f} ms, p99 {p99:.1f} ms of {len(some)}")
    for one in both.values():
        one.communicate()


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    print(f"CPython {platform.python_version()}")
    measure_idle(given.rounds, given.seconds)
    measure_probe(given.seconds)


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in ("idle", "busy"):
        tune_interpreter()
        anyio.run({"idle": idle, "busy": busy}[sys.argv[1]], sys.argv[2], backend_options={"use_uvloop": True})
    else:
        main()
