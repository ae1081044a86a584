"""What claims and submits cost on the store in a file, against a floor that moves the same records on the same tables
without the contract.

    python tests/bench/bench_claims_file.py --lanes 10 300 --processes 2 --inherited --flatness --renewals

The floor is SQLite itself, at the same settings and behind the same turnstile: the rows of a call in one transaction,
by `executemany`, called straight from one thread; no checks, no revisions, no ranges, no event loop. Floor and store
take turns within each round, on a new file each; the median of the rounds' ratios is what counts. `--renewals` says how
long one small commit waits while three processes drain.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
from workload import CALL, CLAIM, ENDED, POOL_ID, SPEC, UNTIL, Site, lane_hash, median, site, uuids

from converge.builtin.file.schema import connect_writer
from converge.builtin.file.store import FileStore
from converge.builtin.file.turnstile import Turnstile
from converge.contracts.store import Batch, Store
from converge.model.keys import EXPIRY

FEW, MANY = 1_000, 200_000
IN_FLIGHT = 2
T = TypeVar("T")


class Floor:
    """The same rows in the tables of a store's file."""

    def __init__(self, path: str) -> None:
        self.connection, self.turnstile = connect_writer(path), Turnstile(path)
        self.lane, self.lease = lane_hash(0), os.urandom(16)

    def submit(self, count: int) -> float:
        ids, spec, began = uuids(count), SPEC.decode(), time.perf_counter()
        for at in range(0, count, CALL):
            some, run = ids[at : at + CALL], self.connection.executemany
            with self.turnstile.turn():
                self.connection.execute("begin immediate")
                run("insert into f_task values (?, ?, 1)", [(id_, spec) for id_ in some])
                run(
                    "insert into f_ready values (?, ?, ?, '', 1)",
                    [(self.lane, at + number, id_) for number, id_ in enumerate(some)],
                )
                self.connection.execute("commit")
        return count / (time.perf_counter() - began)

    def drain(self) -> float:
        done, began, ended, old = 0, time.perf_counter(), ENDED.decode(), b""
        rests: list[tuple[int, bytes]] = []
        run, get = self.connection.executemany, self.connection.execute
        while True:
            nonce, now = os.urandom(16), str(time.time_ns())
            with self.turnstile.turn():
                get("begin immediate")
                if rests:
                    run(
                        "delete from f_held where lease = ? and rank = ? and id = ? and nonce = ?",
                        [(self.lease, *rest, old) for rest in rests],
                    )
                    run("insert into f_state values (?, ?, 1)", [(id_, ended) for _, id_ in rests])
                    run(
                        "insert into f_done values (?, 'COMPLETED', ?, ?, '', 1)",
                        [(POOL_ID, UNTIL, id_) for _, id_ in rests],
                    )
                done += len(rests)
                rests = get(
                    "select rank, id from f_ready where lane = ? order by rank, id limit ?", (self.lane, CLAIM)
                ).fetchall()
                run(
                    "delete from f_ready where lane = ? and rank = ? and id = ?", [(self.lane, *rest) for rest in rests]
                )
                run("insert into f_held values (?, ?, ?, ?, ?, 1)", [(self.lease, *rest, nonce, now) for rest in rests])
                for _, id_ in rests:
                    get("select v from f_task where id = ?", (id_,)).fetchone()
                get("commit")
            old = nonce
            if not rests:
                return done / (time.perf_counter() - began)


class Inheriting(FileStore):
    """The store with the turn that every store inherits."""

    async def commit(self, batches, *, wake=()):  # type: ignore[no-untyped-def]  # as the store's
        return (await FileStore.turn(self, batches, None, wake=wake)).outcomes

    turn = Store.turn


@asynccontextmanager
async def fresh(kind: type[FileStore] = FileStore) -> AsyncIterator[tuple[FileStore, str]]:
    """Open a store on a new file."""
    with tempfile.TemporaryDirectory(prefix="bench", dir=Path.cwd()) as folder:
        path = f"{folder}/state.db"
        async with kind.open(f"file:{path}") as store:
            yield store, path


class Bench:
    """Every measurement begins with a new file, on the disk of the working directory."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.results: dict[str, object] = {}

    async def run(self) -> dict[str, object]:
        await self._pairs()
        if self.arguments.inherited:
            await self._inherited()
        for lanes in self.arguments.lanes:
            await self._lanes(lanes)
        if self.arguments.processes > 1:
            await self._processes()
        if self.arguments.flatness:
            await self._beside("that may not be taken", is_elsewhere=True)
            await self._beside("more of its own lane", is_elsewhere=False)
        if self.arguments.renewals:
            await self._renewals()
        return self.results

    async def _pairs(self) -> None:
        tasks = self.arguments.tasks
        rows: dict[str, list[tuple[float, float]]] = {
            "submit": [],
            "claim and finish": [],
            "claim and finish, one in flight": [],
        }
        dedups = []
        for _ in range(self.arguments.rounds):
            async with fresh() as (_, path):
                floor = Floor(path)
                floor_submit, floor_drain = floor.submit(tasks), floor.drain()
            async with fresh() as (store, _):
                own = await site(store)
                rows["submit"].append((await own.submit(tasks, in_flight=IN_FLIGHT), floor_submit))
                rows["claim and finish"].append((await own.drain(in_flight=IN_FLIGHT), floor_drain))
                dedups.append(await own.submit(tasks // 2, has_dedup=True, in_flight=IN_FLIGHT))
                rows["claim and finish, one in flight"].append((await own.drain(in_flight=1), floor_drain))
        for what, pairs in rows.items():
            self._tell_pairs(what, pairs)
        self._tell("submit with dedup keys", per_sec=median(dedups))

    async def _inherited(self) -> None:
        pairs = []
        for _ in range(self.arguments.rounds):
            rates = []
            for kind in (Inheriting, FileStore):
                async with fresh(kind) as (store, _):
                    own = await site(store)
                    await own.submit(self.arguments.tasks // 4)
                    rates.append(await own.drain())
            pairs.append((rates[0], rates[1]))
        self._tell_pairs("the inherited turn", pairs, beside="own")

    async def _lanes(self, lanes: int) -> None:
        pairs = [(await self._drain_lanes(lanes), await self._drain_lanes(1)) for _ in range(self.arguments.rounds)]
        self._tell_pairs(f"{lanes} lanes, half eligible", pairs, beside="one")

    async def _drain_lanes(self, lanes: int) -> float:
        async with fresh() as (store, _):
            own = await site(store, lanes=lanes)
            await own.submit(self.arguments.tasks, lanes=range(lanes))
            return await own.drain(lanes=range(0, lanes, 2))

    async def _processes(self) -> None:
        rates = []
        for _ in range(self.arguments.rounds):
            async with fresh() as (store, path):
                await (await site(store)).submit(self.arguments.tasks)
                async with _pool(self.arguments.processes) as pool:
                    at = time.time() + 2.0
                    futures = [pool.submit(_drain_process, path, at) for _ in range(self.arguments.processes)]
                    answers = await anyio.to_thread.run_sync(_answers, futures)
                rates.append(self.arguments.tasks / (max(end for _, end in answers) - at))
        self._tell(f"{self.arguments.processes} processes", per_sec=median(rates))

    async def _beside(self, what: str, *, is_elsewhere: bool) -> None:
        async with fresh() as (few, _), fresh() as (many, _):
            sites: list[Site] = [await site(few, lanes=5), await site(many, lanes=5)]
            for each, pending in zip(sites, (FEW, MANY), strict=True):
                await each.submit(20_000)
                await (each.submit_elsewhere(pending) if is_elsewhere else each.submit(pending))
            times: list[list[float]] = [[], []]
            for step in range(20_000 // CLAIM):
                for number in (0, 1) if step % 2 else (1, 0):
                    times[number].append(await sites[number].claim_once())
        few_ms, many_ms = median(times[0]) * 1e3, median(times[1]) * 1e3
        self._tell(
            f"a claim beside 200,000 {what}, against 1,000", few_ms=few_ms, many_ms=many_ms, ratio=many_ms / few_ms
        )

    async def _renewals(self) -> None:
        """A lone commit, ten times a second, while three processes drain."""
        waits: list[float] = []
        async with fresh() as (store, path):
            await (await site(store)).submit(3 * self.arguments.tasks)
            async with _pool(3) as pool:
                at = time.time() + 2.0
                futures = [pool.submit(_drain_process, path, at) for _ in range(3)]
                await anyio.sleep(max(0.0, at - time.time()))
                while not any(future.done() for future in futures):
                    began = time.perf_counter()
                    await store.commit([Batch(puts=[(EXPIRY(bytes(16)), b"1")])])
                    waits.append((time.perf_counter() - began) * 1e3)
                    await anyio.sleep(0.1)
                shares = sorted(claimed for claimed, _ in await anyio.to_thread.run_sync(_answers, futures))
        share = shares[0] / shares[-1]
        self._tell(
            "a renewal while three processes drain",
            p50_ms=median(waits),
            worst_ms=max(waits),
            count=len(waits),
            least_share=share,
        )

    def _tell_pairs(self, what: str, pairs: list[tuple[float, float]], beside: str = "floor") -> None:
        own, other = median([first for first, _ in pairs]), median([second for _, second in pairs])
        self._tell(what, per_sec=own, **{beside: other}, ratio=median([first / second for first, second in pairs]))

    def _tell(self, what: str, **values: float) -> None:
        found = {name: round(value, 3 if value < 100 else None) for name, value in values.items()}
        self.results[what] = found
        if not self.arguments.json:
            print(f"{what}: {', '.join(f'{name} {value:,}' for name, value in found.items())}", flush=True)


@asynccontextmanager
async def _pool(processes: int) -> AsyncIterator[ProcessPoolExecutor]:
    """Processes that have imported everything."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        await anyio.to_thread.run_sync(_answers, [pool.submit(time.sleep, 1.0) for _ in range(processes)])
        yield pool


def _answers(futures: list[Future[T]]) -> list[T]:
    return [future.result() for future in futures]


def _drain_process(path: str, at: float) -> tuple[int, float]:
    return anyio.run(partial(_drain, path, at))


async def _drain(path: str, at: float) -> tuple[int, float]:
    async with FileStore.open(f"file:{path}") as store:
        own = await site(store)
        await anyio.sleep(max(0.0, at - time.time()))
        await own.drain(in_flight=IN_FLIGHT)
        return own.claimed, time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--inherited", action="store_true")
    parser.add_argument("--flatness", action="store_true")
    parser.add_argument("--renewals", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results = anyio.run(Bench(arguments).run)
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "sqlite": sqlite3.sqlite_version}
        print(json.dumps({"v": 1, "command": sys.argv, **machine, "results": results}))


if __name__ == "__main__":
    main()
