"""A memory store that suffers outages: its handles are away, silent, mute or deaf together, when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

import anyio

from converge import MemoryStore
from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Range, Store, Take, Turned
from converge.errors import StoreUnavailable
from converge.model.keys import Key

T = TypeVar("T")


class Outages:
    """What all handles of one store suffer.

    Attributes:
        is_away: Calls are refused.
        is_silent: Calls are never answered.
        is_mute: Commits wake nobody.
        is_deaf: Watches are cut when they are told something.
    """

    def __init__(self) -> None:
        self.is_away = self.is_silent = self.is_mute = self.is_deaf = False


class OutageStore(MemoryStore):
    """A memory store whose calls fail or hang, and whose wake-ups are lost or refused, as its outages say."""

    def __init__(self, outages: Outages, inner: MemoryStore | None = None) -> None:
        if inner is None:
            super().__init__()
        else:
            super().__init__(core=inner._core, bell=inner._bell)
        self.outages = outages

    async def _suffer(self, call: Callable[[], Awaitable[T]]) -> T:
        if self.outages.is_silent:
            await anyio.sleep_forever()
        if self.outages.is_away:
            raise StoreUnavailable("the store is away")
        return await call()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return await self._suffer(lambda: MemoryStore.get(self, keys))

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        return await self._suffer(lambda: MemoryStore.scan(self, ranges))

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return await self._suffer(lambda: MemoryStore.commit(self, batches, wake=() if self.outages.is_mute else wake))

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        return await self._suffer(lambda: MemoryStore.turn(self, batches, take, wake=wake))

    async def time(self) -> int:
        return await self._suffer(lambda: MemoryStore.time(self))

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        async with aclosing(super().watch(channels)) as inner:  # type: ignore[type-var]  # every watch is an async generator
            async for one in inner:
                if self.outages.is_deaf:
                    raise StoreUnavailable("the subscription was cut")
                yield one

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        yield OutageStore(self.outages, self)
