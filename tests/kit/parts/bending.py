"""A discovery of which one thing is bent on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import attrs

from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.contracts.discovery import Discovery, DiscoveryBackend, Sighting
from converge.contracts.store import Store


class Bent(Discovery):
    """A discovery that does what another does; a subclass bends one thing."""

    def __init__(self, straight: Discovery, store: Store) -> None:
        self.straight, self.store = straight, store

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await self.straight.publish(sightings)

    async def withdraw(self, ids: Sequence[str]) -> None:
        await self.straight.withdraw(ids)

    async def snapshot(self) -> list[Sighting]:
        return await self.straight.snapshot()

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        async with aclosing(self.straight.watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
            async for found in watch:
                yield found


def bent(bend: type[Bent], backend: DiscoveryBackend = STORE_DISCOVERY, **more: Any) -> DiscoveryBackend:
    @asynccontextmanager
    async def open_bent(options: Any, *, store: Store, poll_sec: float) -> AsyncIterator[Discovery]:
        async with backend.open(options, store=store, poll_sec=poll_sec) as straight:
            yield bend(straight, store)

    return attrs.evolve(backend, open=open_bent, **more)
