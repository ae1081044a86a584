"""What claims and submits cost on the store in memory, beside bare dictionaries that hold the same records.

    python tests/bench/bench_claims_memory.py --lanes 10 300 --flatness

Every round runs both, in turn; the median of the rounds' ratios is what counts. `--flatness` compares a claim beside
200,000 tasks that may not be taken, and beside 200,000 more of its own lane, with one beside 1,000; and submits of any
priority, which come to lie anywhere among those that wait.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import platform
import random
import sys
import time
from itertools import repeat

import anyio
from workload import CALL, CLAIM, ENDED, POOL_ID, SPEC, UNTIL, Site, lane_hash, median, site, uuids

from converge.builtin.memory.store import MemoryStore
from converge.contracts.store import Batch, Store, Taken
from converge.model.keys import READY, TASK

FEW, MANY = 1_000, 200_000


class Floor:
    """The same records in five dictionaries and one heap; no checks, no revisions, no contract."""

    def __init__(self) -> None:
        self.task: dict[bytes, bytes] = {}
        self.state: dict[bytes, bytes] = {}
        self.done: dict[tuple[str, str, int, bytes], bytes] = {}
        self.held: dict[tuple[bytes, int, bytes, bytes], int] = {}
        self.ready: list[tuple[int, bytes]] = []

    def submit(self, count: int) -> float:
        ids, began = uuids(count), time.perf_counter()
        for at in range(0, count, CALL):
            some = ids[at : at + CALL]
            self.task.update(zip(some, repeat(SPEC)))
            for number, id_ in enumerate(some):
                heapq.heappush(self.ready, (at + number, id_))
        return count / (time.perf_counter() - began)

    def drain(self) -> float:
        count, began, lease = len(self.ready), time.perf_counter(), lane_hash(0)
        while self.ready:
            rests = [heapq.heappop(self.ready) for _ in range(min(CLAIM, len(self.ready)))]
            nonce, now = uuids(1)[0], time.time_ns()
            for rank, id_ in rests:
                self.held[(lease, rank, id_, nonce)] = now
            for rank, id_ in rests:
                del self.held[(lease, rank, id_, nonce)]
                self.state[id_] = ENDED
                self.done[(POOL_ID, "COMPLETED", UNTIL, id_)] = b""
        return count / (time.perf_counter() - began)


class Inheriting(MemoryStore):
    """The store with the turn that every store inherits."""

    turn = Store.turn  # the inherited one, in place of the store's own


class Bench:
    """Every round begins with an empty store."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.results: dict[str, object] = {}

    async def run(self) -> dict[str, object]:
        await self._pairs()
        await self._bare()
        for lanes in self.arguments.lanes:
            pairs = [(await self._drain_lanes(lanes), await self._drain_lanes(1)) for _ in range(self.arguments.rounds)]
            many, one = median([first for first, _ in pairs]), median([second for _, second in pairs])
            ratio = median([first / second for first, second in pairs])
            self._tell(f"{lanes} lanes, half eligible, against one", per_sec=many, one=one, ratio=ratio)
        if self.arguments.flatness:
            await self._beside("that may not be taken", is_elsewhere=True)
            await self._beside("more of its own lane", is_elsewhere=False)
            await self._any_priority()
        return self.results

    async def _drain_lanes(self, lanes: int) -> float:
        own = await site(MemoryStore(), lanes=lanes)
        await own.submit(self.arguments.tasks, lanes=range(lanes))
        gc.collect()
        return await own.drain(lanes=range(0, lanes, 2), in_flight=1)

    async def _pairs(self) -> None:
        tasks = self.arguments.tasks
        rows: dict[str, list[tuple[float, float]]] = {"submit": [], "claim and finish": [], "the inherited turn": []}
        dedups = []
        for _ in range(self.arguments.rounds):
            floor, own, inheriting = Floor(), await site(MemoryStore()), await site(Inheriting())
            rows["submit"].append((await own.submit(tasks), floor.submit(tasks)))
            floor_drain = floor.drain()
            rows["claim and finish"].append((await own.drain(in_flight=1), floor_drain))
            dedups.append(await own.submit(tasks, has_dedup=True))
            await inheriting.submit(tasks // 4)
            rows["the inherited turn"].append((await inheriting.drain(in_flight=1), floor_drain))
        for what, pairs in rows.items():
            own_rate, floor_rate = median([first for first, _ in pairs]), median([second for _, second in pairs])
            self._tell(
                what, per_sec=own_rate, floor=floor_rate, ratio=median([first / second for first, second in pairs])
            )
        self._tell("submit with dedup keys", per_sec=median(dedups))

    async def _bare(self) -> None:
        """The store's calls alone, without what it costs to make and to read batches."""
        tasks, submits, turns = self.arguments.tasks, [], []
        for _ in range(self.arguments.rounds):
            own = await site(MemoryStore())
            ids, took = uuids(tasks), 0.0
            for batches in [own.submit_batches(ids[at : at + CALL]) for at in range(0, tasks, CALL)]:
                began = time.perf_counter()
                await own.store.commit(batches, wake=["lane.0"])
                took += time.perf_counter() - began
            submits.append(tasks / took)
            finishes: list[Batch] = []
            took, is_over = 0.0, False
            while not is_over:
                take = own.take()
                began = time.perf_counter()
                taken = (await own.store.turn(finishes, take)).taken
                took += time.perf_counter() - began
                assert isinstance(taken, Taken), "a claim of the benchmark met a conflict"
                finishes, is_over = own.finishes(take, taken), not taken.rests
            turns.append(tasks / took)
        self._tell(
            "the store's calls alone", submits_per_sec=median(submits), claims_and_finishes_per_sec=median(turns)
        )

    async def _beside(self, what: str, *, is_elsewhere: bool) -> None:
        sites: list[Site] = [await site(MemoryStore(), lanes=5), await site(MemoryStore(), lanes=5)]
        for each, pending in zip(sites, (FEW, MANY), strict=True):
            await each.submit(20_000)
            await (each.submit_elsewhere(pending) if is_elsewhere else each.submit(pending))
        times: list[list[float]] = [[], []]
        for step in range(20_000 // CLAIM):
            for number in (0, 1) if step % 2 else (1, 0):
                times[number].append(await sites[number].claim_once())
        few, many = median(times[0]) * 1e3, median(times[1]) * 1e3
        self._tell(f"a claim beside 200,000 {what}, against 1,000", few_ms=few, many_ms=many, ratio=many / few)

    async def _any_priority(self) -> None:
        """Submit 500 of any rank, then claim 100, with few and with many waiting."""
        costs = []
        for pending in (FEW, MANY):
            own, dice, took = await site(MemoryStore()), random.Random(1), []
            await own.submit(pending)
            now = time.time_ns() // 1_000
            for _ in range(100):
                puts = [
                    ((READY(own.lanes[0][0], now - dice.randrange(pending), id_), b""), (TASK(id_), SPEC))
                    for id_ in uuids(CALL)
                ]
                began = time.perf_counter()
                await own.store.commit([Batch(puts=pair) for pair in puts])
                await own.claim_once()
                took.append(time.perf_counter() - began)
            costs.append(median(took) * 1e3)
        self._tell(
            "submit 500 of any priority, claim 100, beside 200,000 against 1,000",
            few_ms=costs[0],
            many_ms=costs[1],
            ratio=costs[1] / costs[0],
        )

    def _tell(self, what: str, **values: float) -> None:
        found = {name: round(value, 3 if value < 100 else None) for name, value in values.items()}
        self.results[what] = found
        if not self.arguments.json:
            print(f"{what}: {', '.join(f'{name} {value:,}' for name, value in found.items())}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, nargs="*", default=[])
    parser.add_argument("--flatness", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = anyio.run(Bench(arguments).run)
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
