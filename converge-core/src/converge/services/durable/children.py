"""Children: submitted with their parent's record of them, or through an outbox; cancelled when their parent ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from converge.codec import decode
from converge.contracts.store import ABSENT, LIMITS, Batch, Check, Committed, Entry
from converge.errors import NoSuchTask, SchemaTooNew, StoreBusy, TornRecord
from converge.ids import id_text
from converge.machines.durable import submit
from converge.machines.events import Cancelled
from converge.machines.task import is_terminal, step
from converge.model.keys import CHILD, CUT, KEY, OUTBOX, TASK, TOLD, Key
from converge.model.place import Found, Held, KeyRow, KeySeen, LaneSeen
from converge.model.task import Spec
from converge.services.durable.signals import SignalBox
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages, get_all
from converge.services.tasks.surroundings import Moved, find, lane_key, lane_wakes, lanes_seen, look_around, wakes
from converge.services.tasks.torn import log_once, set_aside

FAMILY_BATCH = 200
"""Ends, children or keys of one page."""

BECAUSE = "its parent has ended"


class Tell:
    """The chore that tells parents of the ends of their children, where the process is gone that ended them, too."""

    prefix: Key = TOLD()

    def __init__(self, handle: StoreHandle, box: SignalBox) -> None:
        self._box, self._pages = box, Pages(handle.store, TOLD(), size=FAMILY_BATCH)

    async def page(self) -> int:
        """See `Chore.page`."""
        return await self._pages.move(self._tell)

    async def _tell(self, page: Sequence[Entry]) -> int:
        ends: dict[bytes, list[bytes]] = {}
        for entry in page:
            ends.setdefault(entry.key[1], []).append(entry.key[2])
        return await self._box.tell(ends)


class Outbox:
    """The chore that submits children of other pools, and of ordering keys."""

    prefix: Key = OUTBOX()

    def __init__(self, handle: StoreHandle) -> None:
        self._handle, self._pages = handle, Pages(handle.store, OUTBOX(), size=FAMILY_BATCH)

    async def page(self) -> int:
        """See `Chore.page`."""
        return await self._pages.move(self.carry_out)

    async def carry_out(self, page: Sequence[Entry]) -> int:
        """Submit these children; each once, and not after its parent's end has removed it from the outbox."""
        specs, moved = dict[Key, Spec](), 0
        for entry in page:
            what = f"outbox {id_text(entry.key[1])}"
            try:
                specs[entry.key] = decode(entry.value, Spec, what)
            except TornRecord as error:
                moved += await set_aside(self._handle, entry.key, entry.revision, entry.key[1], error)
            except SchemaTooNew as error:
                log_once(self._handle, what, error)
        return moved + await self._submit([entry for entry in page if entry.key in specs], specs)

    async def _submit(self, page: Sequence[Entry], specs: Mapping[Key, Spec]) -> int:
        lanes = await lanes_seen(self._handle, list(specs.values()))
        ordered = [spec for spec in specs.values() if spec.ordering_key is not None]
        if ordered:
            await self._handle.require_format(2)
        rows = await get_all(self._handle.store, [KEY(spec.pool, spec.ordering_key) for spec in ordered])
        row_of = {(spec.pool, spec.ordering_key): row for spec, row in zip(ordered, rows, strict=True)}
        there = await get_all(self._handle.store, [TASK(entry.key[1]) for entry in page])
        now = await self._handle.now()
        batches: list[Batch] = []
        wake: set[str] = set()
        for entry, task in zip(page, there, strict=True):
            spec, own = specs[entry.key], (entry.key, entry.revision)
            if task is not None:
                batches.append(Batch([own], (), [entry.key]))
                continue
            lane, row = lanes.of(spec), None
            if spec.ordering_key is not None:
                if (spec.pool, spec.ordering_key) not in row_of:
                    continue
                row = row_of.pop((spec.pool, spec.ordering_key))
            if not lanes.may_step(spec):
                continue
            try:
                batch = submitted(entry.key[1], spec, lane, row, now)
            except (TornRecord, SchemaTooNew) as error:  # the row of its ordering key, which goes with the last task
                log_once(self._handle, f"a child in the outbox, of key {spec.pool}/{spec.ordering_key},", error)
                continue
            batches.append(Batch([own, *batch.checks], batch.puts, [entry.key]))
            wake |= lane_wakes(spec, lane)
        return await _count(self._handle, batches, wake)


def submitted(id_: bytes, spec: Spec, lane: LaneSeen | None, row: Entry | None, now: int) -> Batch:
    """Return the batch that submits a child; `row` is that of its ordering key, None where there is none, as `lane`."""
    seen = None if row is None else KeySeen(row.revision, decode(row.value, KeyRow, "key"))
    if spec.ordering_key is not None:
        spec = msgspec.structs.replace(spec, number=seen.row.next if seen is not None else 0)
    check: Check = (lane_key(spec), lane.revision if lane is not None else ABSENT)
    return submit(id_, spec, check, seen, now, is_open=lane is not None and not lane.is_closing)


class Cut:
    """The chore that cancels the children of a task that has ended; their own are cut when they end."""

    prefix: Key = CUT()

    def __init__(self, handle: StoreHandle) -> None:
        self._handle, self._pages = handle, Pages(handle.store, CUT(), size=LIMITS.ranges)

    async def page(self) -> int:
        """See `Chore.page`. The task's own key goes last, so that a cut that died half way is resumed by any other."""
        return await self._pages.move(self._cut_all)

    async def _cut_all(self, page: Sequence[Entry]) -> int:
        return sum([await self._cut(cut) for cut in page])

    async def _cut(self, cut: Entry) -> int:
        children = CHILD(cut.key[1])
        if moved := await Pages(self._handle.store, children, size=FAMILY_BATCH).move(self._end_all):
            return moved
        (left,) = await self._handle.store.count([children])
        if left:
            return 0
        return await _count(self._handle, [Batch([(cut.key, cut.revision)], (), [cut.key])], set())

    async def _end_all(self, children: Sequence[Entry]) -> int:
        return sum([await self._end(child) for child in children])

    async def _end(self, child: Entry) -> int:
        id_ = child.key[2]
        (waiting,) = await self._handle.store.get([OUTBOX(id_)])
        if waiting is not None:  # whoever would submit it checks this key
            return await _count(
                self._handle, [Batch([(waiting.key, waiting.revision)], (), [waiting.key, child.key])], set()
            )
        try:
            if not await cancel_one(self._handle, id_, Cancelled("", BECAUSE)):
                return 0
        except SchemaTooNew as error:
            log_once(self._handle, f"task {id_text(id_)}", error)
            return 0
        except StoreBusy:  # it moves, or stands nowhere: the others are not to wait for it
            return 0
        return await _count(self._handle, [Batch([(child.key, child.revision)], (), [child.key])], set())


async def cancel_one(handle: StoreHandle, id_: bytes, event: Cancelled) -> bool:
    """Cancel a task wherever it stands; return False where it moved, so that it is to be tried again."""
    try:
        spec, state, place = await find(handle.store, id_)
    except NoSuchTask:
        return True
    except TornRecord:
        return True  # it was set aside: an operator ends it
    if place is None or is_terminal(state):
        return True
    found = Found(id_, spec, state, place)
    try:
        around = await look_around(handle, found, needs_lane=False)
    except Moved:
        return False
    except TornRecord:
        return True  # as above
    batch = step(found, event, await handle.now(), around)
    wake = wakes(found, around, is_ready=False)
    if isinstance(place, Held):
        wake.add(f"lease.{place.lease.hex()}")
    (outcome,) = await (await handle.commits()).commit([batch], wake=wake)
    return isinstance(outcome, Committed)


async def _count(handle: StoreHandle, batches: Sequence[Batch], wake: set[str]) -> int:
    if not batches:
        return 0
    outcomes = await (await handle.commits()).commit(batches, wake=wake)
    return sum(isinstance(outcome, Committed) for outcome in outcomes)


async def children_of(handle: StoreHandle, id_: bytes) -> list[bytes]:
    """Return the ids of a task's children; also of those that have ended, while it has not."""
    return [entry.key[2] async for page in Pages(handle.store, CHILD(id_)) for entry in page]
