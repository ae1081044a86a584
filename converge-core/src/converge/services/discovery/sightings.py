"""Sightings through the store, the default discovery: descriptors are keys under their process's lease."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

import anyio

from converge.contracts.discovery import Discovery, Reader, Sighting
from converge.contracts.store import ABSENT, Batch, Conflict, Key
from converge.errors import InvalidValue, LeaseEnded, StoreBusy
from converge.model.keys import AGENT
from converge.services.discovery.reader import (
    CHANNEL,
    RECENT,
    StoreReader,
    marker_key,
    marker_value,
    read_marker,
    ticks,
    write_sighting,
)
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import Lease
from converge.services.store.pages import parts
from converge.services.store.patience import PATIENCE_SEC, attempts

PUBLISHED_TOGETHER = 200
"""Sightings of one batch: each is at most some kilobytes, and none of them is written without the marker."""


class StoreSightings(Discovery):
    """Publishes under this process's lease; reads those of all leases that live."""

    def __init__(self, handle: StoreHandle, poll_sec: float = 1.0) -> None:
        self._handle, self._poll_sec = handle, poll_sec
        self._reader, self._reading = StoreReader(handle, poll_sec), anyio.Lock()
        self._marker: tuple[bytes, int, int, list[str]] | None = (
            None  # lease, revision, number of changes, the last ones
        )

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        values = {one.id: write_sighting(one) for one in sightings}
        if "" in values:
            raise InvalidValue("sighting.id", "", "an agent's id, or an endpoint")
        lease, ids = await self._handle.lease(), list(values)
        for some in parts(ids, PUBLISHED_TOGETHER):
            await self._change(
                lease,
                some,
                lambda keys, some=some: Batch((), list(zip(keys, map(values.__getitem__, some), strict=True))),  # type: ignore[misc]
            )

    async def withdraw(self, ids: Sequence[str]) -> None:
        lease = self._handle.lease_opened
        if lease is None:
            return  # nothing was published
        unique = [id_ for id_ in dict.fromkeys(ids) if id_]
        try:
            for some in parts(unique, PUBLISHED_TOGETHER):
                await self._change(lease, some, lambda keys: Batch((), (), keys))
        except LeaseEnded:
            pass  # what stands under it is listed no longer, and is swept

    async def snapshot(self) -> list[Sighting]:
        async with self._reading:
            await self._reader.look()
            return self._reader.sightings()

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        reader, is_first = StoreReader(self._handle, self._poll_sec), True
        async with aclosing(ticks(self._handle, self._poll_sec)) as hints:  # type: ignore[type-var]  # an async generator
            async for _ in hints:
                came, gone = await reader.look()
                if came or gone or is_first:
                    is_first = False
                    yield reader.sightings()

    def reader(self) -> Reader:
        return StoreReader(self._handle, self._poll_sec)

    async def _change(self, lease: Lease, ids: Sequence[str], change: Callable[[Sequence[Key]], Batch]) -> None:
        """Write to the agents of the lease, and to its marker in the same batch.

        Raises:
            LeaseEnded: It has; nothing was written.
        """
        commits, key = await self._handle.commits(), marker_key(lease.id)
        batch = change([AGENT(lease.id, id_) for id_ in ids])
        async for _ in attempts(self._handle.env):
            if self._marker is None or self._marker[0] != lease.id:
                self._marker = await self._read_marker(lease.id)
            _, revision, count, recent = self._marker
            count, recent = count + len(ids), [*recent, *ids][-RECENT:]
            puts = [*batch.puts, (key, marker_value(count, recent))]
            (outcome,) = await commits.commit(
                [Batch([lease.check(), (key, revision)], puts, batch.deletes)], wake=[CHANNEL]
            )
            if not isinstance(outcome, Conflict):
                self._marker = lease.id, outcome.revision, count, recent
                return
            self._marker = None
            # Else it was touched meanwhile, or another call of this process has changed the marker.
            await lease.check_not_ended(outcome)
        raise StoreBusy(f"other calls of this process were first for {PATIENCE_SEC:g} s; try again")

    async def _read_marker(self, lease: bytes) -> tuple[bytes, int, int, list[str]]:
        (entry,) = await self._handle.store.get([marker_key(lease)])
        if entry is None:
            return lease, ABSENT, 0, []
        count, recent = read_marker(lease, entry.value)
        return lease, entry.revision, count, recent
