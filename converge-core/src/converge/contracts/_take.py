"""The turn that every store inherits: commit, then scan, commit and get, in two to four trips."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Collection, Sequence
from typing import Protocol

from converge.model.batch import ABSENT, Batch, Check, Committed, Conflict, Entry, Put, Range, Take, Taken, Turned
from converge.model.keys import Key, Rest, pack

TAKE_TRIES = 12
"""How often an inherited take looks again after losing to another claimer; then it returns nothing, as a hint may."""

WINDOW_GREATEST = 8
"""Losers start at a random multiple of their limit within a window that doubles to this: enough for 16 claimers."""


class Steps(Protocol):
    """The calls of a store that an inherited turn is made of."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[str] = ()
    ) -> Sequence[Committed | Conflict]: ...

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]: ...

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]: ...

    async def time(self) -> int: ...


async def inherited_turn(store: Steps, batches: Sequence[Batch], take: Take | None, wake: Collection[str]) -> Turned:
    """Apply batches and take as `Store.turn` promises, with nothing but `scan`, `commit`, `get` and `time`."""
    outcomes = await store.commit(batches, wake=wake)
    return Turned(outcomes, None if take is None else await _take(store, take))


async def _take(store: Steps, take: Take) -> Taken | Conflict:
    window = 1
    seed = pack(take.to) + repr(take.tail).encode()
    for attempt in range(TAKE_TRIES):
        # The tail of a claim is random, so two claimers seldom skip alike.
        skip = take.limit * (zlib.crc32(seed, attempt) % window)
        found = await _smallest(store, take, skip)
        if not found:
            if window > 1:
                window = 1
                continue
            return await _nothing(store, take)
        chosen, heads = found[skip : skip + take.limit] or found[: take.limit], _heads(take, found, skip)
        now = await store.time()
        outcome, *_ = await store.commit([_move(take, chosen, now)])
        if not isinstance(outcome, Conflict):
            rests = [rest for rest, _, _ in chosen]
            return Taken(outcome.revision, rests, await _also(store, take, rests), heads, now)
        mine = {key for key, _ in take.checks}
        if any(key in mine for key in outcome.keys):
            return Conflict(tuple(key for key in outcome.keys if key in mine))
        window = min(window * 2, WINDOW_GREATEST)
    return Taken(0, (), (), [None] * len(take.ranges), await store.time())


_Found = tuple[Rest, Entry, int]


async def _smallest(store: Steps, take: Take, skip: int) -> list[_Found]:
    """Return the first rests over all ranges: those to skip, those to take, one more per range for the heads."""
    want = skip + take.limit + 1
    pages = await store.scan([Range(r.prefix, r.after, min(want, 1_000)) for r in take.ranges])
    lists = [
        [(entry.key[len(r.prefix) :], entry, i) for entry in page]
        for i, (r, page) in enumerate(zip(take.ranges, pages, strict=True))
    ]
    return list(heapq.merge(*lists, key=lambda found: (found[0], found[2])))


def _heads(take: Take, found: list[_Found], skip: int) -> list[Rest | None]:
    heads: list[Rest | None] = [None] * len(take.ranges)
    for at, (rest, _, index) in enumerate(found):
        if not skip <= at < skip + take.limit and heads[index] is None:
            heads[index] = rest
    return heads


def _move(take: Take, chosen: list[_Found], now: int) -> Batch:
    value = str(now).encode()
    to, tail = take.to, take.tail
    checks: list[Check] = [*take.checks, *((entry.key, entry.revision) for _, entry, _ in chosen)]
    puts: list[Put] = [(to + rest + tail, value) for rest, _, _ in chosen]
    checks += [(key, ABSENT) for key, _ in puts]
    return Batch(checks, puts, [entry.key for _, entry, _ in chosen])


async def _nothing(store: Steps, take: Take) -> Taken | Conflict:
    """Return an empty answer; the checks still decide it."""
    entries = await store.get([key for key, _ in take.checks])
    failed = [
        key
        for (key, revision), entry in zip(take.checks, entries, strict=True)
        if entry is None or entry.revision != revision
    ]
    if failed:
        return Conflict(tuple(failed))
    return Taken(0, (), (), [None] * len(take.ranges), await store.time())


async def _also(store: Steps, take: Take, rests: Sequence[Rest]) -> list[list[bytes | None]]:
    keys = [family(rest[-1]) for rest in rests for family in take.also]
    entries: list[Entry | None] = []
    for at in range(0, len(keys), 1_000):
        entries += await store.get(keys[at : at + 1_000])
    values = [None if entry is None else entry.value for entry in entries]
    width = len(take.also)
    return [values[at * width : (at + 1) * width] for at in range(len(rests))]
