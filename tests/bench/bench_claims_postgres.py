"""How many tasks a second are submitted, claimed and finished on PostgreSQL, against a floor that moves the same
records without the contract?

    python tests/bench/bench_claims_postgres.py [--tasks 10000] [--rounds 10] [--lanes 10 300] [--processes 2]
    [--inherited] [--old-snapshot] [--json]

It starts a private PostgreSQL with fsync on. The floor is asyncpg with one statement a call on copies of the same
tables, two calls in flight: inserts for a submit; for a turn a delete with SKIP LOCKED, an insert, the finishes of the
turn before. Floor and store take turns within each round, and the median of the rounds' ratios is what counts.
`--old-snapshot` compares a claim's cost beside 200,000 tasks that may not be taken with that beside 1,000, before and
while another connection holds an old snapshot.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import asyncpg
import uvloop
from workload import CALL, CLAIM, ENDED, POOL_ID, SPEC, UNTIL, Results, Site, lane_hash, median, pair, site, uuids

from converge.contracts.store import Store
from converge.testing.servers import postgres_server
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql.postgresql.engine import SESSION
from converge_store_sql.postgresql.store import PostgresqlStore

IN_FLIGHT = 2
TABLES = ("task", "ready", "held", "state", "done")
FEW, MANY = 1_000, 200_000

FLOOR_SUBMIT = """with t as (insert into floor_task select i, v, 1 from unnest($1::bytea[], $3::bytea[]) u(i, v))
insert into floor_ready select $4::bytea, k, i, ''::bytea, 1 from unnest($1::bytea[], $2::bigint[]) u(i, k)"""

FLOOR_TURN = """with f as (delete from floor_held where ctid = any(array(
    select x.tid from unnest($1::bigint[], $2::bytea[], $3::bytea[]) u(r, i, n) cross join lateral
    (select ctid as tid from floor_held h where lease = $4 and rank = u.r and id = u.i and nonce = u.n limit 1) x))),
s as (insert into floor_state select i, v, 1 from unnest($2::bytea[], $5::bytea[]) u(i, v)),
d as (insert into floor_done select $9, 'COMPLETED', $10, i, ''::bytea, 1 from unnest($2::bytea[]) u(i)),
g as (delete from floor_ready where ctid = any(array(
    select ctid from floor_ready where lane = $6 order by rank, id limit $8 for update skip locked)) returning rank,
    id),
m as (insert into floor_held select $4, rank, id, $7::bytea, ''::bytea, 1 from g)
select g.rank, g.id, (select value from floor_task t where t.id = g.id), (select value from floor_state t where t.id =
g.id) from g
"""


async def floor_submit(url: str, lane: bytes, tasks: int) -> float:
    starts = iter(range(0, tasks, CALL))

    async def one(connection: Any) -> None:
        for start in starts:
            ranks = range(start, min(start + CALL, tasks))
            await connection.execute(FLOOR_SUBMIT, uuids(len(ranks)), list(ranks), [SPEC] * len(ranks), lane)

    return tasks / await _with_connections(url, one)


async def floor_drain(url: str, lane: bytes) -> tuple[int, float]:
    lease, finished = secrets.token_bytes(16), 0

    async def one(connection: Any) -> None:
        nonlocal finished
        held: tuple[list[int], list[bytes], list[bytes]] = ([], [], [])
        misses = 0
        while misses < 3:
            nonce = secrets.token_bytes(16)
            rows = await connection.fetch(
                FLOOR_TURN, *held, lease, [ENDED] * len(held[0]), lane, nonce, CLAIM, POOL_ID, UNTIL
            )
            finished += len(held[0])
            held = ([row[0] for row in rows], [row[1] for row in rows], [nonce] * len(rows))
            misses = 0 if rows else misses + 1

    taken_sec = await _with_connections(url, one)
    return finished, taken_sec


async def _with_connections(url: str, one: Any) -> float:
    connections = [await asyncpg.connect(url, server_settings=SESSION) for _ in range(IN_FLIGHT)]
    started = time.perf_counter()
    await asyncio.gather(*(one(connection) for connection in connections))
    taken_sec = time.perf_counter() - started
    for connection in connections:
        await connection.close()
    return taken_sec


class Inheriting(PostgresqlStore):
    """The same store with the turn that every store inherits."""

    def __init__(self, store: SqlStore) -> None:
        self.__dict__.update(store.__dict__)

    turn = Store.turn


class Bench(Results):
    """One server with the tables of one network, and the floor's copies of them."""

    def __init__(self, url: str, arguments: argparse.Namespace) -> None:
        self.url, self.arguments = url, arguments
        super().__init__(is_quiet=arguments.json)
        self.server: Any = None

    async def run(self) -> dict[str, object]:
        self.server = await asyncpg.connect(self.url)
        try:
            async with SqlStore.open(self.url) as store:
                await self.server.execute(
                    ";".join(f"create table floor_{name} (like converge_{name} including all)" for name in TABLES)
                )
                await self._pairs(store)
                if self.arguments.inherited:
                    await self._inherited(store)
                for lanes in self.arguments.lanes:
                    await self._lanes(store, lanes)
                if self.arguments.processes > 1:
                    await self._processes(store)
            if self.arguments.old_snapshot:
                await self._flatness()
        finally:
            await self.server.close()
        return self.results

    async def _pairs(self, store: SqlStore) -> None:
        submits, drains, ones = [], [], []
        tasks = self.arguments.tasks
        for round_ in range(self.arguments.rounds):
            own, lane = await self._empty(store), lane_hash(0)

            async def drained(lane: bytes = lane) -> float:
                finished, taken_sec = await floor_drain(self.url, lane)
                assert finished == tasks
                return finished / taken_sec

            is_first = bool(round_ % 2)  # the disk is busier for the second of a pair
            submits.append(
                await pair(
                    lambda: own.submit(tasks, in_flight=IN_FLIGHT),  # noqa: B023  # awaited within the round
                    lambda: floor_submit(self.url, lane, tasks),  # noqa: B023
                    is_first,
                )
            )
            drains.append(await pair(lambda: own.drain(in_flight=IN_FLIGHT), drained, is_first))  # noqa: B023  # awaited within the round
            assert own.claimed == tasks
            await own.submit(tasks // 2, in_flight=IN_FLIGHT)
            ones.append(await own.drain(in_flight=1))
        self._tell_pairs("submit", submits)
        self._tell_pairs("claim and finish", drains)
        self._tell("claim and finish, one in flight", median(ones))

    async def _inherited(self, store: SqlStore) -> None:
        pairs = []
        for _ in range(self.arguments.rounds):
            own = await self._empty(store)
            rates = []
            for used in (Inheriting(store), store):
                own.store = used
                await own.submit(self.arguments.tasks // 4, in_flight=IN_FLIGHT)
                rates.append(await own.drain(in_flight=IN_FLIGHT))
            pairs.append((rates[0], rates[1]))
        self._tell_pairs("the inherited turn", pairs, beside="own")

    async def _lanes(self, store: SqlStore, lanes: int) -> None:
        rates = []
        for _ in range(self.arguments.rounds):
            own = await self._empty(store, lanes)
            await own.submit(self.arguments.tasks, lanes=range(lanes), in_flight=IN_FLIGHT)
            rates.append(await own.drain(lanes=range(0, lanes, 2), in_flight=IN_FLIGHT))
            assert own.claimed == sum(
                number % lanes % 2 == 0 for _ in range(0, self.arguments.tasks, CALL) for number in range(CALL)
            )
        self._tell(f"{lanes} lanes, half eligible", median(rates))

    async def _processes(self, store: SqlStore) -> None:
        pairs = []
        for _ in range(self.arguments.rounds):
            own, lane = await self._empty(store), lane_hash(0)
            await floor_submit(self.url, lane, self.arguments.tasks)
            await own.submit(self.arguments.tasks, in_flight=IN_FLIGHT)
            floor = await self._in_processes(_floor_process, self.url, lane)
            pairs.append((await self._in_processes(_drain_process, self.url), floor))
        self._tell_pairs(f"{self.arguments.processes} processes", pairs)

    async def _in_processes(self, work: Any, *arguments: object) -> float:
        count, loop = self.arguments.processes, asyncio.get_running_loop()
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            await asyncio.gather(
                *(loop.run_in_executor(pool, time.sleep, 0.5) for _ in range(count))
            )  # both have imported everything
            at = time.time() + 1.0
            answers = await asyncio.gather(*(loop.run_in_executor(pool, work, *arguments, at) for _ in range(count)))
        finished = sum(tasks for tasks, _ in answers)
        assert finished == self.arguments.tasks
        return float(finished / (max(end for _, end in answers) - at))

    async def _flatness(self) -> None:
        """A claim's time beside few and beside many tasks that may not be taken, alternately."""
        async with (
            SqlStore.open(self.url, SqlOptions(network="few")) as few,
            SqlStore.open(self.url, SqlOptions(network="many")) as many,
        ):
            sites = [await site(few, lanes=5), await site(many, lanes=5)]
            for each, pending in zip(sites, (FEW, MANY), strict=True):
                each.is_from_heads = True
                await each.submit_elsewhere(pending, in_flight=IN_FLIGHT)
            first = await self._claims(sites)
            self._tell("a claim beside 200,000 that may not be taken, against 1,000", **first)
            async with self.server.transaction(isolation="repeatable_read"):
                await self.server.fetchval("select count(*) from many_ready")
                for dead in range(1, 4):
                    found = await self._claims(sites)
                    found["to_few_before"] = found["many_ms"] / first["few_ms"]
                    self._tell(f"the same with an old snapshot and {dead * self.arguments.tasks:,} dead", **found)

    async def _claims(self, sites: Sequence[Site]) -> dict[str, float]:
        times: list[list[float]] = [[], []]
        for each in sites:
            await each.submit(self.arguments.tasks, in_flight=IN_FLIGHT)
        for step in range(self.arguments.tasks // CLAIM):
            for number in (0, 1) if step % 2 else (1, 0):
                times[number].append(await sites[number].claim_once())
        return {
            "few_ms": median(times[0]) * 1e3,
            "many_ms": median(times[1]) * 1e3,
            "ratio": median(times[1]) / median(times[0]),
        }

    async def _empty(self, store: SqlStore, lanes: int = 1) -> Site:
        await self.server.execute(f"truncate {', '.join(f'floor_{name}, converge_{name}' for name in TABLES)}")
        await self.server.execute("checkpoint")
        own = await site(store, lanes=lanes)
        own.is_from_heads = True
        return own


def _drain_process(url: str, at: float) -> tuple[int, float]:
    async def drain() -> tuple[int, float]:
        async with SqlStore.open(url) as store:
            own = await site(store)
            own.is_from_heads = True
            await asyncio.sleep(at - time.time())
            await own.drain(in_flight=IN_FLIGHT)
            return own.claimed, time.time()

    return uvloop.run(drain())


def _floor_process(url: str, lane: bytes, at: float) -> tuple[int, float]:
    async def drain() -> tuple[int, float]:
        await asyncio.sleep(at - time.time())
        finished, _ = await floor_drain(url, lane)
        return finished, time.time()

    return uvloop.run(drain())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lanes", type=int, nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--inherited", action="store_true")
    parser.add_argument("--old-snapshot", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with postgres_server() as url:
        results = uvloop.run(Bench(url, arguments).run())
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "asyncpg": asyncpg.__version__}
        print(json.dumps({"v": 1, "command": sys.argv, **machine, "results": results}))


if __name__ == "__main__":
    main()
