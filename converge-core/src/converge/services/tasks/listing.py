"""Listing tasks by state: where tasks in it stand, read a page at a time."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing

from anyio.lowlevel import checkpoint

from converge.codec import decode, decode_id
from converge.contracts.store import Entry, Store
from converge.errors import SchemaTooNew, StoreError, TornRecord
from converge.ids import id_text
from converge.machines.task import TERMINAL, TaskState
from converge.model.keys import DONE, HELD, LANE, LATER, ORDER, POOL, READY, STATE, TASK, Key
from converge.model.place import Place, place_of
from converge.model.task import Spec, State, Task
from converge.services.store.pages import Pages, read_all
from converge.services.store.processes import node_ids
from converge.services.tasks.records import to_task
from converge.services.tasks.surroundings import lease_ids

log = logging.getLogger("converge.listing")

SHOWN_TOGETHER = 200
"""Tasks that a visitor is shown at a time."""


async def list_tasks(store: Store, state: TaskState | None, pool_id: str | None, limit: int) -> dict[str, Task]:
    """Return up to `limit` tasks in that state (None: any, the live ones first), of that pool (None: all), by id.

    A task that moves while the list is made may be in it as it was a moment before, or not at all. One that cannot be
    read is left out, and logged: it must not hide all others.
    """
    tasks: dict[str, Task] = {}

    def keep(page: Sequence[Task]) -> bool:
        for task in page[: limit - len(tasks)]:
            tasks[task.id] = task
        return len(tasks) < limit

    if limit > 0:
        await visit_tasks(store, state, pool_id, keep)
    return tasks


Visit = Callable[[Sequence[Task]], bool]
"""Is given the tasks a page at a time; tells whether to go on."""


Unread = Callable[[Key, bytes, TornRecord | SchemaTooNew], object]
"""Is told the place and the id of a task that cannot be read, and why."""


def log_left_out(error: StoreError) -> None:
    """Log why a task is not in a list."""
    log.error("a task is left out of a list: %s", error)


def _log(_key: Key, _id: bytes, error: StoreError) -> None:
    log_left_out(error)


async def visit_tasks(
    store: Store, state: TaskState | None, pool_id: str | None, visit: Visit, unread: Unread = _log
) -> None:
    """Show the visitor all tasks in that state (None: any), of that pool (None: all), as `list_tasks` does."""
    async with aclosing(_prefixes(store, state, pool_id)) as prefixes:
        async for prefix in prefixes:
            await checkpoint()  # each may be a single page, and there may be thousands
            if not await _visit_under(store, prefix, state, pool_id, visit, unread):
                break


async def _prefixes(store: Store, state: TaskState | None, pool_id: str | None) -> AsyncGenerator[Key, None]:
    """Yield where ids of tasks in that state stand; it iterates no other generator, which it would leave open."""
    pools = [pool_id] if pool_id is not None else [entry.key[1] for entry in await read_all(store, POOL())]
    if state in (None, TaskState.ASSIGNED):
        for lease in await lease_ids(store):
            yield HELD(lease)
    if state in (None, TaskState.PENDING):
        for pool in pools:
            for lane in await read_all(store, LANE(pool)):
                yield READY(lane.key[2])
            yield ORDER(pool)
    if state in (None, TaskState.PENDING, TaskState.WAITING):
        yield LATER()
    for pool in pools:
        for terminal in sorted(TERMINAL if state is None else TERMINAL & {state}):
            yield DONE(pool, terminal.value)


async def _visit_under(
    store: Store, prefix: Key, state: TaskState | None, pool_id: str | None, visit: Visit, unread: Unread
) -> bool:
    """Show the visitor the tasks that stand under the prefix; return whether to go on."""
    async for page in Pages(store, prefix, size=SHOWN_TOGETHER):
        ids = {entry.key: id_ for entry in page if (id_ := _id_of(entry)) is not None}
        records = await store.get([family(id_) for id_ in ids.values() for family in (TASK, STATE)]) if ids else ()
        stood = [entry for entry in page if entry.key in ids]
        nodes = await node_ids(store, {entry.key[1] for entry in stood if entry.key[0] is HELD})
        every = zip(stood, ids.values(), records[::2], records[1::2], strict=True)
        found = [_task(*one, nodes, unread) for one in every]
        lost = {entry.key: entry for entry, spec in zip(stood, records[::2], strict=True) if spec is None}
        if lost:
            await _tell_lost(store, ids, lost, unread)
        wanted = [
            task
            for task in found
            if task is not None and state in (None, task.state) and pool_id in (None, task.pool_id)
        ]
        if wanted and not visit(wanted):
            return False
    return True


async def _tell_lost(store: Store, ids: Mapping[Key, bytes], stood: Mapping[Key, Entry], unread: Unread) -> None:
    """Tell of those whose record is missing while their place is still the same: the others have ended meanwhile."""
    again = await store.get([*stood, *(TASK(ids[key]) for key in stood)])
    for (key, before), now, spec in zip(stood.items(), again[: len(stood)], again[len(stood) :], strict=True):
        if now is not None and now.revision == before.revision and spec is None:
            id_ = ids[key]
            unread(key, id_, TornRecord(f"task {id_text(id_)}", "its specification is missing"))


def _task(
    entry: Entry, id_: bytes, spec: Entry | None, state: Entry | None, nodes: Mapping[bytes, str], unread: Unread
) -> Task | None:
    if spec is None:
        return None
    text = id_text(id_)
    place: Place | None = None if entry.key[0] is DONE else place_of(entry.key, entry.revision, entry.value)
    try:
        found = None if state is None else decode(state.value, State, text)
        by = nodes[entry.key[1]] if entry.key[0] is HELD else ""
        return to_task(id_, decode(spec.value, Spec, text), found, place, by=by)
    except (TornRecord, SchemaTooNew) as error:
        unread(entry.key, id_, error)
        return None


def _id_of(entry: Entry) -> bytes | None:
    """Return the id of the task that stands there; None where the entry does not say it."""
    if entry.key[0] is not ORDER:
        id_: bytes = entry.key[_ID_AT[entry.key[0]]]
        return id_
    try:
        return decode_id(entry.value, f"order {entry.key[1]}/{entry.key[2]}")
    except (TornRecord, SchemaTooNew) as error:
        log_left_out(error)
        return None


_ID_AT = {READY: 3, HELD: 3, LATER: 2, DONE: 4}
"""Where the id is in a key of each family."""
