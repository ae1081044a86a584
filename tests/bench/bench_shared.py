"""How many no-op tasks a second pass through the nodes of several processes that share one store, against the node of
one process?

    python tests/bench/bench_shared.py --stores file --processes 1 2 --renewals

Each process submits its share in calls of 500 and works on whatever is there, with agents of its own. The clock runs
from a moment at which all are ready to the moment at which the store has acknowledged the last finish. The numbers of
processes take turns within each round, on a new store each; the median of the rounds' ratios is what counts, since it
holds however busy the machine is. `--renewals` says how long renewals wait while four processes go on submitting and
draining: the worst of their own leases' (of one second, so three renewals a second each), and those of a process that
does nothing else, ten a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import time
from functools import partial
from typing import Any

import anyio
import attrs
from bench_node import Idle, completed_by, fresh, network, plugins, served, submit
from workload import median, shown

from converge import Node, Pool
from converge.contracts.store import Batch
from converge.model.keys import EXPIRY
from converge.operations.run import tune_interpreter
from converge.services.store.opening import open_store

TELL_SEC = 0.002
"""How often a process tells how much it has completed."""

LEASE_SEC = 1.0  # short: renewals are timed
"""Leases while renewals are timed: renewed three times a second."""

RENEWING = 4
"""Processes that drain while renewals are timed."""

SPAWN = multiprocessing.get_context("spawn")


@attrs.frozen
class Share:
    """What one process does, and the shared memory in which it tells how far it is."""

    url: str
    network: str
    tasks: int
    agents: int
    begin: Any
    ready: Any
    completed: Any
    worst_sec: Any
    lease_sec: float


def work(share: Share) -> None:
    """Be one process."""
    tune_interpreter()
    anyio.run(partial(work_on, share), backend_options={"use_uvloop": True})


async def work_on(share: Share) -> None:
    """Submit and work until killed."""
    async with Node(
        store=share.url, plugins=plugins(share.url), network=share.network, lease_sec=share.lease_sec
    ) as node:
        await node.spawn(Idle, count=share.agents, pool="docs")
        with share.ready.get_lock():
            share.ready.value += 1
        while not share.begin.is_set():  # noqa: ASYNC110  # the parent's memory wakes nobody
            await anyio.sleep(TELL_SEC)
        async with anyio.create_task_group() as group:
            group.start_soon(submit, node, share.tasks)
            while True:
                share.completed.value = completed_by(node)
                if (lease := node.handle.lease_opened) is not None:
                    share.worst_sec.value = lease.worst_renewal_sec
                await anyio.sleep(TELL_SEC)


class Processes:
    """Some processes on one new store."""

    def __init__(self, url: str, count: int, tasks: int, agents: int, lease_sec: float = 15.0) -> None:
        self.url, self.network = fresh(url), network(url)
        self.begin, ready = SPAWN.Event(), SPAWN.Value("i", 0)
        self.ready: Any = ready
        self.completed: list[Any] = [SPAWN.Value("q", 0) for _ in range(count)]
        self.worst_sec: list[Any] = [SPAWN.Value("d", 0.0) for _ in range(count)]
        anyio.run(self._create_pool)
        shares = [
            Share(self.url, self.network, tasks // count, agents, self.begin, ready, completed, worst_sec, lease_sec)
            for completed, worst_sec in zip(self.completed, self.worst_sec, strict=True)
        ]
        self.processes = [SPAWN.Process(target=work, args=(share,), daemon=True) for share in shares]

    async def _create_pool(self) -> None:
        async with Node(store=self.url, plugins=plugins(self.url), network=self.network) as node:
            await node.pools.create_pool(Pool(id="docs"))

    def __enter__(self) -> Processes:
        for process in self.processes:
            process.start()
        while self.ready.value < len(self.processes):
            self.check()
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def check(self) -> None:
        """Raise if one of them has ended."""
        assert all(process.exitcode is None for process in self.processes), "a process of the benchmark failed"

    @property
    def done(self) -> int:
        """Tasks that are known to have completed."""
        return sum(one.value for one in self.completed)


def whole(url: str, count: int, tasks: int, agents: int) -> float:
    """Return tasks a second of so many processes together."""
    tasks = tasks // count * count
    with Processes(url, count, tasks, agents) as processes:
        began = time.perf_counter()
        processes.begin.set()
        while processes.done < tasks:
            processes.check()
            time.sleep(TELL_SEC)
        return tasks / (time.perf_counter() - began)


def renewals(url: str, seconds: float, agents: int) -> dict[str, float]:
    """Return how long single small commits take while the processes work."""
    with Processes(url, RENEWING, 10_000_000, agents, LEASE_SEC) as processes:
        processes.begin.set()
        waits = sorted(anyio.run(partial(renew, processes, seconds)))
        processes.check()
        own_worst_ms = max(one.value for one in processes.worst_sec) * 1e3
        found = {
            "own_worst_ms": own_worst_ms,
            "p50_ms": waits[len(waits) // 2],
            "worst_ms": waits[-1],
            "count": len(waits),
        }
        return found | {"tasks_per_sec": processes.done / seconds}


async def renew(processes: Processes, seconds: float) -> list[float]:
    """Renew a lease that nobody has: one put, as a renewal is."""
    waits: list[float] = []
    async with open_store(processes.url, plugins=plugins(processes.url), network=processes.network) as store:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            await store.commit([Batch(puts=[(EXPIRY(bytes(16)), b"1")])])
            waits.append((time.perf_counter() - began) * 1e3)
            await anyio.sleep(0.1)
    return waits


def measure(store: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run the rounds of one store."""
    rates: dict[int, list[float]] = {count: [] for count in arguments.processes}
    with served(store) as url:
        for _ in range(arguments.rounds):
            for count in arguments.processes:
                rates[count].append(whole(url, count, arguments.tasks, arguments.agents))
        found = {f"{count} processes": median(some) for count, some in rates.items()}
        first = arguments.processes[0]
        for count in arguments.processes[1:]:
            found[f"{count} against {first}"] = median(
                [more / one for more, one in zip(rates[count], rates[first], strict=True)]
            )
        if arguments.renewals:
            found |= {
                f"renewal {name}": value for name, value in renewals(url, arguments.seconds, arguments.agents).items()
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", nargs="+", default=["file"], choices=["file", "redis", "postgresql"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--tasks", type=int, default=30_000)
    parser.add_argument("--agents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--renewals", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long renewals are timed")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = {}
    for store in arguments.stores:
        found = results[store] = measure(store, arguments)
        if not arguments.json:
            print(f"{store}: {shown(found)}", flush=True)
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
