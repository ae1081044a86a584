"""Tasks whose records cannot be read: set aside with their place, told once, ended by an operator."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence

import msgspec

from converge.codec import decode, encode, parse_hash
from converge.contracts.store import Batch, Conflict, Entry, Key, Prefix
from converge.errors import SchemaTooNew, StoreError, TornRecord
from converge.ids import id_text
from converge.machines.torn import Torn, put_back_unread
from converge.model.keys import ACTIVE, CHILD, DEDUP, DONE, KEY, LATER, LIMIT, ORDER, OUTBOX, READY, STATE, TASK, TORN
from converge.model.place import Around, Found, KeyRow, place_of
from converge.model.task import Spec, placed
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages
from converge.services.tasks.surroundings import Moved, lane_wakes, lanes_seen, look_around, move_aside

log = logging.getLogger("converge.torn")


async def set_aside(handle: StoreHandle, key: Key, revision: int, id_: bytes, error: StoreError) -> bool:
    """Set aside a task that cannot be read, with its place, for an operator; if it was the active one of an ordering
    key, free the next. Return whether this call did it.

    Raises:
        StoreError: As `Store.commit`; nothing was changed, or that is not known.
    """
    found = await _as_found(handle, key, revision, id_)
    around: Around | None = None
    if found.spec.ordering_key is not None:
        try:
            around = await look_around(handle, found, needs_lane=False)
        except (Moved, TornRecord, SchemaTooNew):
            around = None
    return await move_aside(handle, found, key, revision, error, around)


async def _as_found(handle: StoreHandle, key: Key, revision: int, id_: bytes) -> Found:
    """Return what is known of the task; its pool is empty where nothing says it."""
    (raw,) = await handle.store.get([TASK(id_)])
    spec = placed(raw.value) if raw is not None else None
    if spec is None and key[0] is DONE:
        spec = Spec(key[1], "0" * 32, 0, 0, 0)
    elif spec is None and key[0] is ORDER:
        spec = Spec(key[1], "0" * 32, 0, 0, 0, ordering_key=key[2], parent=await _parent_of(handle, id_))
    elif spec is None:
        pool, ordering_key = await _ordering_of(handle, id_) if key[0] is not OUTBOX else ("", None)
        spec = Spec(pool, "0" * 32, 0, 0, 0, ordering_key=ordering_key, parent=await _parent_of(handle, id_))
    elif key[0] is DONE:
        spec = msgspec.structs.replace(spec, parent="")  # which was told long ago
    return Found(id_, spec, None, place_of(key, revision))


async def _parent_of(handle: StoreHandle, id_: bytes) -> str:
    """Return the id of the task's parent as its record has it, empty if it has none: its own record may not say."""
    async for page in Pages(handle.store, CHILD()):
        for entry in page:
            if entry.key[2] == id_:
                return str(entry.key[1].hex())
    return ""


async def set_parked_aside(handle: StoreHandle, id_: bytes, error: StoreError) -> bool:
    """Set aside a task that cannot be read, if it stands where nobody would meet it: it is parked, perhaps without a
    time. One of a newer format is left where it is. Return whether this call did it.

    Raises:
        StoreError: As `Store.commit`; nothing was changed, or that is not known.
    """
    if isinstance(error, SchemaTooNew):
        log_once(handle, f"task {id_text(id_)}", error)
        return False
    entry = await _standing(handle, id_, LATER())
    return entry is not None and await set_aside(handle, entry.key, entry.revision, id_, error)


async def set_standing_aside(handle: StoreHandle, id_: bytes, error: TornRecord) -> Entry | None:
    """Set aside a task that cannot be read, or whose record is missing, wherever it stands, for an operator who names
    it: where nobody claims, nobody meets it. Return what stands of it; None where it is held, which its holder ends,
    moved meanwhile, or is not there at all.

    Raises:
        StoreError: As `Store.commit`.
    """
    (raw,) = await handle.store.get([TASK(id_)])
    spec = placed(raw.value) if raw is not None else None
    places = (READY(), LATER(), ORDER(), DONE())
    if spec is not None:
        places = (READY(parse_hash(spec.lane)), LATER(), ORDER(spec.pool), DONE(spec.pool))
    for prefix in places:
        entry = await _standing(handle, id_, prefix)
        if entry is not None:
            # What was missing may have been submitted meanwhile: a place is written together with its record.
            if raw is not None or await handle.store.get([TASK(id_)]) == [None]:
                await set_aside(handle, entry.key, entry.revision, id_, error)
            break
    (torn,) = await handle.store.get([TORN(id_)])
    return torn


async def _standing(handle: StoreHandle, id_: bytes, prefix: Prefix) -> Entry | None:
    """Return the key of the task under the prefix, of a family of places."""
    waiting = encode(id_.hex())
    async for page in Pages(handle.store, prefix):
        for entry in page:
            if entry.value == waiting if prefix[0] is ORDER else entry.key[-1] == id_:
                return entry
    return None


async def _ordering_of(handle: StoreHandle, id_: bytes) -> tuple[str, str | None]:
    """Return the pool and the ordering key whose active task this is: nothing else says so of one that is torn."""
    wanted = encode(id_.hex())
    for family in (ACTIVE, KEY):
        async for page in Pages(handle.store, family()):
            for entry in page:
                if entry.value == wanted or (family is KEY and _active_in(entry) == id_.hex()):
                    return entry.key[1], entry.key[2]
    return "", None


def _active_in(entry: Entry) -> str:
    try:
        return decode(entry.value, KeyRow, "key").active
    except StoreError:
        return ""


async def hand_back_newer(handle: StoreHandle, key: Key, revision: int, id_: bytes, error: StoreError) -> bool:
    """Release a claim whose record is of a newer format, uncounted, and leave its lane to processes that read it;
    return whether it was released. One whose lane cannot be known goes back with the lease.

    Raises:
        StoreError: As `Store.commit`; nothing was changed, or that is not known.
    """
    (raw,) = await handle.store.get([TASK(id_)])
    spec = placed(raw.value) if raw is not None else None
    if spec is None:
        log_once(handle, f"task {id_text(id_)}", error)
        return False
    handle.newer_lanes.add(parse_hash(spec.lane))
    log_once(handle, f"lane {spec.lane} of pool {spec.pool}", error)
    lane = (await lanes_seen(handle, [spec])).of(spec)
    batch = put_back_unread(spec, key, revision, lane)
    (outcome,) = await (await handle.commits()).commit([batch], wake=lane_wakes(spec, lane))
    return not isinstance(outcome, Conflict)


def log_once(handle: StoreHandle, what: str, error: StoreError) -> None:
    """Log once in this process that an unreadable record stays where it is."""
    if what not in handle.logged:
        handle.logged.add(what)
        why = " to processes of a newer release" if isinstance(error, SchemaTooNew) else ""
        log.error("%s is left%s, other work goes on: %s", what, why, error)


async def put_away(handle: StoreHandle, key: Key, revision: int, id_: bytes, error: StoreError) -> bool:
    """Set aside a claim that cannot be read, or leave it to a newer release.

    Raises:
        StoreError: As `Store.commit`.
    """
    does = hand_back_newer if isinstance(error, SchemaTooNew) else set_aside
    return await does(handle, key, revision, id_, error)


async def torn_tasks(handle: StoreHandle) -> AsyncIterator[tuple[bytes, Torn]]:
    """Yield the tasks that were set aside, with what is known of each."""
    async for page in Pages(handle.store, TORN()):
        for entry in page:
            yield entry.key[1], read_torn(entry)


def read_torn(entry: Entry) -> Torn:
    """Return what stands of a task that was set aside, as far as it can be read."""
    try:
        return decode(entry.value, Torn, "torn")
    except StoreError as error:
        return Torn("", str(error), 0)


async def end_torn(handle: StoreHandle, entry: Entry) -> bool:
    """Remove a task that was set aside, with its records and its dedup key; return whether this call did it.

    Raises:
        StoreError: As `Store.commit`.
    """
    id_ = entry.key[1]
    deletes = [entry.key, TASK(id_), STATE(id_)]
    (raw,) = await handle.store.get([TASK(id_)])
    spec = placed(raw.value) if raw is not None else None
    if spec is not None and spec.deadline:
        deletes.append(LIMIT(spec.deadline, id_))
    deletes += await _dedup_keys(handle, id_, None if spec is None else spec.pool)
    (outcome,) = await (await handle.commits()).commit([Batch([(entry.key, entry.revision)], (), deletes)])
    return not isinstance(outcome, Conflict)


async def _dedup_keys(handle: StoreHandle, id_: bytes, pool: str | None) -> Sequence[Key]:
    """Return the dedup keys that are the task's: its own record may not say."""
    mark = f'"{id_.hex()}"'.encode()
    prefix = DEDUP() if pool is None else DEDUP(pool)
    return [entry.key async for page in Pages(handle.store, prefix) for entry in page if mark in entry.value]
