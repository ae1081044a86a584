"""MemoryStore: a dictionary under one lock, with its families in order."""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any

import anyio
from anyio import lowlevel

from converge.builtin.memory.ordered import Ordered
from converge.contracts.store import (
    LIMITS,
    Batch,
    Channel,
    Committed,
    Conflict,
    Durability,
    Entry,
    Key,
    Prefix,
    Range,
    Rest,
    Store,
    Take,
    Taken,
    Turned,
)
from converge.errors import ValueTooLarge
from converge.model.keys import ALSO, INT, Family


def _depth(family: Family) -> int:
    """How many leading parts a family's keys are kept apart by: those before its first integer, else all but the last."""
    parts = list(family.parts.values())
    return parts.index(INT) if INT in parts else max(0, len(parts) - 1)


class _Waiter:
    """A watch: told from any thread, heard in its own event loop."""

    __slots__ = ("_call", "event", "is_told")

    def __init__(self) -> None:
        native: Any = lowlevel.current_token().native_token
        self._call = native.run_sync_soon if hasattr(native, "run_sync_soon") else native.call_soon_threadsafe
        self.event = anyio.Event()
        self.is_told = False

    def tell(self) -> None:
        self.is_told = True
        with suppress(RuntimeError):  # its loop has ended: it looks for nothing any more
            self._call(self._hear)

    def _hear(self) -> None:
        self.event.set()


class _Core:
    """The data of one store, and its lock; shared by its handles."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[Key, tuple[bytes, int]] = {}
        self.ordered: dict[Family, dict[Prefix, Ordered]] = {}
        self.depths: dict[Family, int] = {}
        self.revision = 0
        self.waiters: dict[Channel, deque[_Waiter]] = {}
        self._offset = time.time_ns() - time.monotonic_ns()

    def now(self) -> int:
        return (time.monotonic_ns() + self._offset) // 1_000

    def put(self, key: Key, value: bytes, revision: int) -> None:
        family = key[0]
        if family not in ALSO and key not in self.entries:
            index = self._index(family, key)
            index.add(key)
            index.alive += 1
        self.entries[key] = (value, revision)

    def delete(self, key: Key) -> None:
        if self.entries.pop(key, None) is not None and key[0] not in ALSO:
            self._index(key[0], key).alive -= 1

    def _index(self, family: Family, key: Key) -> Ordered:
        depth = self.depths.get(family)
        if depth is None:
            depth = self.depths[family] = _depth(family)
            self.ordered[family] = {}
        prefixes = self.ordered[family]
        prefix = key[1 : depth + 1]
        index = prefixes.get(prefix)
        if index is None:
            index = prefixes[prefix] = Ordered(self.entries)
        return index

    def walk(self, prefix: Prefix, after: Rest | None) -> Iterator[Key]:
        """Yield the live keys under the prefix, in order."""
        family = prefix[0]
        prefixes = self.ordered.get(family)
        if not prefixes:
            return
        depth = self.depths[family]
        bound = None if after is None else prefix + after
        if len(prefix) - 1 == depth:
            index = prefixes.get(prefix[1:])
            if index is not None:
                yield from index.walk(bound)
        elif len(prefix) - 1 > depth:
            index = prefixes.get(prefix[1 : depth + 1])
            if index is not None:
                length = len(prefix)
                for key in index.walk(bound, prefix=prefix):
                    if key[:length] != prefix:
                        return
                    yield key
        else:
            yield from self._walk_shallow(prefix, bound, prefixes)

    def _walk_shallow(self, prefix: Prefix, bound: Key | None, prefixes: dict[Prefix, Ordered]) -> Iterator[Key]:
        length = len(prefix) - 1
        for parts in sorted(parts for parts in prefixes if parts[:length] == prefix[1:]):
            index = prefixes[parts]
            if not index.alive:
                del prefixes[parts]
            elif bound is None or (prefix[0], *parts) >= bound[: len(parts) + 1]:
                yield from index.walk(bound)

    def apply(self, batches: Sequence[Batch]) -> list[Committed | Conflict]:
        self.revision += 1
        revision, entries = self.revision, self.entries
        outcomes: list[Committed | Conflict] = []
        for batch in batches:
            failed = [key for key, expected in batch.checks if (entries[key][1] if key in entries else 0) != expected]
            window = batch.window
            is_out = window is not None and not self._is_inside(window.at_least, window.at_most)
            if failed or is_out:
                outcomes.append(Conflict(tuple(failed), is_out))
                continue
            for key in batch.deletes:
                self.delete(key)
            for key, value in batch.puts:
                self.put(key, value, revision)
            outcomes.append(Committed(revision))
        return outcomes

    def _is_inside(self, at_least: int | None, at_most: int | None) -> bool:
        now = self.now()
        return (at_least is None or now >= at_least) and (at_most is None or now <= at_most)

    def take(self, take: Take) -> Taken | Conflict:
        entries = self.entries
        failed = tuple(key for key, expected in take.checks if (entries[key][1] if key in entries else 0) != expected)
        if failed:
            return Conflict(failed)
        chosen, heads = self._choose(take)
        now = self.now()
        if not chosen:
            return Taken(0, (), (), heads, now)
        self.revision += 1
        value, skip = str(now).encode(), len(take.ranges[0].prefix)
        rests = [key[skip:] for key in chosen]
        also = []
        for key, rest in zip(chosen, rests, strict=True):
            self.delete(key)
            self.put(take.to + rest + take.tail, value, self.revision)
            found = [entries.get((family, rest[-1])) for family in take.also]
            also.append([None if entry is None else entry[0] for entry in found])
        return Taken(self.revision, rests, also, heads, now)

    def _choose(self, take: Take) -> tuple[list[Key], list[Rest | None]]:
        walks = [self.walk(range_.prefix, range_.after) for range_ in take.ranges]
        if len(walks) == 1:
            chosen = list(islice(walks[0], take.limit))
            head = next(walks[0], None)
            return chosen, [None if head is None else head[len(take.ranges[0].prefix) :]]
        skip = len(take.ranges[0].prefix)
        heap = [(key[skip:], number, key) for number, walk in enumerate(walks) if (key := next(walk, None)) is not None]
        heapq.heapify(heap)
        chosen = []
        while heap and len(chosen) < take.limit:
            _, number, key = heap[0]
            chosen.append(key)
            following = next(walks[number], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following[skip:], number, following))
        heads: list[Rest | None] = [None] * len(walks)
        for rest, number, _ in heap:
            heads[number] = rest
        return chosen, heads

    def wake(self, channels: Collection[Channel]) -> None:
        for channel in channels:
            waiters = self.waiters.get(channel)
            for waiter in waiters or ():
                if not waiter.is_told:
                    waiter.tell()
                    break


class MemoryStore(Store):
    """A store that lives and dies with the process; its handles from `reopen` share it, in any thread."""

    def __init__(self, *, core: _Core | None = None) -> None:
        self._core = core or _Core()
        self.durability = Durability.D0

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str = "memory:", options: object = None) -> AsyncIterator[MemoryStore]:
        """Open a new, empty store."""
        yield cls()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        with self._core.lock:
            entries = self._core.entries
            return [Entry(key, *entries[key]) if key in entries else None for key in keys]

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        with self._core.lock:
            entries = self._core.entries
            return [[Entry(key, *entries[key]) for key in islice(self._core.walk(r.prefix, r.after), r.limit)] for r in ranges]

    async def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        _check_sizes(batches)
        with self._core.lock:
            outcomes = self._core.apply(batches)
            self._core.wake(wake)
            return outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        _check_sizes(batches)
        with self._core.lock:
            outcomes = self._core.apply(batches) if batches else []
            taken = None if take is None else self._core.take(take)
            self._core.wake(wake)
            return Turned(outcomes, taken)

    async def time(self) -> int:
        return self._core.now()

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        with self._core.lock:
            return [self._count(prefix) for prefix in prefixes]

    def _count(self, prefix: Prefix) -> int:
        indexes = self._core.ordered.get(prefix[0])
        if indexes is not None and len(prefix) - 1 == self._core.depths[prefix[0]]:
            index = indexes.get(prefix[1:])
            return 0 if index is None else index.alive
        return sum(1 for _ in self._core.walk(prefix, None))

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        waiter = _Waiter()
        with self._core.lock:
            for channel in channels:
                self._core.waiters.setdefault(channel, deque()).append(waiter)
        try:
            while True:
                yield None
                await waiter.event.wait()
                waiter.event = anyio.Event()
                waiter.is_told = False
        finally:
            with self._core.lock:
                for channel in channels:
                    waiters = self._core.waiters[channel]
                    waiters.remove(waiter)
                    if not waiters:
                        del self._core.waiters[channel]

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        yield MemoryStore(core=self._core)


def _check_sizes(batches: Sequence[Batch]) -> None:
    for batch in batches:
        for key, value in batch.puts:
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
