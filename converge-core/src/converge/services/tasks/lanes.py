"""The life of lanes: one that stays empty is closed, so that a pool's 1,024 serve the kinds of tasks that it has now.

A lane is put again as closing, seen to be empty, and deleted at that revision. Whoever puts a `ready` key checks the
lane's revision in the same
step: from the moment at which it is closing they conflict, and open it again, so no task is ever left in a lane that
nobody knows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from converge.codec import decode, encode
from converge.contracts.store import LIMITS, Batch, Committed, Entry, Key, Range, Store
from converge.errors import SchemaTooNew, TornRecord
from converge.machines.lane import Lane
from converge.model.keys import LANE, READY
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages

log = logging.getLogger("converge.lanes")

IDLE_SEC = 3_600.0
"""How long a lane of a pool that has few must be seen empty: to open it again costs its next submit one more call."""

CROWDED_IDLE_SEC = 60.0
"""The same, of a pool that has many."""

CROWDED = 64
"""Lanes of a pool from which on it has many: a claim looks at 32 at a time."""

MADE_ROOM = 64
"""Lanes that a submit closes, at most, where its pool has no room for another one."""


class LaneCloser:
    """Looks at the lanes a page at a time, and closes those that it has seen empty for long enough."""

    def __init__(
        self, handle: StoreHandle, *, idle_sec: float = IDLE_SEC, crowded_idle_sec: float = CROWDED_IDLE_SEC
    ) -> None:
        self._handle = handle
        self._idle_sec, self._crowded_idle_sec = idle_sec, crowded_idle_sec
        self._round = self._next_round()
        self._empty_since: dict[Key, float] = {}
        self._seen_empty: dict[Key, float] = {}  # of the round under way
        self._counts: dict[str, int] = {}  # lanes of each pool, of the last round and of the one under way
        self._counting: dict[str, int] = {}

    @property
    def is_under_way(self) -> bool:
        """Whether the next page goes on with the lanes, instead of beginning with the first again."""
        return self._round.after is not None

    async def page(self) -> int:
        """Look at one page of lanes; return how many were closed."""
        now = self._handle.env.monotonic()
        page = await self._round.read()
        closed = 0
        for entry, is_empty in zip(page, await _are_empty(self._handle.store, page), strict=True):
            self._counting[entry.key[1]] = self._counting.get(entry.key[1], 0) + 1
            if is_empty:
                closed += await self._found_empty(entry, now)
        if self._round.is_last:
            self._end_round()
        return closed

    async def _found_empty(self, entry: Entry, now: float) -> bool:
        since = self._empty_since.get(entry.key, now)
        is_crowded = self._counts.get(entry.key[1], 0) > CROWDED
        if now - since >= (self._crowded_idle_sec if is_crowded else self._idle_sec) and await close_lane(
            self._handle, entry
        ):
            return True
        self._seen_empty[entry.key] = since
        return False

    def _next_round(self) -> Pages:
        return Pages(self._handle.store, LANE(), size=LIMITS.ranges)

    def _end_round(self) -> None:
        self._round = self._next_round()
        self._empty_since, self._seen_empty = self._seen_empty, {}
        self._counts, self._counting = self._counting, {}


async def make_room(handle: StoreHandle, pool_id: str) -> int:
    """Close empty lanes of a pool that has too many, however short a time they are empty; return how many."""
    closed = 0
    async for page in Pages(handle.store, LANE(pool_id), size=LIMITS.ranges):
        for entry, is_empty in zip(page, await _are_empty(handle.store, page), strict=True):
            if is_empty and await close_lane(handle, entry):
                closed += 1
                if closed == MADE_ROOM:
                    return closed
    return closed


async def close_lane(handle: StoreHandle, entry: Entry) -> bool:
    """Close the lane that was read as `entry`, if it is empty and unchanged; return whether it is gone."""
    try:
        lane = decode(entry.value, Lane, "lane")
    except (TornRecord, SchemaTooNew) as error:
        log.error("a lane is left as it is: %s", error)
        return False
    commits = await handle.commits()
    key, revision = entry.key, entry.revision
    if not lane.is_closing:
        (outcome,) = await commits.commit(
            [Batch([(key, revision)], [(key, encode(msgspec.structs.replace(lane, is_closing=True)))])]
        )
        if not isinstance(outcome, Committed):
            return False
        revision = outcome.revision
    # Read after it was closing: whoever put a task there before is seen, whoever would put one from now on conflicts.
    (first,) = await handle.store.scan([Range(READY(key[2]), None, 1)])
    if first:
        await commits.commit(
            [Batch([(key, revision)], [(key, encode(msgspec.structs.replace(lane, is_closing=False)))])]
        )
        return False
    (outcome,) = await commits.commit([Batch([(key, revision)], (), [key])])
    return isinstance(outcome, Committed)


async def _are_empty(store: Store, lanes: Sequence[Entry]) -> list[bool]:
    if not lanes:
        return []
    return [not page for page in await store.scan([Range(READY(entry.key[2]), None, 1) for entry in lanes])]
