"""How many tasks a second are submitted, claimed and finished on MariaDB, against a floor that moves the same records
without the contract?

    python tests/bench/bench_claims_mysql.py [--tasks 10000] [--rounds 9] [--lanes 10] [--inherited] [--json]

It starts a private MariaDB (Debian's mariadb-server) that flushes each commit. The floor is asyncmy alone on copies of
the same tables, two calls in flight, in its fastest form: multi-row statements with the values in their text, one trip
a submit, two a turn (finishes and a locking select; the move of what was found). Floor and store take turns within each
round, and the median of the rounds' ratios is what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Any

import asyncmy
import uvloop
from workload import CALL, CLAIM, ENDED, POOL_ID, SPEC, UNTIL, Results, Site, lane_hash, median, pair, site, uuids

from converge.contracts.store import Store
from converge.model.keys import DONE, READY, pack
from converge.testing.servers import mariadb_server
from converge_store_sql.mysql import MysqlStore

IN_FLIGHT = 2
TABLES = ("task", "ready", "held", "state", "done")


class Floor:
    """The driver alone, on tables of its own."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2].partition("/")[0])
        self.lane, self.lease = lane_hash(0), secrets.token_bytes(16)

    async def connect(self) -> Any:
        return await asyncmy.connect(
            host="127.0.0.1", port=self._port, user="root", database="converge", autocommit=True
        )

    async def submit(self, tasks: int) -> float:
        starts = iter(range(0, tasks, CALL))

        async def one(connection: Any) -> None:
            for start in starts:
                ids = uuids(min(CALL, tasks - start))
                ready = [(pack(READY(self.lane, start + n, id_)), b"") for n, id_ in enumerate(ids)]
                inserts = [_insert("task", [(id_, SPEC) for id_ in ids]), _insert("ready", ready)]
                await _run(connection, ["start transaction", *inserts, "commit"])

        return tasks / await self._together(one)

    async def drain(self, tasks: int) -> float:
        finished = 0

        async def one(connection: Any) -> None:
            nonlocal finished
            held: list[bytes] = []
            while True:
                done = [(pack(DONE(POOL_ID, "COMPLETED", UNTIL, key[24:40])), b"") for key in held]
                states = [(key[24:40], ENDED) for key in held]
                finishes = [_delete("held", held), _insert("state", states), _insert("done", done)] if held else []
                pick = f"select k from floor_ready where k > {_hex(self.lane)} order by k limit {CLAIM}"
                statements = ["start transaction", *finishes, f"{pick} for update skip locked"]
                keys = [key for (key,) in await _run(connection, statements)]
                finished += len(held)
                if not keys:
                    await _run(connection, ["commit"])
                    return
                nonce = secrets.token_bytes(16)
                held = [self.lease + key[16:] + nonce for key in keys]
                ids = ",".join(_hex(key[24:]) for key in keys)
                moves = [_delete("ready", keys), _insert("held", [(key, b"1764000000000000") for key in held])]
                reads = [f"select k, v from floor_{name} where k in ({ids})" for name in ("task", "state")]
                await _run(connection, [*moves, *reads, "commit"])

        seconds = await self._together(one)
        assert finished == tasks, finished
        return tasks / seconds

    async def _together(self, one: Callable[[Any], Awaitable[None]]) -> float:
        connections = [await self.connect() for _ in range(IN_FLIGHT)]
        for connection in connections:
            await _run(connection, ["set session transaction isolation level read committed"])
        began = time.perf_counter()
        await asyncio.gather(*(one(connection) for connection in connections))
        taken_sec = time.perf_counter() - began
        for connection in connections:
            await connection.ensure_closed()
        return taken_sec


async def _run(connection: Any, statements: Sequence[str]) -> Sequence[Any]:
    """Run statements in one trip; return the rows of the last one that has some."""
    cursor, rows = connection.cursor(), ()
    await cursor.execute(";".join(statements))
    while True:
        if cursor.description is not None:
            rows = await cursor.fetchall()
        if not await cursor.nextset():
            return rows


def _hex(data: bytes) -> str:
    return f"X'{data.hex()}'"


def _insert(name: str, rows: Sequence[tuple[bytes, bytes]]) -> str:
    return f"insert into floor_{name} values {','.join(f'({_hex(key)},{_hex(value)},1)' for key, value in rows)}"


def _delete(name: str, keys: Sequence[bytes]) -> str:
    return f"delete t from floor_{name} t force index (primary) where k in ({','.join(map(_hex, keys))})"


class Inheriting(MysqlStore):
    """The same store with the turn that every store inherits."""

    def __init__(self, store: MysqlStore) -> None:
        self.__dict__.update(store.__dict__)

    turn = Store.turn

    async def commit(self, batches: Any, *, wake: Any = ()) -> Any:
        return (await MysqlStore.turn(self, batches, None, wake=wake)).outcomes


class Bench(Results):
    """One server with the tables of one network, and the floor's copies of them."""

    def __init__(self, url: str, arguments: argparse.Namespace) -> None:
        self.url, self.arguments, self.floor = url, arguments, Floor(url)
        super().__init__(is_quiet=arguments.json)
        self._server: Any = None

    async def run(self) -> dict[str, object]:
        self._server = await self.floor.connect()
        async with MysqlStore.opened(self.url) as store:
            await _run(self._server, [f"create table floor_{name} like converge_{name}" for name in TABLES])
            await self._pairs(store)
            if self.arguments.inherited:
                await self._inherited(store)
            for lanes in self.arguments.lanes:
                own = await self._empty(store, lanes)
                await own.submit(self.arguments.tasks, lanes=range(lanes), in_flight=IN_FLIGHT)
                self._tell(f"{lanes} lanes", await own.drain(lanes=range(lanes), in_flight=IN_FLIGHT))
        await self._server.ensure_closed()
        return self.results

    async def _pairs(self, store: MysqlStore) -> None:
        tasks, ones = self.arguments.tasks, list[float]()
        submits, drains = list[tuple[float, float]](), list[tuple[float, float]]()
        for round_ in range(self.arguments.rounds):
            own, is_first = await self._empty(store), bool(round_ % 2)  # the disk is busier for the second of a pair
            submits.append(
                await pair(
                    lambda: own.submit(tasks, in_flight=IN_FLIGHT),  # noqa: B023  # awaited within the round
                    lambda: self.floor.submit(tasks),
                    is_first,
                )
            )
            drains.append(
                await pair(lambda: own.drain(in_flight=IN_FLIGHT), lambda: self.floor.drain(tasks), is_first)  # noqa: B023  # awaited within the round
            )
            assert own.claimed == tasks
            await own.submit(tasks // 2, in_flight=IN_FLIGHT)
            ones.append(await own.drain(in_flight=1))
        self._tell_pairs("submit", submits, "floor")
        self._tell_pairs("claim and finish", drains, "floor")
        self._tell("claim and finish, one in flight", median(ones))

    async def _inherited(self, store: MysqlStore) -> None:
        pairs = []
        for _ in range(self.arguments.rounds):
            own, rates = await self._empty(store), []
            for used in (Inheriting(store), store):
                own.store = used
                await own.submit(self.arguments.tasks // 4, in_flight=IN_FLIGHT)
                rates.append(await own.drain(in_flight=IN_FLIGHT))
            pairs.append((rates[0], rates[1]))
        self._tell_pairs("the inherited turn", pairs, "own")

    async def _empty(self, store: MysqlStore, lanes: int = 1) -> Site:
        await _run(
            self._server, [f"truncate table {prefix}_{name}" for name in TABLES for prefix in ("floor", "converge")]
        )
        own = await site(store, lanes=lanes)
        own.is_from_heads = True
        return own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lanes", type=int, nargs="*", default=[])
    parser.add_argument("--inherited", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with mariadb_server() as url:
        results = uvloop.run(Bench(url, arguments).run())
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "asyncmy": version("asyncmy")}
        print(json.dumps({"v": 1, "command": sys.argv, **machine, "results": results}))


if __name__ == "__main__":
    main()
