"""What claims and submits cost on Redis, against a floor that moves the same records on the same structures without the
contract.

    python tests/bench/bench_claims_redis.py --lanes 1 10 300 --processes 2 --inherited --flatness

It starts a private Redis with an append-only file synced every second. The floor is one Lua script a call on copies of
the same hash and sorted sets, two calls in flight, over bare connections of the same driver: no checks, no revisions,
no ranges, no conflicts. Floor and store take turns within each round, and the median of the rounds' ratios is what
counts. `--flatness` compares what a claim takes beside `--many` tasks that may not be taken, and with so many pending,
with the time beside 1,000.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import platform
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from urllib.parse import urlsplit

import redis
import uvloop
from redis.asyncio.connection import Connection
from workload import CALL, CLAIM, ENDED, SPEC, Results, Site, median, site, uuids

from converge.contracts.store import Store
from converge.testing.servers import redis_server
from converge_store_redis import RedisOptions, RedisStore

IN_FLIGHT = 2
FEW = 1_000
CLAIMS = 200
"""Claims that are timed beside few and beside many."""

FLOOR_KEYS = ("{floor}v", "{floor}ready", "{floor}held", "{floor}done")

# KEYS: values, ready. ARGV: n, n rests, n specifications.
FLOOR_SUBMIT = b"""
local n, put, members = tonumber(ARGV[1]), {}, {}
for i = 1, n do
  local rest = ARGV[i + 1]
  put[4 * i - 3], put[4 * i - 2] = 't' .. string.sub(rest, 9), ARGV[n + i + 1]
  put[4 * i - 1], put[4 * i] = 'r' .. rest, ''
  members[2 * i - 1], members[2 * i] = 0, rest
end
redis.call('HSET', KEYS[1], unpack(put))
redis.call('ZADD', KEYS[2], unpack(members))
return n
"""

# KEYS: values, ready, held, done. ARGV: limit, time, prefix of held, nonce to put, nonce of what ends, n, n rests, n
# results.
FLOOR_TURN = b"""
local limit, now, prefix, nonce, old, n = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
if n > 0 then
  local gone, put, members = {}, {}, {}
  for i = 1, n do
    local rest = ARGV[i + 6]
    local id = string.sub(rest, 9)
    gone[i] = prefix .. rest .. old
    put[4 * i - 3], put[4 * i - 2] = 's' .. id, ARGV[i + 6 + n]
    put[4 * i - 1], put[4 * i] = 'd' .. id, ''
    members[2 * i - 1], members[2 * i] = 0, id
  end
  redis.call('ZREM', KEYS[3], unpack(gone))
  redis.call('HDEL', KEYS[1], unpack(gone))
  redis.call('HSET', KEYS[1], unpack(put))
  redis.call('ZADD', KEYS[4], unpack(members))
end
local rests = redis.call('ZRANGE', KEYS[2], 0, limit - 1)
if #rests == 0 then return {rests, rests} end
local gone, put, members, also = {}, {}, {}, {}
for i, rest in ipairs(rests) do
  local id, held = string.sub(rest, 9), prefix .. rest .. nonce
  gone[i] = 'r' .. rest
  put[2 * i - 1], put[2 * i] = held, now
  members[2 * i - 1], members[2 * i] = 0, held
  also[2 * i - 1], also[2 * i] = 't' .. id, 's' .. id
end
redis.call('ZREM', KEYS[2], unpack(rests))
redis.call('HDEL', KEYS[1], unpack(gone))
redis.call('HSET', KEYS[1], unpack(put))
redis.call('ZADD', KEYS[3], unpack(members))
return {rests, redis.call('HMGET', KEYS[1], unpack(also))}
"""


class Floor:
    """The floor's calls on one connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.connection = Connection(host=parts.hostname or "", port=parts.port or 0, protocol=2, socket_timeout=60)
        self.lease = b"h" + uuids(1)[0]

    async def call(self, *command: Any) -> Any:
        await self.connection.send_command(*command)
        return await self.connection.read_response()

    async def submit(self, ids: Sequence[bytes], rank: int) -> None:
        sha = hashlib.sha1(FLOOR_SUBMIT, usedforsecurity=False).hexdigest()
        rests = [(rank + at).to_bytes(8, "big") + id_ for at, id_ in enumerate(ids)]
        await self.call("EVALSHA", sha, 2, *FLOOR_KEYS[:2], len(ids), *rests, *[SPEC] * len(ids))

    async def drain(self) -> int:
        sha = hashlib.sha1(FLOOR_TURN, usedforsecurity=False).hexdigest()
        rests: list[bytes] = []
        finished, old = 0, b""
        while True:
            nonce = uuids(1)[0]
            head = (CLAIM, b"%d" % (time.time_ns() // 1_000), self.lease, nonce, old, len(rests))
            finished += len(rests)
            rests, _ = await self.call("EVALSHA", sha, 4, *FLOOR_KEYS, *head, *rests, *[ENDED] * len(rests))
            old = nonce
            if not rests:
                return finished


async def with_floors(url: str, work: Callable[[Floor], Awaitable[int]]) -> float:
    """Do the work on two connections; return what they did a second."""
    floors = [Floor(url) for _ in range(IN_FLIGHT)]
    for floor in floors:
        for script in (FLOOR_SUBMIT, FLOOR_TURN):
            await floor.call("SCRIPT", "LOAD", script)
    began = time.perf_counter()
    done = sum(await asyncio.gather(*(work(floor) for floor in floors)))
    took = time.perf_counter() - began
    for floor in floors:
        await floor.connection.disconnect()
    return done / took


async def floor_submit(url: str, tasks: int) -> float:
    """Submit on two connections; return tasks a second."""
    ids = uuids(tasks)
    starts = iter(range(0, tasks, CALL))

    async def work(floor: Floor) -> int:
        done = 0
        for start in starts:
            some = ids[start : start + CALL]
            await floor.submit(some, start)
            done += len(some)
        return done

    return await with_floors(url, work)


async def floor_drain(url: str) -> float:
    """Drain on two connections; return tasks a second."""
    return await with_floors(url, Floor.drain)


class Inheriting(RedisStore):
    """The same store with the turn that every store inherits."""

    def __init__(self, store: RedisStore) -> None:
        self.__dict__.update(store.__dict__)

    async def commit(self, batches: Any, *, wake: Any = ()) -> Any:
        return (await RedisStore.turn(self, batches, None, wake=wake)).outcomes

    turn = Store.turn


class Bench(Results):
    """One server; every round begins on an empty one."""

    def __init__(self, url: str, arguments: argparse.Namespace) -> None:
        self.url, self.arguments = url, arguments
        super().__init__(is_quiet=arguments.json)

    async def run(self) -> dict[str, object]:
        async with RedisStore.open(self.url) as store:
            if self.arguments.rounds:
                await self._pairs(store)
            if self.arguments.inherited:
                await self._inherited(store)
            for lanes in self.arguments.lanes:
                await self._lanes(store, lanes)
            if self.arguments.processes > 1:
                await self._processes(store)
        if self.arguments.flatness:
            await self._flatness()
        return self.results

    async def _pairs(self, store: RedisStore) -> None:
        submits, dedups, drains, ones = [], [], [], []
        tasks = self.arguments.tasks
        for number in range(self.arguments.rounds):
            own = await self._empty(store)
            for floor_first in (number % 2, 1 - number % 2):
                if floor_first:
                    floor_submits, floor_drains = await floor_submit(self.url, tasks), await floor_drain(self.url)
                else:
                    own_submits, own_drains = (
                        await own.submit(tasks, in_flight=IN_FLIGHT),
                        await own.drain(in_flight=IN_FLIGHT),
                    )
            assert own.claimed == tasks
            submits.append((own_submits, floor_submits))
            drains.append((own_drains, floor_drains))
            dedups.append(await own.submit(tasks // 2, has_dedup=True, in_flight=IN_FLIGHT))
            ones.append(await own.drain(in_flight=1))
        self._tell_pairs("submit", submits)
        self._tell("submit with dedup keys", median(dedups))
        self._tell_pairs("claim and finish", drains)
        self._tell("claim and finish, one in flight", median(ones))

    async def _inherited(self, store: RedisStore) -> None:
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

    async def _lanes(self, store: RedisStore, lanes: int) -> None:
        rates = []
        for _ in range(self.arguments.rounds):
            own = await self._empty(store, lanes)
            await own.submit(self.arguments.tasks, lanes=range(lanes), in_flight=IN_FLIGHT)
            rates.append(await own.drain(lanes=range(0, lanes, 2), in_flight=IN_FLIGHT))
        self._tell(f"{lanes} lanes, half eligible", median(rates))

    async def _processes(self, store: RedisStore) -> None:
        pairs = []
        for _ in range(self.arguments.rounds):
            own = await self._empty(store)
            await floor_submit(self.url, self.arguments.tasks)
            await own.submit(self.arguments.tasks, in_flight=IN_FLIGHT)
            floor = await self._in_processes(_floor_process)
            pairs.append((await self._in_processes(_drain_process), floor))
        self._tell_pairs(f"{self.arguments.processes} processes", pairs)

    async def _in_processes(self, work: Callable[[str, float], tuple[float, float]]) -> float:
        count, loop = self.arguments.processes, asyncio.get_running_loop()
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            await asyncio.gather(
                *(loop.run_in_executor(pool, time.sleep, 0.5) for _ in range(count))
            )  # all have imported everything
            at = time.time() + 1.0
            answers = await asyncio.gather(*(loop.run_in_executor(pool, work, self.url, at) for _ in range(count)))
        return float(self.arguments.tasks / (max(end for _, end in answers) - at))

    async def _flatness(self) -> None:
        """A claim's time beside few and beside many tasks, alternately: such as may not be taken, then such as wait."""
        many = self.arguments.many
        for what, lanes in (("that may not be taken", 5), ("pending", 1)):
            await self._flush()
            async with (
                RedisStore.open(self.url, RedisOptions(network="few")) as few,
                RedisStore.open(self.url, RedisOptions(network="many")) as other,
            ):
                sites = [await site(few, lanes=lanes), await site(other, lanes=lanes)]
                for each, count in zip(sites, (FEW, many), strict=True):
                    fill = each.submit_elsewhere if lanes > 1 else each.submit
                    await fill(count, in_flight=IN_FLIGHT)
                    await each.submit(CLAIM)
                times: list[list[float]] = [[], []]
                for step in range(CLAIMS):
                    for number in (0, 1) if step % 2 else (1, 0):
                        times[number].append(await sites[number].claim_once())
                        await sites[number].submit(CLAIM)  # as many wait again
            few_ms, many_ms = (median(some) * 1e3 for some in times)
            ratio = median([second / first for first, second in zip(*times, strict=True)])
            self._tell(f"a claim beside {many:,} {what}, against {FEW:,}", few_ms=few_ms, many_ms=many_ms, ratio=ratio)

    async def _flush(self) -> None:
        floor = Floor(self.url)
        await floor.call("FLUSHALL", "SYNC")
        await floor.connection.disconnect()

    async def _empty(self, store: RedisStore, lanes: int = 1) -> Site:
        await self._flush()
        return await site(store, lanes=lanes)


def _drain_process(url: str, at: float) -> tuple[float, float]:
    async def drain() -> tuple[float, float]:
        async with RedisStore.open(url) as store:
            own = await site(store)
            await asyncio.sleep(at - time.time())
            await own.drain(in_flight=IN_FLIGHT)
            return own.claimed, time.time()

    return uvloop.run(drain())


def _floor_process(url: str, at: float) -> tuple[float, float]:
    async def drain() -> tuple[float, float]:
        await asyncio.sleep(at - time.time())
        return await floor_drain(url), time.time()

    return uvloop.run(drain())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5, help="0: only what the flags ask for")
    parser.add_argument("--lanes", type=int, nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--inherited", action="store_true")
    parser.add_argument("--flatness", action="store_true")
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with redis_server() as url:
        results = uvloop.run(Bench(url, arguments).run())
    if arguments.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "redis-py": redis.__version__}
        print(json.dumps({"v": 1, "command": sys.argv, **machine, "results": results}))


if __name__ == "__main__":
    main()
