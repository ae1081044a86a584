"""How many tasks of each pool stand where: what an operator sees of a pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import attrs

from converge.codec import decode
from converge.contracts.store import LIMITS, Entry, Range, Store
from converge.errors import SchemaTooNew, TornRecord
from converge.ids import id_text
from converge.machines.durable import PARKED
from converge.machines.task import TaskState
from converge.model.keys import DONE, HELD, LANE, LATER, ORDER, READY, STATE, TASK, Key, pack
from converge.model.pool import Pool
from converge.model.task import Spec, State
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages, count_all, get_all, parts, read_all
from converge.services.tasks.surroundings import lease_ids

log = logging.getLogger("converge.census")

SAMPLE = 50
"""Tasks of a state that are weighed, from each of two places."""

ENDED = (TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)


@attrs.frozen(kw_only=True)
class Census:
    """A pool's tasks by place: ready to be claimed, not due yet, parked (they wait for a signal, a child or a time),
    waiting behind their ordering key, held by an agent; and those that ended.
    """

    ready: int = 0
    later: int = 0
    parked: int = 0
    waiting: int = 0
    held: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0

    @property
    def done(self) -> int:
        """All that have ended and are still kept."""
        return self.completed + self.failed + self.cancelled

    @property
    def live(self) -> int:
        """All that have not ended."""
        return self.ready + self.later + self.parked + self.waiting + self.held


async def census(store: Store, pool_ids: Sequence[str]) -> dict[str, Census]:
    """Count the tasks of the pools; one that moves meanwhile may count twice or not at all.

    What is ready or done is counted by the store; what is later or held is read: its keys do not tell the pool.
    """
    found = await live(store, pool_ids)
    for pool_id in pool_ids:
        counts = await ended(store, pool_id)
        found[pool_id] = attrs.evolve(found[pool_id], **{state.value.lower(): count for state, count in counts.items()})
    return found


async def live(store: Store, pool_ids: Sequence[str]) -> dict[str, Census]:
    """Count, as `census` does, the tasks that have not ended: what a drain waits for."""
    lanes = {pool_id: [entry.key[2] for entry in await read_all(store, LANE(pool_id))] for pool_id in pool_ids}
    pool_of = {lane.hex(): pool_id for pool_id, hashes in lanes.items() for lane in hashes}
    later, parked = await _later(store, pool_of)
    held = await _held(store)
    found = {}
    for pool_id in pool_ids:
        found[pool_id] = Census(
            ready=sum(await count_all(store, [READY(lane) for lane in lanes[pool_id]])),
            later=later.get(pool_id, 0),
            parked=parked.get(pool_id, 0),
            waiting=sum(await count_all(store, [ORDER(pool_id)])),
            held=held.get(pool_id, 0),
        )
    return found


async def _later(store: Store, pool_of: dict[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    """Count by pool what is not due, and what is parked; tasks of an unknown lane, closed since, are looked up."""
    later: dict[str, int] = {}
    parked: dict[str, int] = {}
    async for page in Pages(store, LATER()):
        unknown: dict[bool, list[Key]] = {False: [], True: []}
        for entry in page:
            lane, mark, _ = _text_of(entry).partition(PARKED)
            totals, pool_id = parked if mark else later, pool_of.get(lane)
            if pool_id is None:
                unknown[bool(mark)].append(TASK(entry.key[2]))
            else:
                totals[pool_id] = totals.get(pool_id, 0) + 1
        await _add_pools(store, unknown[False], later)
        await _add_pools(store, unknown[True], parked)
    return later, parked


def _text_of(entry: Entry) -> str:
    try:
        return decode(entry.value, str, "later")
    except (TornRecord, SchemaTooNew):
        return ""  # its task says more


async def _held(store: Store) -> dict[str, int]:
    totals: dict[str, int] = {}
    for lease in await lease_ids(store):
        async for page in Pages(store, HELD(lease)):
            await _add_pools(store, [TASK(entry.key[3]) for entry in page], totals)
    return totals


async def _add_pools(store: Store, tasks: Sequence[Key], totals: dict[str, int]) -> None:
    for entry in await store.get(tasks) if tasks else ():
        if entry is not None:
            try:
                pool_id = decode(entry.value, Spec, id_text(entry.key[1])).pool
            except (TornRecord, SchemaTooNew) as error:
                log.error("a task is not counted: %s", error)
            else:
                totals[pool_id] = totals.get(pool_id, 0) + 1


async def ended(store: Store, pool_id: str) -> dict[TaskState, int]:
    """Count the ended tasks of a pool by state."""
    counts = await store.count([DONE(pool_id, state.value) for state in ENDED])
    return dict(zip(ENDED, counts, strict=True))


async def bytes_each(store: Store, pool: Pool, spread: float) -> float:
    """Return what an ended task of the pool weighs: its records and keys, without what the store adds. Of each state
    the oldest are weighed, and some from a place that `spread` (0 to 1) chooses. 0: there are none.
    """
    first = await store.scan([Range(DONE(pool.id, state.value), None, SAMPLE) for state in ENDED])
    now, pages = await store.time(), list(first)
    for state, page in zip(ENDED, first, strict=True):
        if len(page) == SAMPLE:
            keep_sec = pool.keep_completed_sec if state is TaskState.COMPLETED else pool.keep_failed_sec
            begins = page[-1].key[3]
            at = begins + int(spread * max(0, now + int(keep_sec * 1_000_000) - begins))
            pages.append(await Pages(store, DONE(pool.id, state.value), after=(at, b"\0" * 16), size=SAMPLE).read())
    keys = {entry.key for page in pages for entry in page}
    records = await get_all(store, [family(key[4]) for key in keys for family in (TASK, STATE)])
    size = sum(len(entry.value) + len(pack(entry.key)) for entry in records if entry is not None)
    return (size + sum(len(pack(key)) for key in keys)) / len(keys) if keys else 0.0


async def backlog(handle: StoreHandle, pool_id: str) -> int:
    """Count the pool's tasks that are not terminal: ready, later, parked, waiting behind a key, held.
    A task that moves meanwhile may count twice or not.
    """
    return (await live(handle.store, [pool_id]))[pool_id].live


async def oldest_ready_sec(handle: StoreHandle, pool_ids: Sequence[str]) -> dict[str, float]:
    """Return for each pool the seconds for which the task has been ready that has waited longest, of those that are the
    next of their lane; 0: none is ready.

    Raises:
        StoreError: As `Store.scan`.
    """
    return {pool_id: await _oldest(handle, pool_id) for pool_id in pool_ids}


async def _oldest(handle: StoreHandle, pool_id: str) -> float:
    lanes: list[Key] = [READY(entry.key[2]) for entry in await read_all(handle.store, LANE(pool_id))]
    heads: list[bytes] = []
    for some in parts(lanes, LIMITS.ranges):
        pages = await handle.store.scan([Range(lane, None, 1) for lane in some])
        heads += [page[0].key[3] for page in pages if page]
    if not heads:
        return 0.0
    specs = await get_all(handle.store, [TASK(id_) for id_ in heads])
    states = await get_all(handle.store, [STATE(id_) for id_ in heads])
    dues = [due for spec, state in zip(specs, states, strict=True) if (due := _due(spec, state)) is not None]
    return max(0.0, (await handle.now() - min(dues)) / 1_000_000) if dues else 0.0


def _due(spec: Entry | None, state: Entry | None) -> int | None:
    """Return from when on the task could be claimed; None: it is gone, or cannot be read."""
    try:
        if state is not None:
            return decode(state.value, State, "state").due
        return decode(spec.value, Spec, "task").due if spec is not None else None
    except (TornRecord, SchemaTooNew):
        return None  # the claim that meets it tells of it
