"""A reader of the agents on a store: it reads what has changed, not what there is.

Beside the agents of each lease stands a marker, the key of the empty name: the number of changes so far, and the ids
that the last ones were of. It is written with each change, in the same batch. To look when nothing has changed costs
two calls of the store, whatever the number of agents.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator, Sequence

import anyio
from anyio.lowlevel import checkpoint

from converge.codec import decode, encode, moment_or
from converge.contracts.discovery import Changes, Reader, Sighting
from converge.contracts.store import Entry, Key
from converge.errors import InvalidValue, SchemaTooNew, TornRecord
from converge.model.descriptor import peek_lease
from converge.model.keys import AGENT, EXPIRY, check_key
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import get_all, read_all

log = logging.getLogger("converge.sightings")

CHANNEL = "agents"
"""What each change wakes."""

READ_A_TURN = 500
"""Records that are read before others run: some milliseconds."""

RECENT = 64
"""Ids that a marker names: a reader that has missed more changes reads all agents of that lease."""


def marker_key(lease: bytes) -> Key:
    """Return the key of a lease's marker: no agent has the empty name."""
    return AGENT(lease, "")


def marker_value(count: int, recent: Sequence[str]) -> bytes:
    """Return the marker after `count` changes, the last of which were of these ids."""
    return encode([count, list(recent[-RECENT:])])


def read_marker(lease: bytes, value: bytes) -> tuple[int, list[str]]:
    """Return what a marker says; if it is unusable, a count of -1, with which all agents of the lease are read."""
    try:
        count, recent = decode(value, tuple[int, list[str]], "marker of a lease's agents")
        for name in recent[-RECENT:]:
            check_key(AGENT(lease, name))
    except (TornRecord, SchemaTooNew, InvalidValue) as error:
        log.warning("all agents of lease %s are read, since its marker cannot be: %s", lease.hex(), error)
        return -1, []
    return count, recent[-RECENT:]


class _Seen:
    """What was seen under one lease."""

    __slots__ = ("count", "names", "revision")

    def __init__(self) -> None:
        self.revision, self.count = 0, -1
        self.names: set[str] = set()


_Place = tuple[bytes, int, Sighting | None]
"""Lease and revision of a record, and what it says; None if it was refused."""


class StoreReader(Reader):
    """Reads the agents of the leases that live."""

    def __init__(self, handle: StoreHandle, poll_sec: float = 1.0) -> None:
        self._handle, self._poll_sec = handle, poll_sec
        self._leases: dict[bytes, _Seen] = {}
        # Of nearly all agents one: a key that moves between processes has two for a moment.
        self._places: dict[str, tuple[_Place, ...]] = {}
        self._touched: set[str] = set()  # outlives a look that fails half way
        self._published: dict[str, Sighting] = {}

    def sightings(self) -> list[Sighting]:
        """Return what the last look has found."""
        return list(self._published.values())

    async def look(self) -> Changes:
        """Return what has changed among the agents whose leases live now, by store time."""
        live = await self._live()
        for lease in self._leases.keys() - live:
            self._forget(lease)
        leases = list(live)
        markers = await get_all(self._handle.store, [marker_key(lease) for lease in leases])
        for lease, marker in zip(leases, markers, strict=True):
            if marker is None:
                self._forget(lease)
            elif (seen := self._leases.get(lease)) is None or seen.revision != marker.revision:
                await self._catch_up(lease, seen or _Seen(), marker)
        return self._changes()

    def hints(self) -> AsyncIterator[None]:
        """Yield when it is time to look. See `Reader.hints`."""
        return ticks(self._handle, self._poll_sec)

    async def _live(self) -> set[bytes]:
        now, live = await self._handle.store.time(), set()
        for entry in await read_all(self._handle.store, EXPIRY()):
            if moment_or(entry.value, 0) >= now:
                live.add(entry.key[1])
        return live

    def _forget(self, lease: bytes) -> None:
        seen = self._leases.pop(lease, None)
        for name in seen.names if seen is not None else ():
            self._set(lease, name, None)

    async def _catch_up(self, lease: bytes, seen: _Seen, marker: Entry) -> None:
        """Read what has changed under the lease."""
        count, recent = read_marker(lease, marker.value)
        missed = count - seen.count
        if seen.count >= 0 and 0 < missed <= len(recent):
            names = set(recent[-missed:])
            entries = await self._handle.store.get([AGENT(lease, name) for name in names])
            found = {entry.key[2]: entry for entry in entries if entry is not None}
        else:
            listed = await read_all(self._handle.store, AGENT(lease))
            found = {entry.key[2]: entry for entry in listed if entry.key[2]}
            names = found.keys() | seen.names
        read: dict[str, _Place] = {}
        for number, name in enumerate(names, 1):
            if number % READ_A_TURN == 0:
                await checkpoint()
            if (place := self._read(lease, name, found.get(name))) is not None:
                read[name] = place
        for name in names:
            self._set(lease, name, read.get(name))
        # Nothing was awaited since: whoever is cancelled before has learned nothing, after it all.
        seen.names = (seen.names | found.keys()) - (names - found.keys())
        seen.revision, seen.count = marker.revision, count
        self._leases[lease] = seen

    def _own(self, lease: bytes, name: str) -> _Place | None:
        return next((place for place in self._places.get(name, ()) if place[0] == lease), None)

    def _read(self, lease: bytes, name: str, entry: Entry | None) -> _Place | None:
        """Return what the record says; what was read before is not read again."""
        own = self._own(lease, name)
        if entry is None or (own is not None and own[1] == entry.revision):
            return own if entry is not None else None
        return lease, entry.revision, read_sighting(lease, name, entry.value)

    def _set(self, lease: bytes, name: str, place: _Place | None) -> None:
        own = self._own(lease, name)
        if place is own:
            return
        places = tuple(other for other in self._places.get(name, ()) if other is not own)
        if place is not None:
            places = (*places, place)
        if places:
            self._places[name] = places
        else:
            self._places.pop(name, None)
        self._touched.add(name)

    def _changes(self) -> Changes:
        came, gone = [], []
        for name in self._touched:
            # Of two that stand under living leases the one that was written last.
            best = max(
                (place for place in self._places.get(name, ()) if place[2] is not None),
                key=lambda place: place[1],
                default=None,
            )
            if best is None or best[2] is None:
                if self._published.pop(name, None) is not None:
                    gone.append(name)
            elif self._published.get(name) != best[2]:
                self._published[name] = best[2]
                came.append(best[2])
        self._touched = set()
        return Changes(came, gone)


async def ticks(handle: StoreHandle, poll_sec: float) -> AsyncIterator[None]:
    """Yield at once, then after each wake-up, and each poll interval without one: a lease that ends wakes nobody."""
    event = anyio.Event()

    async with anyio.create_task_group() as group:
        group.start_soon(handle.watch_always, [CHANNEL], "agents", lambda: event.set(), poll_sec)
        try:
            while True:
                event = anyio.Event()
                yield None
                with anyio.move_on_after(poll_sec):
                    await event.wait()
        except GeneratorExit:  # the group would wrap it
            group.cancel_scope.cancel()


def write_sighting(sighting: Sighting) -> bytes:
    """Return the record of a sighting."""
    return encode([list(sighting.endpoints), base64.b64encode(sighting.descriptor).decode()])


def read_sighting(lease: bytes, agent_id: str, value: bytes) -> Sighting | None:
    """Return the sighting of a record; None if it cannot be decoded, or was copied from another lease.

    A copy is genuine, and would keep an agent listed that has stopped.
    """
    try:
        endpoints, text = decode(value, tuple[list[str], str], f"descriptor of {agent_id}")
        sighting = Sighting(agent_id, tuple(endpoints), base64.b64decode(text, validate=True))
    except (TornRecord, SchemaTooNew, ValueError) as error:
        log.warning("a descriptor was refused: %s", error)
        return None
    if peek_lease(sighting.descriptor) not in (None, lease.hex()):
        log.warning(
            "a descriptor was refused: that of %.16s is for another lease than the one it stands under", agent_id
        )
        return None
    return sighting
