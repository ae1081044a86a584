"""The context of a task's step: pool, lane, ordering key, the task behind it, and the task's place."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from converge.codec import decode, decode_id, encode, parse_hash, stored_text
from converge.contracts.store import LIMITS, Channel, Committed, Entry, Key, Prefix, Range, Store
from converge.errors import NoSuchPool, NoSuchTask, SchemaTooNew, StoreBusy, StoreError, TornRecord
from converge.ids import id_text
from converge.machines.durable import Signal, Signals, matching
from converge.machines.events import Parked, Resumed
from converge.machines.lane import Lane, lane_of
from converge.machines.match import lane_news
from converge.machines.task import is_terminal
from converge.machines.torn import Torn, place_text, set_aside_step
from converge.model.keys import DEAD, ENDED, HELD, KEY, LANE, LEASE, ORDER, SIGNAL, SIGNALS, STATE, TASK, TORN
from converge.model.place import (
    SPLIT_KEYS,
    Around,
    Found,
    Held,
    KeyRow,
    KeySeen,
    LaneSeen,
    Place,
    Successor,
    Waiting,
    key_of,
    place_of,
    waiting_keys,
)
from converge.model.pool import Pool
from converge.model.task import Spec, State, placed
from converge.services.store.handle import CHORES, StoreHandle
from converge.services.store.pages import get_all, parts, read_all
from converge.services.store.patience import attempts
from converge.services.store.reads import Reads

log = logging.getLogger("converge.torn")

FIND_SEC = 5.0
"""How long a task is looked for that moves between two reads; one whose records contradict each other is nowhere."""

SET_ASIDE = 100
"""How many tasks that cannot be read are set aside, one after another, for one step of the task before them."""


class Moved(Exception):
    """The task has ended since it was found, or another step of the call opens its lane: look for it again."""


async def look_around(handle: StoreHandle, found: Found, *, needs_lane: bool) -> Around:
    """Read what a step of the task needs: nothing at all in the usual case, a finish without an ordering key.

    Raises:
        Moved: The task has ended meanwhile, and its ordering key's row went with it.
        TornRecord: The row is missing though the task has not ended.
    """
    if not needs_lane and not _is_active(found):
        return Around(await _pool(handle, found.spec))
    (answer,) = await look_around_all(handle, [found], needs_lane=needs_lane)
    if isinstance(answer, Exception):
        raise answer
    return answer


async def look_around_all(
    handle: StoreHandle, all_found: Sequence[Found], *, needs_lane: bool = True
) -> list[Around | Moved | StoreError]:
    """Read what a step of each of the tasks needs, in few calls. The answers of those that failed are their errors.

    Those whose lane is opened by the step of another of them are `Moved`, too.
    """
    rows = await _key_rows(handle.store, [found for found in all_found if _is_active(found)])
    # Only after the rows: a submit in between has changed the row, so the step of a task behind which nobody was seen
    # conflicts.
    nexts = await _nexts(handle, {id_: row[0] for id_, row in rows.items() if type(row) is tuple})
    specs = [found.spec for found in all_found] if needs_lane else []
    specs += [one.spec for one in nexts.values() if type(one) is Successor]
    lanes = await lanes_seen(handle, specs)
    answers: list[Around | Moved | StoreError] = []
    for found in all_found:
        row, successor = rows.get(found.id), nexts.get(found.id)
        if isinstance(row, Exception):
            answers.append(row)
        elif isinstance(successor, Exception):
            answers.append(successor)
        else:
            ready = [found.spec] if needs_lane else []
            if successor is not None:
                successor = successor._replace(lane=lanes.of(successor.spec))
                ready.append(successor.spec)
            if ready and not lanes.may_step(*ready):
                answers.append(Moved())
                continue
            lane = lanes.of(found.spec) if needs_lane else None
            answers.append(Around(await _pool(handle, found.spec), lane, row and row[1], successor))
    return answers


async def _pool(handle: StoreHandle, spec: Spec) -> Pool:
    try:
        return (await handle.pool(spec.pool)).pool
    except (NoSuchPool, TornRecord, SchemaTooNew):
        return Pool(id=spec.pool)  # its tasks can still end, under the default retention


def _is_active(found: Found) -> bool:
    """Return whether the end of the task frees the next one of its ordering key; one that waits has none."""
    return found.spec.ordering_key is not None and type(found.place) is not Waiting


async def _key_rows(
    store: Store, all_found: Sequence[Found]
) -> dict[bytes, tuple[Prefix, KeySeen] | Moved | StoreError]:
    """Return by the id of each active task where its successors wait, and the row of its ordering key."""
    rows: dict[bytes, tuple[Prefix, KeySeen] | Moved | StoreError] = {}
    entries = await get_all(store, [KEY(found.spec.pool, found.spec.ordering_key) for found in all_found])
    for found, row in zip(all_found, entries, strict=True):
        spec = found.spec
        try:
            rows[found.id] = (
                await _rowless(store, found)
                if row is None
                else (ORDER(spec.pool, spec.ordering_key), KeySeen(row.revision, _key_row(row, spec)))
            )
        except (TornRecord, SchemaTooNew) as error:
            rows[found.id] = error
    return rows


def _key_row(row: Entry, spec: Spec) -> KeyRow:
    """Return the row of an ordering key; of a torn one what lets its active task end: it goes with the last one."""
    try:
        return decode(row.value, KeyRow, f"key {spec.pool}/{spec.ordering_key}")
    except TornRecord as error:
        log.error("the tasks of an ordering key go on, its next submits wait until they have ended: %s", error)
        return KeyRow(0, v=SPLIT_KEYS)


async def _rowless(store: Store, found: Found) -> Moved | StoreError:
    """Return why an ordering key has no row: it goes in the same step in which the last task of its key ends."""
    task, state = await store.get([TASK(found.id), STATE(found.id)])
    if task is None or (state is not None and is_terminal(decode(state.value, State, id_text(found.id)))):
        return Moved()
    return TornRecord(
        f"key {found.spec.pool}/{found.spec.ordering_key}",
        f"the row is missing while task {id_text(found.id)} has not ended",
    )


async def _nexts(handle: StoreHandle, prefixes: Mapping[bytes, Prefix]) -> dict[bytes, Successor | StoreError]:
    """Return the first task that waits under each prefix, without its lane; nothing where none waits.

    One that cannot be read is set aside, and the one behind it is the first: it must not keep the others waiting.
    """
    nexts: dict[bytes, Successor | StoreError] = {}
    left: Mapping[bytes, Prefix] = prefixes
    for _ in range(SET_ASIDE):
        found, unread = await _first_of(handle.store, left)
        nexts |= found
        for id_, (head, task_id, error) in unread.items():
            nexts[id_] = error
            await move_aside(handle, _of_head(head, task_id), head.key, head.revision, error)
        left = {id_: prefixes[id_] for id_ in unread}
        if not left:
            break
        for id_ in left:
            nexts.pop(id_, None)
    return nexts


_Unread = dict[bytes, tuple[Entry, bytes, StoreError]]


def _of_head(head: Entry, id_: bytes) -> Found:
    _, pool, ordering_key, number = head.key
    spec = Spec(pool, "0" * 32, 0, 0, 0, ordering_key=ordering_key, number=number)
    return Found(id_, spec, None, Waiting(head.revision))


async def _first_of(store: Store, prefixes: Mapping[bytes, Prefix]) -> tuple[dict[bytes, Successor], _Unread]:
    heads: dict[bytes, Entry] = {}
    for some in parts(list(prefixes), LIMITS.ranges):
        pages = await store.scan([Range(prefixes[id_], None, 1) for id_ in some])
        heads |= {id_: page[0] for id_, page in zip(some, pages, strict=True) if page}
    nexts: dict[bytes, Successor] = {}
    unread: _Unread = {}
    waiting: dict[bytes, bytes] = {}
    for id_, head in heads.items():
        try:
            waiting[id_] = decode_id(head.value, f"order {head.key[1]}/{head.key[2]}")
        except (TornRecord, SchemaTooNew) as error:
            # Whose it was nothing says; what is kept of it needs a name of its own.
            name = hashlib.blake2b(place_text(head.key).encode(), digest_size=16).digest()
            unread[id_] = head, name, error
    tasks = await get_all(store, [TASK(id_) for id_ in waiting.values()])
    for (id_, next_), task in zip(waiting.items(), tasks, strict=True):
        text = id_text(next_)
        try:
            if task is None:
                raise TornRecord(f"task {text}", "its specification is missing")
            spec = _to_be_freed(task.value, text)
            # Its number is that of the key under which it was found.
            spec = msgspec.structs.replace(spec, number=heads[id_].key[3])
            nexts[id_] = Successor(next_, spec, heads[id_].revision, None)
        except (TornRecord, SchemaTooNew) as error:
            unread[id_] = heads[id_], next_, error
    return nexts, unread


def _to_be_freed(raw: bytes, text: str) -> Spec:
    """Return the specification; of a newer format as much as says where its task goes, for who reads it to claim."""
    try:
        return decode(raw, Spec, text)
    except SchemaTooNew:
        if (spec := placed(raw)) is None:
            raise
        return spec


async def move_aside(
    handle: StoreHandle, found: Found, key: Key, revision: int, error: StoreError, around: Around | None = None
) -> bool:
    """Take a task that cannot be read from its place, and say so; return whether this call did it.

    Raises:
        StoreError: As `Store.commit`.
    """
    torn = Torn(place_text(key), stored_text(str(error)), await handle.now(), found.spec.pool)
    batch = set_aside_step(found, key, revision, torn, around)
    wake = wakes(found, around, is_ready=False) if around is not None else {CHORES} if found.spec.parent else ()
    (outcome,) = await (await handle.commits()).commit([batch], wake=wake)
    if not isinstance(outcome, Committed):
        return False
    log.error(
        "a task cannot be read and was set aside; `converge doctor` lists it, `converge tasks retry %s` or "
        "`converge tasks purge` ends it: %s",
        id_text(found.id),
        error,
    )
    return True


class Lanes:
    """The lanes of the tasks of one call, as they were seen. One that is closed is opened by the first step that puts a
    task there, so that nobody can close it in between; of further steps that do, none could take effect in that call.
    """

    def __init__(self, seen: Mapping[Key, LaneSeen]) -> None:
        self._seen = seen
        self._opened: set[Key] = set()

    def of(self, spec: Spec) -> LaneSeen | None:
        """Return the lane of this task, None if there is none."""
        return self._seen.get(lane_key(spec))

    def may_step(self, *specs: Spec) -> bool:
        """Return whether one more step of this call may make these tasks ready; if not, it is for the next call."""
        closed = {key for spec in specs if (lane := self._seen.get(key := lane_key(spec))) is None or lane.is_closing}
        if closed & self._opened:
            return False
        self._opened |= closed
        return True


async def lanes_seen(handle: StoreHandle, specs: Sequence[Spec]) -> Lanes:
    """Read the lanes of these tasks."""
    keys = list({lane_key(spec): None for spec in specs})
    seen: dict[Key, LaneSeen] = {}
    for key, entry in zip(keys, await get_all(handle.store, keys), strict=True):
        try:
            lane = lane_seen(entry)
        except SchemaTooNew:
            lane = None if entry is None else LaneSeen(entry.revision)  # it is there: all that a step needs
        if lane is not None:
            seen[key] = lane
    return Lanes(seen)


def wakes(found: Found, around: Around, *, is_ready: bool) -> set[Channel]:
    """Return the channels to wake after a step: its submitter, claimers of its lane, and of the next of its key."""
    channels = {found.spec.origin}
    if found.spec.parent or (found.state is not None and found.state.has_children):
        channels.add(CHORES)
    if is_ready:
        channels |= lane_wakes(found.spec, around.lane)
    if around.successor is not None:
        channels |= lane_wakes(around.successor.spec, around.successor.lane)
    return channels - {""}


def lane_wakes(spec: Spec, lane: LaneSeen | None) -> set[Channel]:
    """Return whom to wake when a task of the lane is ready."""
    # A lane that the step opens is news to the claimers of its pool: nobody watches it yet.
    return (
        {f"lane.{spec.lane}"}
        if lane is not None and not lane.is_closing
        else {f"lane.{spec.lane}", *lane_news(lane_of(spec))}
    )


def lane_key(spec: Spec) -> Key:
    """Return the key of the task's lane."""
    return LANE(spec.pool, parse_hash(spec.lane))


def lane_seen(entry: Entry | None) -> LaneSeen | None:
    """Return what a step needs of a lane's entry."""
    if entry is None:
        return None
    try:
        return LaneSeen(entry.revision, decode(entry.value, Lane, "lane").is_closing)
    except TornRecord:
        return LaneSeen(entry.revision, is_closing=True)  # its tasks say what it is: who opens it writes it again


async def find(store: Store, id_: bytes) -> tuple[Spec, State | None, Place | None]:
    """Find the task by its id, wherever it stands; the place is None once it is terminal.

    Raises:
        NoSuchTask: It was never submitted here, or retention has removed it.
    """
    async for _ in attempts(within_sec=FIND_SEC):
        spec, state = await read_task(store, id_)
        if is_terminal(state):
            return spec, state, None
        place = await _place(store, id_, spec, state)
        if place is not None:
            return spec, state, place
        # It moves: between two reads it was taken, or put back.
    raise StoreBusy(f"task {id_text(id_)} kept moving for {FIND_SEC:g} s; ask again")


async def read_task(store: Store, id_: bytes) -> tuple[Spec, State | None]:
    """Read the task's two records.

    Raises:
        NoSuchTask: There is none.
    """
    return read_from(id_, await store.get([TASK(id_), STATE(id_)]))


def read_from(id_: bytes, entries: Sequence[Entry | None]) -> tuple[Spec, State | None]:
    """Read a task from the entries of its two records.

    Raises:
        NoSuchTask: There is none.
    """
    text = id_text(id_)
    raw_spec, raw_state = entries
    if raw_spec is None:
        raise NoSuchTask(text)
    return decode(raw_spec.value, Spec, text), None if raw_state is None else decode(raw_state.value, State, text)


async def _place(store: Store, id_: bytes, spec: Spec, state: State | None) -> Place | None:
    waiting = waiting_keys(id_, spec, state)
    for entry in await store.get((*waiting, TORN(id_))):
        if entry is not None and entry.key[0] is TORN:
            raise TornRecord(f"task {id_text(id_)}", "it was set aside; `converge tasks retry` or `purge` ends it")
        if entry is not None:
            return place_of(entry.key, entry.revision, entry.value)
    rank = state.rank if state is not None else spec.rank
    leases = await lease_ids(store)
    for some in parts(leases, LIMITS.ranges):
        for page in await store.scan([Range(HELD(lease, rank, id_), None, 1) for lease in some]):
            for entry in page:
                place = place_of(entry.key, entry.revision, entry.value)
                assert type(place) is Held, "the scan was of held keys"
                return place
    return None


async def lease_ids(store: Store) -> Sequence[bytes]:
    """Return the ids of all leases, live and dead."""
    return [entry.key[1] for family in (LEASE, DEAD) for entry in await read_all(store, family())]


class Seen(NamedTuple):
    """What has arrived for a task at the revision of its signals (0: nothing ever came).

    `match` is the oldest signal of the names that were asked for, `ended` how many of its children have ended.
    """

    revision: int
    signals: Signals
    match: tuple[int, Signal] | None
    ended: int


async def look(reads: Reads, id_: bytes, names: Sequence[str], *, counts: bool) -> Seen:
    """Read what has arrived for the task. The record of its signals is read first: what comes later has changed it.

    Raises:
        TornRecord, SchemaTooNew: It cannot be read.
        StoreError: As `Store.get`.
    """
    entry = await reads.get(SIGNALS(id_))
    text = f"signals of task {id_text(id_)}"
    signals = Signals() if entry is None else decode(entry.value, Signals, text)
    match = None
    if names and signals.next > signals.got:
        found = [(one.key[2], decode(one.value, Signal, text)) for one in await reads.all(SIGNAL(id_))]
        match = matching(found, names)
    ended = (await reads.store.count([ENDED(id_)]))[0] if counts else 0
    return Seen(0 if entry is None else entry.revision, signals, match, ended)


async def decided(reads: Reads, found: Found, event: Parked) -> Parked | Resumed:
    """Return how the attempt of a task ends that was signalled while it was parked: it may wait for just that."""
    wait = event.wait
    seen = await look(reads, found.id, wait.names, counts=wait.need > 0)
    if seen.match is not None or 0 < wait.need <= seen.ended:
        return Resumed(event.puts)
    return event._replace(revision=seen.revision, signals=encode(seen.signals))


async def adopted(handle: StoreHandle, found: Found) -> Found | None:
    """Return the claim as it stands if it is still ours, but the task is being called off: its place was put again.

    Raises:
        StoreError: As `Store.get`.
    """
    held, raw = await handle.store.get([key_of(found), STATE(found.id)])
    if held is None or raw is None or type(found.place) is not Held:
        return None
    state = decode(raw.value, State, id_text(found.id))
    if state.calling is None or held.revision == found.place.token:
        return None
    return msgspec.structs.replace(found, state=state, place=found.place._replace(token=held.revision))
