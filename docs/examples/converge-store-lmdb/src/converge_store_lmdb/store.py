"""LmdbStore: each call is one transaction of LMDB, made in a worker thread, since a commit waits for the disk."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from heapq import merge
from itertools import islice
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import lmdb

from converge.contracts.store import (
    LIMITS,
    Batch,
    Channel,
    Check,
    Committed,
    Conflict,
    Durability,
    Entry,
    Inspection,
    Key,
    Prefix,
    Range,
    Rest,
    Store,
    Take,
    Taken,
    Turned,
    Window,
    warning,
)
from converge.errors import ConfigError, NoSuchStore, ValueTooLarge
from converge.model.keys import FAMILIES, pack, unpack
from converge_store_lmdb.options import LmdbOptions
from converge_store_lmdb.place import PLACES, U64, Place

T = TypeVar("T")
# The family is one byte of a key: its number among all families. New ones come last, so numbers stay.
NUMBERS = {family: bytes([number]) for number, family in enumerate(FAMILIES.values())}


class LmdbStore(Store):
    """One handle on an LMDB file."""

    def __init__(self, url: str, place: Place, options: LmdbOptions) -> None:
        self.url, self.place, self.options = url, place, options
        self.is_clock_local = True
        self.durability = Durability.D2 if options.sync else Durability.D1
        self.start = b"\1" + hashlib.blake2b(options.network.encode(), digest_size=8).digest()
        self.thread = anyio.CapacityLimiter(1)

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: LmdbOptions) -> AsyncIterator[Store]:
        """Open the folder that stands behind `lmdb:`.

        Raises:
            ConfigError: There is no path.
            NoSuchStore: Nothing was ever stored there for this network, and `must_exist` asks for it.
            StoreUnavailable: LMDB cannot open it.
        """
        path = url.partition(":")[2].removeprefix("//")
        if not path:
            raise ConfigError("store: lmdb: needs the path of a folder, as in lmdb:/var/lib/agents/state")
        shared = PLACES.opened(path, options)
        place = await anyio.to_thread.run_sync(shared.__enter__)
        try:
            store = cls(url, place, options)
            if options.must_exist and not await store._run(lambda: place.read(store._has_keys)):
                raise NoSuchStore(f'network "{options.network}" has stored nothing at {url}; check both')
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(shared.__exit__, None, None, None)

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        """Return another handle, which shares the file that this process has open (S-17)."""
        return self.open(self.url, self.options)

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """Read in one snapshot (S-1)."""
        return await self._run(lambda: self.place.read(lambda txn: [self._entry(txn, key) for key in keys]))

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        """Walk along each range (S-2)."""
        return await self._run(
            lambda: self.place.read(lambda txn: [list(islice(self._walk(txn, r), r.limit)) for r in ranges])
        )

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Count without decoding what is counted (S-18)."""
        return await self._run(
            lambda: self.place.read(lambda txn: [sum(1 for _ in self._pairs(txn, Range(p))) for p in prefixes])
        )

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        """Apply all batches in one transaction (S-3 to S-7)."""
        return (await self.turn(batches, None, wake=wake)).outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        """Apply the batches and the take in one transaction (S-10 to S-13). Nobody is woken: watchers poll."""
        refuse_long_values(batches)

        def work(txn: Any) -> Turned:
            outcomes = [self._apply(txn, batch) for batch in batches]
            return Turned(outcomes, None if take is None else self._take(txn, take))

        return await self._run(lambda: self.place.write(work))

    async def time(self) -> int:
        """Read the clock that all processes share (S-8)."""
        return self.place.now()

    async def inspect(self) -> Inspection:
        """Say what the file is, and whether a power cut can lose what was acknowledged (S-24)."""
        lost = warning("durability", "sync is false: a power cut loses the last commits", "set sync to true")
        product = f"LMDB {'.'.join(map(str, lmdb.version()))}"
        return Inspection(durability=self.durability, product=product, findings=() if self.options.sync else (lost,))

    async def _run(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self.thread)

    # What follows runs in a worker thread, within one transaction.

    def _packed(self, key: Key) -> bytes:
        return self.start + NUMBERS[key[0]] + pack(key)

    def _has_keys(self, txn: Any) -> bool:
        cursor = txn.cursor()
        return bool(cursor.set_range(self.start)) and cursor.key().startswith(self.start)

    def _entry(self, txn: Any, key: Key) -> Entry | None:
        found = txn.get(self._packed(key))
        return None if found is None else Entry(key, found[8:], U64.unpack_from(found)[0])

    def _pairs(self, txn: Any, wanted: Range) -> Iterator[tuple[bytes, bytes]]:
        prefix = self._packed(wanted.prefix)
        start = prefix if wanted.after is None else self._packed(wanted.prefix + wanted.after)
        cursor = txn.cursor()
        if not cursor.set_range(start) or (wanted.after is not None and cursor.key() == start and not cursor.next()):
            return
        for packed, found in cursor:
            if not packed.startswith(prefix):
                return
            yield packed, found

    def _walk(self, txn: Any, wanted: Range) -> Iterator[Entry]:
        family, at = wanted.prefix[0], len(self.start) + 1
        for packed, found in self._pairs(txn, wanted):
            yield Entry((family, *unpack(family, packed[at:])), found[8:], U64.unpack_from(found)[0])

    def _failed(self, txn: Any, checks: Sequence[Check]) -> tuple[Key, ...]:
        def revision(key: Key) -> int:
            found = txn.get(self._packed(key))
            return 0 if found is None else U64.unpack_from(found)[0]  # 0 is ABSENT

        return tuple(key for key, wanted in checks if revision(key) != wanted)

    def _apply(self, txn: Any, batch: Batch) -> Committed | Conflict:
        failed, is_outside = self._failed(txn, batch.checks), not is_inside(batch.window, self.place.now())
        if failed or is_outside:
            return Conflict(failed, is_outside)
        revision = self.place.next_revision(txn)
        for key, value in batch.puts:
            txn.put(self._packed(key), U64.pack(revision) + value)
        for key in batch.deletes:
            txn.delete(self._packed(key))
        return Committed(revision)

    def _take(self, txn: Any, take: Take) -> Taken | Conflict:
        failed = self._failed(txn, take.checks)
        if failed:
            return Conflict(failed)
        size, now = len(take.ranges[0].prefix), self.place.now()
        # One more of each range than is taken: what is left of them are the heads.
        lists = [
            [(entry.key[size:], number) for entry in islice(self._walk(txn, wanted), take.limit + 1)]
            for number, wanted in enumerate(take.ranges)
        ]
        found = list(merge(*lists))
        heads: list[Rest | None] = [None] * len(take.ranges)
        for rest, number in reversed(found[take.limit :]):
            heads[number] = rest
        chosen = found[: take.limit]
        if not chosen:
            return Taken(0, (), (), heads, now)
        revision = self.place.next_revision(txn)
        for rest, number in chosen:
            txn.delete(self._packed(take.ranges[number].prefix + rest))
            txn.put(self._packed(take.to + rest + take.tail), U64.pack(revision) + b"%d" % now)
        also = [[self._value(txn, family(rest[-1])) for family in take.also] for rest, _ in chosen]
        return Taken(revision, [rest for rest, _ in chosen], also, heads, now)

    def _value(self, txn: Any, key: Key) -> bytes | None:
        entry = self._entry(txn, key)
        return None if entry is None else entry.value


def is_inside(window: Window | None, now: int) -> bool:
    """Return whether a moment is within a window (S-7)."""
    if window is None:
        return True
    return (window.at_least is None or window.at_least <= now) and (window.at_most is None or now <= window.at_most)


def refuse_long_values(batches: Sequence[Batch]) -> None:
    """Refuse a call before anything of it is written (S-15)."""
    for batch in batches:
        for key, value in batch.puts:
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
