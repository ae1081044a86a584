"""What any process does for all, a page at a time: end passed leases, put their work back, move due tasks, fail late ones, remove old ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from converge.codec import decode
from converge.contracts.store import LIMITS, Batch, Conflict, Entry, Key, Range, Rest
from converge.errors import NoSuchTask, SchemaTooNew, StoreBusy, TornRecord
from converge.ids import id_text
from converge.machines.task import TERMINAL, CameDue, DeadlinePassed, Event, Found, Held, Later, LeaseEnded, is_terminal, step
from converge.model.keys import AGENT, DEAD, DEDUP, DONE, EXPIRY, HELD, JOINED, LATER, LIMIT, MEMBER, NOTICE, POOL, STATE, TASK
from converge.model.task import Spec, State
from converge.services.around import Moved, find, look_around
from converge.services.lease import ended
from converge.services.opened import Opened

log = logging.getLogger("converge.sweep")

PAGE = 200
"""Claims, or tasks, of one page: a step of this size stalls others by a few milliseconds at most, and ten thousand take no longer in all."""

LATE_PAGES = 10
"""Pages of deadlines that one call looks through for a task that still waits: those of tasks that are held stay, and may fill whole pages."""


class Sweep:
    """Sweeps one store. Every page is safe beside the same page of another process: each step checks what it found.

    What has come due is decided by store time as the store says it, not by this process's estimate, which may be a little behind.
    """

    def __init__(self, opened: Opened) -> None:
        self._opened = opened
        self._limit_after: Rest | None = None
        self.next_due: int | None = None

    async def page(self) -> int:
        """Do one page of everything; answer how many keys were moved (0: nothing is left to do now)."""
        moved = await self.end_leases() + await self.put_back()
        return moved + await self.move_due() + await self.fail_late() + await self.remove_old()

    async def end_leases(self) -> int:
        """End leases whose time has passed; the window compares it in the store."""
        store = self._opened.store
        now = await self._opened.store.time()
        moved = 0
        after: Rest | None = None
        while True:
            (page,) = await store.scan([Range(EXPIRY(), after, LIMITS.keys)])
            passed = [(entry, int(entry.value)) for entry in page if int(entry.value) < now]
            if passed:
                batches = [ended(entry.key[1], entry.revision, until) for entry, until in passed]
                moved += _committed(await (await self._opened.commits()).commit(batches))
            if len(page) < LIMITS.keys:
                return moved
            after = page[-1].key[1:]

    async def put_back(self) -> int:
        """Put one page of the claims of each dead lease back; remove the lease when nothing is left of it."""
        store = self._opened.store
        (dead,) = await store.scan([Range(DEAD(), None, 32)])
        moved = 0
        for entry in dead:
            lease = entry.key[1]
            (claims,) = await store.scan([Range(HELD(lease), None, PAGE)])
            if claims:
                moved += await self._step_all([(c.key[3], Held(lease, c.key[4], c.revision, int(c.value))) for c in claims], LeaseEnded(), True)
            else:
                moved += await self._bury(entry)
        return moved

    async def _bury(self, dead: Entry) -> int:
        """Remove what else names a dead lease; its own key goes last, so that a killed sweep is resumed by any other."""
        store, lease = self._opened.store, dead.key[1]
        commits = await self._opened.commits()
        pages = await store.scan([Range(family(lease), None, PAGE) for family in (AGENT, NOTICE, JOINED)])
        deletes: list[Key] = [entry.key for entry in (*pages[0], *pages[1])]
        batches = [Batch((), (), deletes)] if deletes else []
        for joined in pages[2]:
            member_key = MEMBER(joined.key[2], joined.key[3])
            (member,) = await store.get([member_key])
            names_it = member is not None and member.value == f'"{lease.hex()}"'.encode()
            if member is not None and names_it:
                batches.append(Batch([(member_key, member.revision)], (), [member_key, joined.key]))
            else:
                batches.append(Batch([(joined.key, joined.revision)], (), [joined.key]))
        moved = _committed(await commits.commit(batches, wake=["agents"]))
        if any(len(page) == PAGE for page in pages) or moved < len(batches):
            return moved
        return moved + _committed(await commits.commit([Batch([(dead.key, dead.revision)], (), [dead.key])]))

    async def move_due(self) -> int:
        """Make tasks ready whose time has come; `next_due` then says when the next one's comes."""
        (page,) = await self._opened.store.scan([Range(LATER(), None, PAGE)])
        now = await self._opened.store.time()
        due = [entry for entry in page if entry.key[1] <= now]
        self.next_due = page[len(due)].key[1] if len(due) < len(page) else None
        return await self._step_all([(entry.key[2], Later(entry.revision)) for entry in due], CameDue(), True)

    async def fail_late(self) -> int:
        """Fail tasks that still wait past their deadline; one that is held keeps its limit until its attempt ends."""
        moved = 0
        for _ in range(LATE_PAGES):
            (page,) = await self._opened.store.scan([Range(LIMIT(), self._limit_after, PAGE)])
            now = await self._opened.store.time()
            late = [entry for entry in page if entry.key[1] <= now]
            self._limit_after = late[-1].key[1:] if len(late) == PAGE else None
            for entry in late:
                try:
                    moved += await self._fail_late(entry)
                except (TornRecord, SchemaTooNew, StoreBusy) as error:
                    log.error("a task past its deadline is left where it is, the sweep goes on: %s", error)
            if moved or self._limit_after is None:
                break
        return moved

    async def _fail_late(self, entry: Entry) -> int:
        try:
            spec, state, place = await find(self._opened.store, entry.key[2])
        except NoSuchTask:
            spec, state, place = None, None, None
        if spec is None or is_terminal(state) or place is None:
            return _committed(await (await self._opened.commits()).commit([Batch([(entry.key, entry.revision)], (), [entry.key])]))
        return 0 if type(place) is Held else await self._step(Found(entry.key[2], spec, state, place), DeadlinePassed(), False)

    async def remove_old(self) -> int:
        """Remove terminal tasks whose retention has passed, with their dedup keys."""
        store = self._opened.store
        (pools,) = await store.scan([Range(POOL(), None, LIMITS.keys)])
        prefixes = [DONE(pool.key[1], state.value) for pool in pools for state in sorted(TERMINAL)]
        now = await self._opened.now()
        moved = 0
        for at in range(0, len(prefixes), LIMITS.ranges):
            pages = await store.scan([Range(prefix, None, PAGE) for prefix in prefixes[at : at + LIMITS.ranges]])
            old = [entry for page in pages for entry in page if entry.key[3] <= now]
            if old:
                moved += await self._remove(old)
        return moved

    async def _remove(self, old: Sequence[Entry]) -> int:
        ids = [entry.key[4] for entry in old]
        specs: list[Entry | None] = []
        for at in range(0, len(ids), LIMITS.keys):
            specs += await self._opened.store.get([TASK(id_) for id_ in ids[at : at + LIMITS.keys]])
        batches = []
        for entry, spec in zip(old, specs, strict=True):
            deletes = [entry.key, TASK(entry.key[4]), STATE(entry.key[4])]
            dedup_key = None if spec is None else decode(spec.value, Spec, id_text(entry.key[4])).dedup_key
            if dedup_key is not None:
                deletes.append(DEDUP(entry.key[1], dedup_key))
            batches.append(Batch([(entry.key, entry.revision)], (), deletes))
        return _committed(await (await self._opened.commits()).commit(batches))

    async def _step_all(self, places: Sequence[tuple[bytes, Held | Later]], event: Event, needs_lane: bool) -> int:
        store = self._opened.store
        moved = 0
        batches: list[Batch] = []
        lanes: set[str] = set()
        entries = await store.get([family(id_) for id_, _ in places for family in (TASK, STATE)])
        now = await self._opened.now()
        for (id_, place), spec, state in zip(places, entries[::2], entries[1::2], strict=True):
            text = id_text(id_)
            if spec is None:
                continue  # it was removed meanwhile: its place's key is gone too
            try:
                found = Found(id_, decode(spec.value, Spec, text), None if state is None else decode(state.value, State, text), place)
                around = await look_around(self._opened, found, needs_lane=needs_lane)
            except Moved:
                continue
            except (TornRecord, SchemaTooNew) as error:
                log.error("task %s is left where it is, the sweep goes on: %s", text, error)
                continue
            batches.append(step(found, event, now, around))
            lanes |= {f"lane.{found.spec.lane}", found.spec.origin}
            if around.successor is not None:
                lanes.add(f"lane.{around.successor.spec.lane}")
        if batches:
            moved = _committed(await (await self._opened.commits()).commit(batches, wake=lanes - {""}))
        return moved

    async def _step(self, found: Found, event: Event, needs_lane: bool) -> int:
        try:
            around = await look_around(self._opened, found, needs_lane=needs_lane)
        except Moved:
            return 0
        batch = step(found, event, await self._opened.now(), around)
        wake = {found.spec.origin} | ({f"lane.{around.successor.spec.lane}"} if around.successor else set())
        return _committed(await (await self._opened.commits()).commit([batch], wake=wake - {""}))


def _committed(outcomes: Sequence[object]) -> int:
    return sum(not isinstance(outcome, Conflict) for outcome in outcomes)
