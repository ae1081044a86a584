"""The sweep: ends passed leases, puts work back, moves due tasks, fails late ones, removes old ones, page by page."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Protocol, cast

from converge.codec import decode, moment_or
from converge.contracts.store import LIMITS, Batch, Conflict, Entry, Key, Range, Rest, Window
from converge.errors import SchemaTooNew, StoreError, TornRecord
from converge.ids import id_text
from converge.machines.durable import step
from converge.machines.events import CameDue, DeadlinePassed, LeaseEnded
from converge.machines.task import is_terminal
from converge.model.keys import AGENT, DEAD, EXPIRY, HELD, JOINED, LATER, LIMIT, MEMBER, NOTICE, STATE, TASK
from converge.model.place import Found, place_of, waiting_keys
from converge.model.task import Spec, State
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import ended
from converge.services.store.pages import UNMOVED_PAGES, Pages, get_all, parts
from converge.services.tasks.lanes import LaneCloser
from converge.services.tasks.retention import Retention
from converge.services.tasks.surroundings import Moved, look_around, look_around_all, wakes
from converge.services.tasks.torn import log_once, set_aside

log = logging.getLogger("converge.sweep")

SWEPT_TOGETHER = 200
"""Claims, or tasks, of one page: its step stalls others by a few milliseconds at most, and larger gain nothing."""

WRITTEN_TOGETHER = 25
"""Tasks of a page that one call writes: whoever else uses the store waits for no more of them at a time."""

LEASES_LOOKED_AT = 64
"""Up to so many leases each process looks at all in each page; of more, about 64 look at a time, by chance."""

SELDOM_SEC = 5.0
"""How often, about, lanes and what is old are looked at where nothing was found: nobody waits for that."""

YIELD_SEC = 0.5
"""How long a process leaves to another what that one was faster at, at the end of a page."""

YIELD_LEAST = 8
"""A page must have been this long for that: of two that each look for one task, one always loses."""


_Record = tuple[Spec, State | None]


class Chore(Protocol):
    """What is to be carried out for tasks, and stands in keys of its own until it is."""

    prefix: Key

    async def page(self) -> int:
        """Carry out some; return how many keys were removed. Safe beside the same in another process."""


class Sweep:
    """Sweeps one store. Every page is safe beside the same page of another process: each step checks what it found.

    What has come due is decided by the store's own time, not by this process's estimate, which may be behind.
    """

    def __init__(self, handle: StoreHandle, chores: Sequence[Chore] = ()) -> None:
        self._handle, self._chores = handle, tuple(chores)
        self._retention, self._lanes = Retention(handle), LaneCloser(handle)
        self._seldom_due = float("-inf")
        self._leases = 0  # that were seen last
        self._yields: dict[Key, float] = {}
        self._logged: set[bytes] = set()  # of which tasks it was said that they cannot be read
        self._cursors: dict[Key, Rest] = {}  # up to where nothing of a prefix could be moved
        self.next_due: int | None = None

    async def page(self) -> int:
        """Do one page of everything; return how many keys were moved (0: nothing is left to do now)."""
        moved = await self.end_leases() + await self.put_back()
        moved += await self.move_due() + await self.fail_late()
        for chore in self._chores:
            moved += await self._carry_out(chore)
        return moved + await self.remove_old() + await self._lanes.page()

    async def paced_page(self) -> int:
        """Do one page of what a glance shows to be due, leaving to another process what that one is at; return as
        `page` does. An idle store costs one scan, and the clock.
        """
        store = self._handle.store
        looks_at_all = self._leases <= LEASES_LOOKED_AT or self._handle.env.uniform() * self._leases < LEASES_LOOKED_AT
        firsts = (*_FIRST_OF, *(Range(chore.prefix, None, 1) for chore in self._chores))
        ranges = (*firsts, Range(EXPIRY(), None, LIMITS.keys)) if looks_at_all else firsts
        dead, later, limits, *rest = await store.scan(ranges)
        expiries = rest[-1] if looks_at_all else ()
        now = await store.time()
        self._handle.saw_time(now)
        self.next_due = later[0].key[1] if later else None
        self._leases = len(expiries) if looks_at_all else self._leases
        moved = 0
        if len(expiries) == LIMITS.keys or any(_number(entry) < now for entry in expiries):
            moved += await self.end_leases()
        if dead or moved:
            moved += await self.put_back()
        if later and later[0].key[1] <= now:
            moved += await self._unless_yielded(LATER(), self.move_due)
        if limits and limits[0].key[1] <= now:
            moved += await self._unless_yielded(LIMIT(), self.fail_late)
        for chore, first in zip(self._chores, rest, strict=False):
            if first:
                moved += await self._carry_out(chore)
        return moved + await self._seldom()

    async def _carry_out(self, chore: Chore) -> int:
        """Do a page of a chore. A record that cannot be read is no outage: what comes after it is carried out."""
        try:
            return await chore.page()
        except (TornRecord, SchemaTooNew) as error:
            log_once(self._handle, str(chore.prefix[0]), error)
            return 0

    async def _seldom(self) -> int:
        monotonic = self._handle.env.monotonic()
        if monotonic < self._seldom_due:
            return 0
        moved = await self._retention.page()
        closed = await self._lanes.page()
        if not moved and not self._retention.is_under_way and not self._lanes.is_under_way:
            self._seldom_due = monotonic + SELDOM_SEC * self._handle.env.uniform(0.5, 1.5)
        return moved + closed

    async def end_leases(self) -> int:
        """End leases whose time has passed; the window compares it in the store."""
        store = self._handle.store
        now = await self._handle.store.time()
        moved = 0
        async for page in Pages(store, EXPIRY()):
            passed = [(entry, until) for entry in page if (until := _number(entry)) < now]
            if passed:
                batches = [ended(entry.key[1], entry.revision, until) for entry, until in passed]
                moved += _committed(await (await self._handle.commits()).commit(batches))
        return moved

    async def put_back(self) -> int:
        """Put one page of the claims of each dead lease back; remove the lease when nothing is left of it."""
        (dead,) = await self._handle.store.scan([Range(DEAD(), None, 32)])
        # Each process begins with another one: several that wake together share them.
        moved = 0
        for entry in random.Random(self._handle.env.entropy(8)).sample(dead, len(dead)):
            moved += await self._unless_yielded(HELD(entry.key[1]), partial(self._put_back_of, entry))
        return moved

    async def _put_back_of(self, dead: Entry) -> int:
        async def back(page: Sequence[Entry]) -> int:
            return await self._step_all([(c.key[3], c) for c in page], LeaseEnded(), page[0].key[:2])

        moved, is_empty = await self._move_some(HELD(dead.key[1]), None, back)
        return await self._bury(dead) if is_empty else moved

    async def _bury(self, dead: Entry) -> int:
        """Remove what else names a dead lease, its own key last, so that any other resumes a killed sweep."""
        store, lease = self._handle.store, dead.key[1]
        commits = await self._handle.commits()
        pages = await store.scan([Range(family(lease), None, SWEPT_TOGETHER) for family in (AGENT, NOTICE, JOINED)])
        # A batch each: notices are of tasks, and no batch mixes those of two pools.
        batches = [Batch((), (), [entry.key]) for entry in (*pages[0], *pages[1])]
        members = await store.get([MEMBER(joined.key[2], joined.key[3]) for joined in pages[2]])
        for joined, member in zip(pages[2], members, strict=True):
            if member is not None and member.value == f'"{lease.hex()}"'.encode():
                batches.append(Batch([(member.key, member.revision)], (), [member.key, joined.key]))
            else:
                batches.append(Batch([(joined.key, joined.revision)], (), [joined.key]))
        moved = _committed(await commits.commit(batches, wake=["agents"]))
        if any(len(page) == SWEPT_TOGETHER for page in pages) or moved < len(batches):
            return moved
        return moved + _committed(await commits.commit([Batch([(dead.key, dead.revision)], (), [dead.key])]))

    async def move_due(self) -> int:
        """Make tasks ready whose time has come; `next_due` then says when the next one's comes."""
        now = await self._handle.store.time()

        async def ready(page: Sequence[Entry]) -> int:
            return await self._step_all([(entry.key[2], entry) for entry in page], CameDue(), LATER())

        moved, _ = await self._move_some(LATER(), now, ready)
        return moved

    async def fail_late(self) -> int:
        """Fail tasks that still wait past their deadline; one that is held keeps its limit until its attempt ends."""
        moved, _ = await self._move_some(LIMIT(), await self._handle.store.time(), self._fail_all_late)
        return moved

    async def remove_old(self) -> int:
        """Remove some terminal tasks of each pool whose retention has passed, with their dedup keys."""
        return await self._retention.remove_old()

    async def _move_some(
        self, prefix: Key, until: int | None, move: Callable[[Sequence[Entry]], Awaitable[int]]
    ) -> tuple[int, bool]:
        """Move the first page with something to move, of keys whose first number is at most `until`; True: none is."""
        pages = Pages(self._handle.store, prefix, size=SWEPT_TOGETHER)
        for number in range(UNMOVED_PAGES):
            page = await pages.read()
            due = page if until is None else [entry for entry in page if entry.key[1] <= until]
            if until is not None and prefix == LATER():
                self.next_due = page[len(due)].key[1] if len(due) < len(page) else None
            if not due:
                self._cursors.pop(prefix, None)
                return 0, number == 0
            if moved := await move(due):
                return moved, False
            if len(due) < SWEPT_TOGETHER:
                self._cursors.pop(prefix, None)
                break
            if self._is_yielded(prefix):
                break
            after = cast(Rest, pages.after)
            if number == 0 and (cursor := self._cursors.get(prefix)) is not None and cursor > after:
                after = cursor
                pages = Pages(self._handle.store, prefix, after=cursor, size=SWEPT_TOGETHER)
            self._cursors[prefix] = after
        return 0, False

    async def _fail_all_late(self, page: Sequence[Entry]) -> int:
        commits = await self._handle.commits()
        records, unread = await self._read(entry.key[2] for entry in page)
        # Of one that nobody can read the deadline goes too: it is set aside where it is met.
        over = [
            Batch([(entry.key, entry.revision)], (), [entry.key])
            for entry in page
            if isinstance(unread.get(entry.key[2]), TornRecord) or _is_over(records.get(entry.key[2], _UNREAD))
        ]
        moved = _committed(await commits.commit(over))
        channels: set[str] = set()
        batches: list[Batch] = []
        limits = {entry.key[2]: entry.key[1] for entry in page}
        for found in await self._waiting(
            [(id_, record) for id_, record in records.items() if record is not None and not is_terminal(record[1])]
        ):
            try:
                around = await look_around(self._handle, found, needs_lane=False)
            except Moved:
                continue
            except (TornRecord, SchemaTooNew) as error:
                self._log_once(found.id, error)
                continue
            late = step(found, DeadlinePassed(), await self._handle.now(), around)._replace(
                window=Window(at_least=limits[found.id])
            )
            channels |= wakes(found, around, is_ready=False)
            if found.spec.ordering_key is None:
                batches.append(late)
            else:  # the next one of its key must find the row as this one leaves it
                moved += _committed(await commits.commit([late], wake=wakes(found, around, is_ready=False)))
        return moved + _committed(await commits.commit(batches, wake=channels))

    async def _waiting(self, records: Sequence[tuple[bytes, _Record]]) -> list[Found]:
        """Return those of the tasks that nobody holds, each with the key under which it stands."""
        keys = [key for id_, (spec, state) in records for key in waiting_keys(id_, spec, state)]
        entries = {entry.key: entry for entry in await get_all(self._handle.store, keys) if entry is not None}
        waiting = []
        for id_, (spec, state) in records:
            entry = next((entries[key] for key in waiting_keys(id_, spec, state) if key in entries), None)
            if entry is not None:
                waiting.append(Found(id_, spec, state, place_of(entry.key, entry.revision)))
        return waiting

    async def _set_aside(self, places: Sequence[tuple[bytes, Entry, StoreError]]) -> int:
        """Set aside what nobody can read; what a newer release can is left to it."""
        moved = 0
        for id_, entry, error in places:
            if isinstance(error, TornRecord):
                moved += await set_aside(self._handle, entry.key, entry.revision, id_, error)
            else:
                self._log_once(id_, error)
        return moved

    async def _read(self, ids: Iterable[bytes]) -> tuple[dict[bytes, _Record | None], dict[bytes, StoreError]]:
        """Read the records of at most a page of tasks: None of one that is not there; and why others cannot be read."""
        ids = list(ids)
        entries = await self._handle.store.get([family(id_) for id_ in ids for family in (TASK, STATE)])
        records: dict[bytes, _Record | None] = {}
        unread: dict[bytes, StoreError] = {}
        for id_, spec, state in zip(ids, entries[::2], entries[1::2], strict=True):
            text = id_text(id_)
            try:
                records[id_] = (
                    None
                    if spec is None
                    else (decode(spec.value, Spec, text), None if state is None else decode(state.value, State, text))
                )
            except (TornRecord, SchemaTooNew) as error:
                unread[id_] = error
        return records, unread

    async def _step_all(self, places: Sequence[tuple[bytes, Entry]], event: LeaseEnded | CameDue, kind: Key) -> int:
        records, unread = await self._read(id_ for id_, _ in places)
        for id_ in (id_ for id_, record in records.items() if record is None):
            unread[id_] = TornRecord(f"task {id_text(id_)}", "its specification is missing")  # or it is gone, all of it
        put_away = await self._set_aside([(id_, entry, unread[id_]) for id_, entry in places if id_ in unread])
        all_found = [
            Found(id_, *record, place_of(entry.key, entry.revision, entry.value))
            for id_, entry in places
            if (record := records.get(id_)) is not None
        ]
        entry_of = dict(places)
        batches: list[Batch] = []
        channels: set[str] = set()
        now = await self._handle.now()
        for found, around in zip(all_found, await look_around_all(self._handle, all_found), strict=True):
            if isinstance(around, StoreError):
                put_away += await self._set_aside([(found.id, entry_of[found.id], around)])
            elif not isinstance(around, Moved):
                batches.append(step(found, event, now, around))
                channels |= wakes(found, around, is_ready=True)
        commits, moved, is_behind = await self._handle.commits(), 0, False
        for some in parts(batches, WRITTEN_TOGETHER):
            won = _committed(await commits.commit(some, wake=channels))
            moved, is_behind = moved + won, won < len(some) / 2
        if len(batches) >= YIELD_LEAST and is_behind:  # of those that share a page one is first at its end
            self._yields[kind] = self._handle.env.monotonic() + YIELD_SEC * self._handle.env.uniform(0.5, 1.5)
        return moved + put_away

    async def _unless_yielded(self, kind: Key, move: Callable[[], Awaitable[int]]) -> int:
        return 0 if self._is_yielded(kind) else await move()

    def _is_yielded(self, kind: Key) -> bool:
        until = self._yields.get(kind)
        if until is not None and self._handle.env.monotonic() >= until:
            del self._yields[kind]
            until = None
        return until is not None

    def _log_once(self, id_: bytes, error: Exception) -> None:
        if id_ not in self._logged and len(self._logged) < LIMITS.keys:
            self._logged.add(id_)
            log.error("task %s is left where it is, the sweep goes on: %s", id_text(id_), error)


_FIRST_OF = (Range(DEAD(), None, 1), Range(LATER(), None, 1), Range(LIMIT(), None, 1))


_UNREAD: _Record = (Spec("", "", 0, 0, 0), None)


def _is_over(record: _Record | None) -> bool:
    return record is None or is_terminal(record[1])


def _number(entry: Entry) -> int:
    """Return the moment of an entry; 0, long ago, where it cannot be read, so that it keeps no work back."""
    return moment_or(entry.value, 0)


def _committed(outcomes: Sequence[object]) -> int:
    return sum(not isinstance(outcome, Conflict) for outcome in outcomes)
