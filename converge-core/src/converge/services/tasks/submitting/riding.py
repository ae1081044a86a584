"""Submitting within a transaction of the caller's: one sequence of requests, answered with or without an event loop.

Outside the transaction, each by a commit of its own, it reads the pools and opens the lanes; within it, it puts the
tasks. So the transaction holds nothing that other submits need, but for dedup keys and ordering keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, NamedTuple

from converge.codec import FIRST, decode, encode
from converge.codec import FORMAT as KNOWN
from converge.contracts.store import ABSENT, LIMITS, Batch, Channel, Check, Committed, Conflict, Entry, Key, Prefix
from converge.contracts.transactions import Side, Within
from converge.env import SYSTEM
from converge.errors import (
    InvalidValue,
    NoSuchPool,
    SchemaTooNew,
    StoreBusy,
    StoreRefused,
    StoreRolledBack,
    TooManyLanes,
)
from converge.ids import check_name, id_bytes, id_text, uuids7
from converge.machines.durable import submit
from converge.machines.lane import LANES, Lane
from converge.machines.match import lane_news
from converge.model.formats import FORMATS, StoreFormat
from converge.model.keys import DEDUP, EPOCH, FORMAT, KEY, LANE, POOL, TASK
from converge.model.place import SPLIT_KEYS, KeyRow, KeySeen
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.store.handle import StoreHandle
from converge.services.store.history import ROLLED_BACK
from converge.services.tasks.records import check_deadline, kind_of, to_spec
from converge.services.tasks.submitting.asks import Ask, Group, answers, ordered_batch, stored_as, without_repeats
from converge.services.tasks.surroundings import lane_seen

TRIES = 50
"""How often what met a conflict is tried again: each time another was faster."""


class Now(NamedTuple):
    """Store time, please."""


class Get(NamedTuple):
    """These keys."""

    keys: Sequence[Key]
    is_within: bool


class Commit(NamedTuple):
    """These batches."""

    batches: Sequence[Batch]
    wake: Collection[Channel]
    is_within: bool


class Count(NamedTuple):
    """The keys under this prefix."""

    prefix: Prefix


class NoteFormat(NamedTuple):
    """As `Store.note_format`."""

    number: int


Request = Now | Get | Commit | Count | NoteFormat
Steps = Generator[Request, Any, Any]
"""What to ask for next; is sent the answer."""


class Riding:
    """Submits into the transaction of a `Within`: what a `TaskManager` on one uses."""

    def __init__(self, within: Within) -> None:
        self._within = within
        self._outside = StoreHandle.of(within.outside)

    async def submit(self, tasks: Sequence[Task]) -> list[str]:
        """Submit all; return their ids in order. See `Submits.submit`."""
        commits = await self._outside.commits()
        if commits.is_rolled_back:
            raise StoreRolledBack(ROLLED_BACK)
        steps = ride(tasks, self._outside.env.entropy, self._outside.origin, commits.history.epoch)
        answer: Any = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as end:
                return list(end.value)
            answer = await self._answer(request)

    async def _answer(self, request: Request) -> Any:
        match request:
            case Now():
                return await self._outside.now()
            case Get(keys, is_within):
                return await (self._within if is_within else self._outside.store).get(keys)
            case Commit(batches, wake, True):
                return await self._within.commit(batches, wake=wake)
            case Commit(batches, wake, False):
                return await (await self._outside.commits()).commit(batches, wake=wake)
            case Count(prefix):
                return (await self._outside.store.count([prefix]))[0]
            case NoteFormat(number):
                return await self._outside.store.note_format(number)


def submit_through(outside: Side, within: Side, tasks: Sequence[Task]) -> list[str]:
    """Submit all within the transaction of the one side; return their ids in order. For code without an event loop.

    Raises:
        InvalidValue, InvalidName, ValueTooLarge, NoSuchPool: Nothing was submitted.
        DedupConflict, TooManyLanes: The first one that was refused; all others were submitted. Its `ids` has theirs.
        StoreError: As `Store.commit`.
    """
    steps = ride(tasks, SYSTEM.entropy)
    answer: Any = None
    while True:
        try:
            request = steps.send(answer)
        except StopIteration as end:
            return list(end.value)
        match request:
            case Now():
                answer = outside.time()
            case Get(keys, is_within):
                answer = (within if is_within else outside).get(keys)
            case Commit(batches, wake, is_within):
                answer = (within if is_within else outside).commit(batches, wake=wake)
            case Count(prefix):
                answer = outside.count([prefix])[0]
            case NoteFormat(number):
                outside.note_format(number)


def ride(
    tasks: Sequence[Task], entropy: Callable[[int], bytes], origin: str = "", epoch: Check | None = None
) -> Generator[Request, Any, list[str]]:
    """Ask for all that submitting the tasks within a transaction needs; return their ids in order.

    Args:
        tasks: What to submit.
        entropy: Random bytes, for ids.
        origin: The channel that is woken when a task has ended.
        epoch: The check of the store's epoch; it is read where it is not known.
    """
    ids: list[str] = yield from _Ride(tasks, entropy, origin).steps(epoch)
    return ids


class _Ride:
    """The tasks of one submit, and what was seen around them."""

    def __init__(self, tasks: Sequence[Task], entropy: Callable[[int], bytes], origin: str) -> None:
        self._tasks, self._entropy, self._origin = tasks, entropy, origin
        self._epoch: Check = (EPOCH(), ABSENT)
        self._format: Entry | None = None
        self._pools: dict[str, tuple[Pool, int]] = {}
        self._lanes: dict[Key, Check] = {}
        self._now = 0

    def steps(self, epoch: Check | None) -> Steps:
        self._now = yield Now()
        asks = yield from self._check(epoch)
        if any(ask.spec.ordering_key is not None for ask in asks):
            yield from self._require_format(SPLIT_KEYS)
        todo = [ask for ask in asks if ask.outcome is None]
        for _ in range(TRIES):
            if not todo:
                return answers(asks)
            todo = yield from self._round(todo)
        raise StoreBusy(f"{len(todo)} tasks of {len(asks)} met nothing but conflicts; submit them again")

    def _check(self, epoch: Check | None) -> Steps:
        for task in self._tasks:
            if not isinstance(task, Task):
                raise InvalidValue("task", task, "a Task")
        pools = sorted({check_name("pool", task.pool_id) for task in self._tasks})
        keys = [EPOCH(), FORMAT(), *(POOL(pool) for pool in pools)]
        found, format_, *entries = yield from _get_all(keys, is_within=False)
        if found is None:
            raise StoreRefused("nothing was ever stored there, not even an epoch; open the store once with open_store")
        self._epoch = epoch or (EPOCH(), found.revision)
        self._format = format_
        for pool, entry in zip(pools, entries, strict=True):
            if entry is None:
                raise NoSuchPool(pool, nearest=None)
            self._pools[pool] = decode(entry.value, Pool, f"pool {pool}"), entry.revision
        asks, ids = [], uuids7(self._now, self._entropy(6 * len(self._tasks)))
        for id_, task in zip(ids, self._tasks, strict=True):
            kind = kind_of(task, task.pool_id)
            spec = to_spec(task, self._pools[task.pool_id][0], self._now, self._origin, kind)
            asks.append(Ask(id_bytes("task id", task.id) if task.id else id_, task, spec, kind.key))
        late = [ask for ask in asks if ask.spec.deadline and ask.spec.deadline <= ask.spec.due]
        for ask in (yield from self._read_back(late)):
            check_deadline(ask.task, ask.spec)
        return asks

    def _require_format(self, number: int) -> Steps:
        stored = StoreFormat() if self._format is None else decode(self._format.value, StoreFormat, "format")
        if stored.number > KNOWN:
            raise SchemaTooNew(
                f"the store has format {stored.number}, which converge-core {stored.oldest} and newer know; this one "
                f"knows {KNOWN}: upgrade it"
            )
        if stored.number >= max(number, FIRST):
            return
        wanted = next(one for one in FORMATS if one.number == number)
        yield NoteFormat(number)
        checks = [(FORMAT(), self._format.revision if self._format is not None else ABSENT)]
        value = encode(StoreFormat(wanted.number, wanted.oldest))
        # A conflict means that another raised it: there is none above the one that this release knows.
        yield Commit([Batch(checks, [(FORMAT(), value)])], (), is_within=False)

    def _round(self, todo: list[Ask]) -> Steps:
        """Try each once; return those that must be tried again."""
        todo = yield from self._open_lanes(todo)
        groups = yield from self._group(without_repeats([ask for ask in todo if ask.lane in self._lanes]))
        for at in range(0, len(groups), LIMITS.batches):
            some = groups[at : at + LIMITS.batches]
            wake = {f"lane.{ask.spec.lane}" for group, _ in some for ask in group}
            outcomes = yield Commit([self._batch(*group) for group in some], wake, is_within=True)
            for (group, _), outcome in zip(some, outcomes, strict=True):
                self._heed(group, outcome)
        return (yield from self._read_back([ask for ask in todo if ask.outcome is None]))

    def _heed(self, group: list[Ask], outcome: Committed | Conflict) -> None:
        if isinstance(outcome, Committed):
            for ask in group:
                ask.outcome = id_text(ask.id)
        elif self._epoch[0] in outcome.keys:
            raise StoreRolledBack(ROLLED_BACK)
        else:
            for key in outcome.keys:
                self._lanes.pop(key, None)

    def _batch(self, group: list[Ask], key: KeySeen | None) -> Batch:
        if group[0].spec.ordering_key is None:
            batch = submit(group[0].id, group[0].spec, self._lanes[group[0].lane], None, self._now)
        else:
            batch = ordered_batch(group, self._lanes, key, self._now)
        return batch._replace(checks=[*batch.checks, self._epoch])

    def _open_lanes(self, todo: list[Ask]) -> Steps:
        missing = {ask.lane: ask for ask in todo if ask.lane not in self._lanes}
        entries = yield from _get_all(list(missing), is_within=False)
        for (key, ask), entry in zip(missing.items(), entries, strict=True):
            seen = lane_seen(entry)
            if seen is not None and not seen.is_closing:
                self._lanes[key] = (key, seen.revision)
                continue
            if seen is None and (yield Count(LANE(ask.spec.pool))) >= LANES:
                for one in todo:
                    if one.lane == key:
                        one.outcome = TooManyLanes(ask.spec.pool, LANES)
                continue
            lane = Lane(ask.spec.pool, ask.spec.topic, ask.spec.type, ask.spec.capabilities)
            pool = (POOL(ask.spec.pool), self._pools[ask.spec.pool][1])
            checks: list[Check] = [(key, seen.revision if seen else ABSENT), pool]
            (outcome,) = yield Commit([Batch(checks, [(key, encode(lane))])], lane_news(lane), is_within=False)
            if isinstance(outcome, Committed):
                self._lanes[key] = (key, outcome.revision)
            elif POOL(ask.spec.pool) in outcome.keys:
                yield from self._look_at_pool(ask.spec.pool)
        return [ask for ask in todo if ask.outcome is None]

    def _look_at_pool(self, pool: str) -> Steps:
        (entry,) = yield Get([POOL(pool)], is_within=False)
        if entry is None:
            raise NoSuchPool(pool, nearest=None)
        self._pools[pool] = decode(entry.value, Pool, f"pool {pool}"), entry.revision

    def _group(self, todo: list[Ask]) -> Steps:
        """Return one group per batch: a task by itself, or all tasks of one ordering key, which share its row."""
        groups: list[Group] = [([ask], None) for ask in todo if ask.spec.ordering_key is None]
        ordered: dict[Key, list[Ask]] = {}
        for ask in todo:
            if ask.spec.ordering_key is not None:
                ordered.setdefault(KEY(ask.spec.pool, ask.spec.ordering_key), []).append(ask)
        entries = yield from _get_all(list(ordered), is_within=True)
        for group, entry in zip(ordered.values(), entries, strict=True):
            seen = None if entry is None else KeySeen(entry.revision, decode(entry.value, KeyRow, "key"))
            groups.append((group[: LIMITS.batch_ops // 8], seen))
        return groups

    def _read_back(self, again: list[Ask]) -> Steps:
        """Answer those that are stored already, as the transaction sees it; return the others."""
        keys = [TASK(ask.id) for ask in again]
        keys += [DEDUP(ask.spec.pool, ask.spec.dedup_key) for ask in again if ask.spec.dedup_key is not None]
        entries = {entry.key: entry.value for entry in (yield from _get_all(keys, is_within=True)) if entry is not None}
        for ask in again:
            known = stored_as(ask, entries)
            if isinstance(known, tuple):
                (entry,) = yield Get([known], is_within=True)
                known = stored_as(ask, entries | {known: entry.value if entry is not None else b""})
            assert not isinstance(known, tuple), "one look more is enough"
            ask.outcome = known
        return [ask for ask in again if ask.outcome is None]


def _get_all(keys: Sequence[Key], *, is_within: bool) -> Steps:
    found: list[Entry | None] = []
    for at in range(0, len(keys), LIMITS.keys):
        found += yield Get(keys[at : at + LIMITS.keys], is_within)
    return found
