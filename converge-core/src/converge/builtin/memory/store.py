"""MemoryStore: one handle on a store in memory."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, NoReturn

import anyio
from anyio import lowlevel

from converge.builtin.memory.core import Core
from converge.contracts.store import (
    LIMITS,
    Batch,
    Channel,
    Committed,
    Conflict,
    Durability,
    Entry,
    Inspection,
    Key,
    Prefix,
    Range,
    Store,
    Take,
    Turned,
)
from converge.errors import ConfigError, StoreUnavailable, ValueTooLarge

_VALUE_BYTES = LIMITS.value_bytes


class _Waiter:
    """A watch: told from any thread, heard in its own event loop."""

    __slots__ = ("_call", "event", "is_told")

    def __init__(self) -> None:
        native: Any = lowlevel.current_token().native_token
        self._call = native.run_sync_soon if hasattr(native, "run_sync_soon") else native.call_soon_threadsafe
        self.event = anyio.Event()
        self.is_told = False

    def tell(self) -> bool:
        """Wake it; return False if its loop has ended."""
        self.is_told = (
            True  # before the call: the watch, in its own thread, may have heard, and looked, before the call returns
        )
        try:
            self._call(self._hear)
        except RuntimeError:
            self.is_told = False
            return False
        return True

    def _hear(self) -> None:
        self.event.set()


class _Bell:
    """Who watches which channel; under the core's lock."""

    def __init__(self) -> None:
        self._waiters: dict[Channel, list[_Waiter]] = {}

    def add(self, channels: Collection[Channel], waiter: _Waiter) -> None:
        for channel in channels:
            self._waiters.setdefault(channel, []).append(waiter)

    def remove(self, channels: Collection[Channel], waiter: _Waiter) -> None:
        for channel in channels:
            waiters = self._waiters[channel]
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[channel]
        if waiter.is_told:  # and left before it looked: another looks in its place
            self.ring(channels)

    def ring(self, channels: Collection[Channel]) -> None:
        """Wake one watcher of each channel that was not woken already: the one woken longest ago, so work spreads."""
        for channel in channels:
            waiters = self._waiters.get(channel, [])
            for at, waiter in enumerate(waiters):
                if not waiter.is_told and waiter.tell():
                    waiters.append(waiters.pop(at))
                    break


class _Closed:
    """Stands in for the data of a store that was closed: a write to it fails instead of being lost."""

    def __getattr__(self, name: str) -> NoReturn:
        raise StoreUnavailable("memory: the store was closed, and what it held is gone")


class MemoryStore(Store):
    """A store that lives and dies with the process; its handles from `reopen` share it, in any thread."""

    def __init__(self, *, core: Core | None = None, bell: _Bell | None = None) -> None:
        self._core = core or Core()
        self.is_clock_local = True
        self.is_immediate = type(self) is MemoryStore  # a class made of this one may wait
        self._bell = bell or _Bell()
        self.durability = Durability.D0

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str = "memory:", options: object = None) -> AsyncIterator[MemoryStore]:
        """Open a new, empty store.

        Raises:
            ConfigError: Something stands behind `memory:`, as if the store had a place.
        """
        if url not in ("memory:", "memory://"):
            raise ConfigError(
                f"store: {url} is not allowed: memory: takes nothing after its colon; for a store in a file write "
                f"file:PATH"
            )
        store = cls()
        try:
            yield store
        finally:
            store._core = _Closed()  # type: ignore[assignment]  # says so to whoever uses it still

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        with self._core.lock:
            entries = self._core.entries
            return [None if (entry := entries.get(key)) is None else Entry(key, *entry) for key in keys]

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        with self._core.lock:
            entries = self._core.entries
            return [
                [Entry(key, *entries[key]) for key in islice(self._core.walk(r.prefix, r.after), r.limit)]
                for r in ranges
            ]

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        _check_sizes(batches)
        with self._core.lock:
            outcomes = self._core.apply(batches)
            self._bell.ring(wake)
            return outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        _check_sizes(batches)
        with self._core.lock:
            outcomes = self._core.apply(batches) if batches else []
            taken = None if take is None else self._core.take(take)
            self._bell.ring(wake)
            return Turned(outcomes, taken)

    async def time(self) -> int:
        return self._core.now()

    async def advance(self, revision: int) -> None:
        with self._core.lock:
            self._core.revision = max(self._core.revision, revision)

    async def inspect(self) -> Inspection:
        return Inspection(durability=self.durability, product=f"memory of Python {platform.python_version()}")

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        with self._core.lock:
            return [self._core.count(prefix) for prefix in prefixes]

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        waiter, core = _Waiter(), self._core
        with core.lock:
            self._bell.add(channels, waiter)
        try:
            while True:
                yield None
                await waiter.event.wait()
                waiter.event = anyio.Event()
                # whoever finds it told has committed before this, and what it has written is seen by who looks now
                waiter.is_told = False
        finally:
            with core.lock:
                self._bell.remove(channels, waiter)

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        yield MemoryStore(core=self._core, bell=self._bell)


def _check_sizes(batches: Sequence[Batch]) -> None:
    for _, puts, _, _ in batches:
        for key, value in puts:
            if len(value) > _VALUE_BYTES:
                raise ValueTooLarge(f"the value of {key[0]}", len(value), _VALUE_BYTES)
