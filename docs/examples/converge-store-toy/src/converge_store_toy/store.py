"""ToyStore: a dictionary under a lock. It has the four methods that a store must have, and `reopen`, since it lives in
its process: `toy:NAME` is a place there, `toy:` alone a store of its own at each opening.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

import anyio.lowlevel

from converge.contracts.store import LIMITS, Batch, Channel, Committed, Conflict, Entry, Key, Range, Store, Window
from converge.errors import NoSuchStore, StoreFull, ValueTooLarge
from converge_store_toy.options import ToyOptions


class Shelf:
    """What all handles of one store share."""

    def __init__(self, options: ToyOptions) -> None:
        self.options = options
        # Handles live in different threads (S-17). The lock is never held across an `await`.
        self.lock = threading.Lock()
        self.entries: dict[Key, Entry] = {}
        self.revision = 0
        # The wall clock is read once: whoever sets it later does not move store time (S-8).
        self.epoch_us = time.time_ns() // 1_000 - time.monotonic_ns() // 1_000

    def now(self) -> int:
        """Store time, in microseconds."""
        return self.epoch_us + time.monotonic_ns() // 1_000


class Places:
    """The stores of this process that have a name: one registry, so that whoever opens a name again meets the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shelves: dict[tuple[str, str], Shelf] = {}

    def shelf(self, name: str, options: ToyOptions) -> Shelf:
        """Find the shelf of a place and a network, or make it; who only looks makes none (S-20, S-21)."""
        with self._lock:
            if options.must_exist and (name, options.network) not in self._shelves:
                raise NoSuchStore(f"nothing was ever stored at toy:{name} in this process; check the name")
            return self._shelves.setdefault((name, options.network), Shelf(options)) if name else Shelf(options)


PLACES = Places()


class ToyStore(Store):
    """One handle on a store in the memory of this process."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        """Open the place that stands behind `toy:`; without a name, a new and empty store."""
        yield cls(PLACES.shelf(url.partition(":")[2], options))

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        """Give another handle on the same entries."""
        yield type(self)(self.shelf)

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """Look each key up (S-1)."""
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            return [self.shelf.entries.get(key) for key in keys]

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        """Sort everything, for each range: a toy (S-2)."""
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            return [self._page(wanted) for wanted in ranges]

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        """Decide and apply each batch under one hold of the lock (S-3 to S-7). Nobody is woken: watchers of the
        inherited `watch` poll.
        """
        refuse_long_values(batches)
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            self._refuse_if_full(batches)
            return [self._apply(batch) for batch in batches]

    async def time(self) -> int:
        """Answer the shelf's clock (S-8)."""
        await anyio.lowlevel.checkpoint()
        return self.shelf.now()

    # What follows runs under the lock.

    def _page(self, wanted: Range) -> list[Entry]:
        size = len(wanted.prefix)
        keys = sorted(key for key in self.shelf.entries if key[:size] == wanted.prefix)
        later = [key for key in keys if wanted.after is None or key[size:] > wanted.after]
        return [self.shelf.entries[key] for key in later[: wanted.limit]]

    def _apply(self, batch: Batch) -> Committed | Conflict:
        failed = tuple(key for key, revision in batch.checks if self._revision(key) != revision)
        is_outside = not self._is_inside(batch.window)
        if failed or is_outside:
            return Conflict(failed, is_outside)
        revision = self._next_revision(batch)
        for key, value in batch.puts:
            self.shelf.entries[key] = Entry(key, value, revision)
        for key in batch.deletes:
            self.shelf.entries.pop(key, None)
        return Committed(revision)

    def _revision(self, key: Key) -> int:
        entry = self.shelf.entries.get(key)
        return 0 if entry is None else entry.revision  # 0 is ABSENT

    def _is_inside(self, window: Window | None) -> bool:
        if window is None:
            return True
        now = self.shelf.now()
        return (window.at_least is None or window.at_least <= now) and (window.at_most is None or now <= window.at_most)

    def _next_revision(self, batch: Batch) -> int:
        # One sequence for all keys, and it never starts again (S-6).
        self.shelf.revision += 1
        return self.shelf.revision

    def _refuse_if_full(self, batches: Sequence[Batch]) -> None:
        if len(self.shelf.entries) + sum(len(batch.puts) for batch in batches) > self.shelf.options.capacity_keys:
            raise StoreFull(
                f"a toy store of {self.shelf.options.capacity_keys} keys has no room for this commit; raise "
                f"capacity_keys"
            )


def refuse_long_values(batches: Sequence[Batch]) -> None:
    """Refuse a call before anything of it is written (S-15)."""
    for batch in batches:
        for key, value in batch.puts:
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
