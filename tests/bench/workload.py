"""The workload of the claim benchmarks, on any store: submit, claim, finish, with the records and the checks that a
node sends.

Imported by the scripts beside it; they run as scripts, so a sibling is found by its name.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import anyio
import attrs

from converge.contracts.store import ABSENT, Batch, Check, Committed, Conflict, Range, Store, Take, Taken
from converge.model.keys import DEDUP, DONE, EPOCH, HELD, LANE, LATER, LEASE, ORDER, POOL, READY, STATE, TASK, Key, Rest

POOL_ID = "docs"
CALL = 500
"""Tasks of one call of submit."""

CLAIM = 100
"""Tasks of one take, and finishes of one turn."""

RANGES = 32
"""Ranges of one take: a claimer with more lanes names the best."""

UNTIL = 2_000_000_000_000_000

ELSEWHERE = (1, 2, 3, 4)
"""Lanes of what a claimer may not take: another capability, topic, type, or a paused pool makes another lane each."""

KEYS = 100
"""Ordering keys behind which tasks wait."""

# About what a node writes for a task with small inputs: 220 and 260 bytes of JSON.
SPEC = (
    b'{"v":1,"pool":"docs","lane":"5f0c8a6d5f0c8a6d5f0c8a6d5f0c8a6d","type":"","topic":"","capabilities":'
    b'["count-words"],"inputs":{"text":"the quick brown fox"},"priority":0,"due":1764000000000000,'
    b'"rank":1764000000000000,"max_attempts":3,"digest":"0123456789abcdef"}'
)
ENDED = (
    b'{"v":1,"state":"COMPLETED","attempts":1,"due":0,"rank":0,'
    b'"nonce":"00112233445566778899aabbccddeeff","digest":"0123456789abcdef",'
    b'"result":{"words":4},"finished":1764000000000000,'
    b'"history":[{"what":"completed","by":"cv1abcdefghijklmnop","token":123456,"at":1764000000000000}]}'
)


def lane_hash(number: int) -> bytes:
    """Return the name of a lane, as spread as a real one."""
    return hashlib.blake2b(b"%d" % number, digest_size=16).digest()


def uuids(count: int) -> list[bytes]:
    """Return ids as `submit` draws them: UUIDv7, growing."""
    start = time.time_ns() // 1_000_000
    return [
        uuid.UUID(
            int=((start + n // 100) << 80)
            | (7 << 76)
            | ((n % 4096) << 64)
            | (2 << 62)
            | int.from_bytes(os.urandom(7), "big")
        ).bytes
        for n in range(count)
    ]


@attrs.define
class Site:
    """A pool with its lanes, an epoch and one lease on a store, with the checks that every call carries."""

    store: Store
    lease: bytes
    epoch: Check
    pool: Check
    lease_check: Check
    lanes: list[tuple[bytes, Check]]
    heads: dict[bytes, Rest | None] = attrs.field(factory=dict)
    nonces: itertools.count[int] = attrs.field(
        factory=lambda: itertools.count(int.from_bytes(os.urandom(8), "big") << 32)
    )
    claimed: int = 0
    is_from_heads: bool = False
    """Whether takes begin at the heads seen last, and from the start of the lanes every eighth time only, as a node's
    do.
    """

    # Submit.

    def submit_batches(
        self, ids: Sequence[bytes], *, lanes: Sequence[int] = (0,), has_dedup: bool = False
    ) -> list[Batch]:
        """Return the batches that submit tasks, spread over the lanes of these numbers."""
        rank = time.time_ns() // 1_000
        batches = []
        for at, id_ in enumerate(ids):
            lane, lane_check = self.lanes[lanes[at % len(lanes)]]
            task = TASK(id_)
            checks: list[Check] = [(task, ABSENT), lane_check, self.epoch]
            puts: list[tuple[Key, bytes]] = [(task, SPEC), (READY(lane, rank + at, id_), b"")]
            if has_dedup:
                dedup = DEDUP(POOL_ID, id_.hex())
                checks.append((dedup, ABSENT))
                puts.append((dedup, b'["%b","0123456789abcdef"]' % id_.hex().encode()))
            batches.append(Batch(checks, puts))
        return batches

    async def submit(
        self, count: int, *, lanes: Sequence[int] = (0,), call: int = CALL, has_dedup: bool = False, in_flight: int = 1
    ) -> float:
        """Submit tasks in calls of `call`; return tasks a second."""
        ids = uuids(count)
        calls = iter([ids[at : at + call] for at in range(0, count, call)])

        async def work() -> None:
            for some in calls:
                outcomes = await self.store.commit(
                    self.submit_batches(some, lanes=lanes, has_dedup=has_dedup), wake=["lane.0"]
                )
                assert all(type(outcome) is Committed for outcome in outcomes), (
                    "a submit of the benchmark met a conflict"
                )

        return await rate(count, [work] * in_flight)

    async def submit_elsewhere(self, count: int, *, in_flight: int = 1) -> None:
        """Put tasks that the claimer may not take: four sixths in other lanes, one sixth that is not due yet, one that
        waits behind ordering keys.
        """
        part = count // 6
        await self.submit(count - 2 * part, lanes=ELSEWHERE, in_flight=in_flight)
        ids = uuids(2 * part)
        for at in range(0, part, CALL):
            later = [
                (LATER(UNTIL + n, id_), b'"5f0c8a6d5f0c8a6d5f0c8a6d5f0c8a6d"')
                for n, id_ in enumerate(ids[at : min(at + CALL, part)])
            ]
            await self._put_beside(later)
        for at in range(part, 2 * part, CALL):
            waiting = [
                (ORDER(POOL_ID, f"key {n % KEYS}", at + n), b'"%b"' % id_.hex().encode())
                for n, id_ in enumerate(ids[at : at + CALL])
            ]
            await self._put_beside(waiting)

    async def _put_beside(self, entries: Sequence[tuple[Key, bytes]]) -> None:
        """Put entries of tasks of their own."""
        ids = uuids(len(entries))
        checked = zip(ids, entries, strict=True)
        await self.store.commit(
            [Batch([(TASK(id_), ABSENT), self.epoch], [(TASK(id_), SPEC), entry]) for id_, entry in checked]
        )

    # Claim and finish.

    def take(self, lanes: Sequence[int] = (0,), limit: int = CLAIM) -> Take:
        """Return the take of a claim: the best 32 lanes by the heads seen last."""
        chosen = [self.lanes[number][0] for number in lanes]
        if len(chosen) > RANGES:
            known = [lane for lane in chosen if self.heads.get(lane, ()) is not None]
            chosen = sorted(known, key=lambda lane: self.heads.get(lane) or ())[:RANGES] or chosen[:RANGES]
        nonce = next(self.nonces).to_bytes(16, "big")
        checks = [self.lease_check, self.pool, self.epoch]
        afters = {
            lane: before(self.heads.get(lane)) if self.is_from_heads and nonce[-1] % 8 else None for lane in chosen
        }
        return Take(
            [Range(READY(lane), afters[lane]) for lane in chosen],
            limit,
            HELD(self.lease),
            (nonce,),
            checks,
            (TASK, STATE),
        )

    def finishes(self, take: Take, taken: Taken) -> list[Batch]:
        """Return the batches that complete what was taken."""
        (nonce,), token, epoch, to = take.tail, taken.revision, self.epoch, take.to
        batches = []
        for rest in taken.rests:
            held = (*to, *rest, nonce)
            id_ = rest[-1]
            batches.append(
                Batch(
                    ((held, token), epoch),
                    ((STATE(id_), ENDED), (DONE(POOL_ID, "COMPLETED", UNTIL, id_), b"")),
                    (held,),
                )
            )
        return batches

    async def drain(self, *, lanes: Sequence[int] = (0,), limit: int = CLAIM, in_flight: int = 2) -> float:
        """Claim and finish until nothing is left: each turn finishes what the one before it took; return tasks a
        second.
        """
        before = self.claimed

        async def work() -> None:
            finishes: list[Batch] = []
            while True:
                take = self.take(lanes, limit)
                turned = await self.store.turn(finishes, take)
                assert all(type(outcome) is Committed for outcome in turned.outcomes), (
                    "a finish of the benchmark met a conflict"
                )
                taken = turned.taken
                assert isinstance(taken, Taken), "a claim of the benchmark met a conflict"
                for range_, head in zip(take.ranges, taken.heads, strict=True):
                    self.heads[range_.prefix[1]] = head
                if not taken.rests and (
                    len(lanes) <= RANGES or all(self.heads.get(self.lanes[n][0], ()) is None for n in lanes)
                ):
                    return
                finishes = self.finishes(take, taken)
                self.claimed += len(finishes)

        began = time.perf_counter()
        await rate(0, [work] * in_flight)
        return (self.claimed - before) / (time.perf_counter() - began)

    async def claim_once(self, *, lanes: Sequence[int] = (0,), limit: int = CLAIM) -> float:
        """Claim once, then finish apart; return the seconds of the claim alone."""
        take = self.take(lanes, limit)
        began = time.perf_counter()
        turned = await self.store.turn((), take)
        took = time.perf_counter() - began
        assert isinstance(turned.taken, Taken) and turned.taken.rests, "there was nothing to claim"
        for range_, head in zip(take.ranges, turned.taken.heads, strict=True):
            self.heads[range_.prefix[1]] = head
        await self.store.commit(self.finishes(take, turned.taken))
        return took


async def site(store: Store, *, lanes: int = 1) -> Site:
    """Open a pool with lanes on a store, if they are not there, and a lease of one's own; heads are not known yet."""
    lease = os.urandom(16)
    names = [lane_hash(number) for number in range(lanes)]
    shared = [EPOCH(), POOL(POOL_ID), *(LANE(POOL_ID, name) for name in names)]
    await store.commit([Batch([(key, ABSENT)], [(key, b"{}")]) for key in shared])
    await store.commit([Batch(puts=[(LEASE(lease), b"{}")])])
    epoch, pool, lease_entry, *entries = await store.get([shared[0], shared[1], LEASE(lease), *shared[2:]])
    assert epoch and pool and lease_entry, "what was just put is there"
    checks = [(entry.key, entry.revision) for entry in entries if entry is not None]
    return Site(
        store,
        lease,
        (epoch.key, epoch.revision),
        (pool.key, pool.revision),
        (lease_entry.key, lease_entry.revision),
        list(zip(names, checks, strict=True)),
    )


async def rate(count: int, works: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> float:
    """Run coroutine functions together; return `count` over the seconds they took."""
    began = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for work in works:
            tasks.start_soon(work)
    return count / (time.perf_counter() - began)


def before(head: Rest | None) -> Rest | None:
    """Return the greatest rest below a head, for a range that begins with it."""
    return None if head is None else (head[0], (int.from_bytes(head[1], "big") - 1).to_bytes(16, "big"))


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


class Results:
    """What a benchmark has found, printed as it comes unless it is wanted as JSON."""

    def __init__(self, *, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self.results: dict[str, object] = {}

    def _tell_pairs(self, what: str, pairs: Sequence[tuple[float, float]], beside: str = "floor") -> None:
        other = {
            beside: median([second for _, second in pairs]),
            "ratio": median([first / second for first, second in pairs]),
        }
        self._tell(what, median([first for first, _ in pairs]), **other)

    def _tell(self, what: str, rate: float | None = None, **more: float) -> None:
        found = ({"per_sec": round(rate)} if rate is not None else {}) | {
            name: round(value, 3 if value < 100 else None) for name, value in more.items()
        }
        self.results[what] = found
        if not self._is_quiet:
            print(f"{what}: {', '.join(f'{name} {value:,}' for name, value in found.items())}", flush=True)


async def pair(
    own: Callable[[], Awaitable[float]], other: Callable[[], Awaitable[float]], is_first: bool
) -> tuple[float, float]:
    """Return both rates, one measured after the other."""
    if is_first:
        return await own(), await other()
    second = await other()
    return await own(), second


def shown(values: Mapping[str, float]) -> str:
    """Return a line of figures."""
    return ", ".join(
        f"{name} {value:,.{0 if value > 100 else 2 if value > 0.1 else 4}f}" for name, value in values.items()
    )


__all__ = ["CALL", "CLAIM", "Conflict", "Site", "lane_hash", "median", "rate", "shown", "site", "uuids"]
