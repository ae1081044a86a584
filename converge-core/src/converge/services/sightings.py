"""Sightings through the store: the default discovery. A descriptor is a key under its process's lease, and is listed while that lease lives."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import anyio

from converge.codec import decode, encode
from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import LIMITS, Batch, Conflict, Range, Rest
from converge.model.keys import AGENT, EXPIRY, Family
from converge.services.opened import Opened

CHANNEL = "agents"
"""What a publish and a withdraw wake."""


class StoreSightings(Discovery):
    """Publishes under this process's lease; reads those of all leases that live."""

    def __init__(self, opened: Opened, poll_sec: float = 1.0) -> None:
        self._opened, self._poll_sec = opened, poll_sec
        self._seen: dict[tuple[bytes, str], tuple[int, Sighting]] = {}

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        lease = await self._opened.lease()
        batches = []
        for sighting in sightings:
            value = encode([list(sighting.endpoints), base64.b64encode(sighting.descriptor).decode()])
            batches.append(Batch([lease.check()], [(AGENT(lease.id, sighting.id), value)]))
        for outcome in await (await self._opened.commits()).commit(batches, wake=[CHANNEL]):
            if isinstance(outcome, Conflict):
                lease.check_not_ended(outcome)

    async def withdraw(self, ids: Sequence[str]) -> None:
        lease = self._opened.lease_opened
        if lease is not None and ids:
            await (await self._opened.commits()).commit([Batch((), (), [AGENT(lease.id, id_) for id_ in ids])], wake=[CHANNEL])

    async def snapshot(self) -> list[Sighting]:
        now = await self._opened.store.time()
        live = {key[1] for key, value, _ in await self._all(EXPIRY) if int(value) >= now}
        seen: dict[tuple[bytes, str], tuple[int, Sighting]] = {}
        for key, value, revision in await self._all(AGENT):
            if key[1] in live:
                known = self._seen.get(key[1:])
                seen[key[1:]] = known if known is not None and known[0] == revision else (revision, _sighting(key[2], value))
        self._seen = seen
        return [sighting for _, sighting in seen.values()]

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        event = anyio.Event()

        async def listen() -> None:
            async with aclosing(self._opened.store.watch([CHANNEL])) as watch:  # type: ignore[type-var]  # every watch is an async generator
                async for _ in watch:
                    event.set()

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            while True:
                event = anyio.Event()
                yield await self.snapshot()
                with anyio.move_on_after(self._poll_sec):
                    await event.wait()

    async def _all(self, family: Family) -> list[tuple[Rest, bytes, int]]:
        found: list[tuple[Rest, bytes, int]] = []
        after: Rest | None = None
        while True:
            (page,) = await self._opened.store.scan([Range(family(), after, LIMITS.keys)])
            found += [(entry.key, entry.value, entry.revision) for entry in page]
            if len(page) < LIMITS.keys:
                return found
            after = page[-1].key[1:]


def _sighting(agent_id: str, value: bytes) -> Sighting:
    endpoints, signed = decode(value, tuple[list[str], str], f"descriptor of {agent_id}")
    return Sighting(agent_id, tuple(endpoints), base64.b64decode(signed))
