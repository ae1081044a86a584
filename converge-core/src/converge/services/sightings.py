"""Sightings through the store: the default discovery. A descriptor is a key under its process's lease, and is listed while that lease lives."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import anyio

from converge.codec import decode, encode
from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import LIMITS, Batch, Conflict, Range, Rest
from converge.errors import StoreError, TornRecord
from converge.model.descriptor import peek_lease
from converge.model.keys import AGENT, EXPIRY, Family
from converge.services.opened import Opened

log = logging.getLogger("converge.sightings")

CHANNEL = "agents"
"""What a publish and a withdraw wake."""


class StoreSightings(Discovery):
    """Publishes under this process's lease; reads those of all leases that live."""

    def __init__(self, opened: Opened, poll_sec: float = 1.0) -> None:
        self._opened, self._poll_sec = opened, poll_sec
        self._seen: dict[tuple[bytes, str], tuple[int, Sighting]] = {}

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        lease, commits, todo = await self._opened.lease(), await self._opened.commits(), list(sightings)
        while todo:
            batches = []
            for sighting in todo:
                value = encode([list(sighting.endpoints), base64.b64encode(sighting.descriptor).decode()])
                batches.append(Batch([lease.check()], [(AGENT(lease.id, sighting.id), value)]))
            again = []
            for sighting, outcome in zip(todo, await commits.commit(batches, wake=[CHANNEL]), strict=True):
                if isinstance(outcome, Conflict):
                    await lease.check_not_ended(outcome)
                    again.append(sighting)  # the lease was touched meanwhile
            todo = again

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
                if known is not None and known[0] == revision:
                    seen[key[1:]] = known
                elif (sighting := _sighting(key[1], key[2], value)) is not None:
                    seen[key[1:]] = revision, sighting
        self._seen = seen
        return [sighting for _, sighting in seen.values()]

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        event = anyio.Event()

        async def listen() -> None:
            while True:
                try:
                    async with aclosing(self._opened.store.watch([CHANNEL])) as watch:  # type: ignore[type-var]  # every watch is an async generator
                        async for _ in watch:
                            self._opened.deafness.works("agents")
                            event.set()
                except StoreError as error:
                    self._opened.deafness.failed("agents", error)
                await anyio.sleep(self._poll_sec)

        lost: StoreError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            while lost is None:
                event = anyio.Event()
                try:
                    found = await self.snapshot()
                except StoreError as error:
                    lost = error  # raised outside the group, which would wrap it
                    group.cancel_scope.cancel()
                    break
                yield found
                with anyio.move_on_after(self._poll_sec):
                    await event.wait()
        if lost is not None:
            raise lost

    async def _all(self, family: Family) -> list[tuple[Rest, bytes, int]]:
        found: list[tuple[Rest, bytes, int]] = []
        after: Rest | None = None
        while True:
            (page,) = await self._opened.store.scan([Range(family(), after, LIMITS.keys)])
            found += [(entry.key, entry.value, entry.revision) for entry in page]
            if len(page) < LIMITS.keys:
                return found
            after = page[-1].key[1:]


def _sighting(lease: bytes, agent_id: str, value: bytes) -> Sighting | None:
    """Return what a record says; None if nobody can read it, which is no reason not to find the others, or if it was copied from another lease.

    A copy is genuine, and would keep an agent listed that has stopped.
    """
    try:
        endpoints, text = decode(value, tuple[list[str], str], f"descriptor of {agent_id}")
        sighting = Sighting(agent_id, tuple(endpoints), base64.b64decode(text, validate=True))
    except (TornRecord, ValueError) as error:
        log.warning("a descriptor was refused: %s", error)
        return None
    if peek_lease(sighting.descriptor) not in (None, lease.hex()):
        log.warning("a descriptor was refused: that of %.16s is for another lease than the one it stands under", agent_id)
        return None
    return sighting
