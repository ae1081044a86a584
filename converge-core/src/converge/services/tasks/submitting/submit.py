"""Submitting: many tasks in few calls, each recognised when it is submitted again (G2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import anyio

from converge.codec import decode
from converge.contracts.store import ABSENT, LIMITS, Batch, Channel, Check, Committed, Conflict, Key
from converge.errors import (
    ConvergeError,
    InputError,
    InvalidValue,
    NoSuchPool,
    NotApplied,
    OutcomeUnknown,
    SchemaTooNew,
    StoreBusy,
    StoreError,
    TooManyLanes,
    TornRecord,
)
from converge.ids import check_name, id_bytes, id_text, uuids7
from converge.machines.durable import submit
from converge.machines.lane import LANES, lane_of
from converge.machines.match import lane_news
from converge.model.keys import DEDUP, KEY, LANE, POOL, TASK
from converge.model.place import SPLIT_KEYS, KeyRow, KeySeen
from converge.model.task import Task
from converge.services.store.commits import Commits
from converge.services.store.handle import StoreHandle
from converge.services.store.limits import LIMIT, is_out_of_time
from converge.services.store.pages import get_all
from converge.services.store.patience import PATIENCE_SEC, pause_sec
from converge.services.tasks.lanes import make_room
from converge.services.tasks.records import check_deadline, kind_of, to_spec
from converge.services.tasks.submitting.asks import (
    Ask,
    Group,
    answers,
    how_to_go_on,
    ordered_batch,
    stored_as,
    without_repeats,
)
from converge.services.tasks.surroundings import lane_seen

UNKNOWN_ROUNDS = 5
"""How often an unknown outcome is repeated; the task's id makes it safe."""

UNKNOWN_PAUSE_SEC = 0.05
"""Between these tries, longer each time: a connection that was lost needs a moment."""


LANES_SEEN = 16 * LANES
"""How many lanes are remembered: those that were closed since are among them, and a process may live for long."""

ROOM_EVERY_SEC = 1.0
"""How often empty lanes are looked for in a pool that has no room for another."""


Closed = tuple[Check, Check]
"""Of a lane that is absent or closing, and of its pool, as they were seen."""


_Step = tuple[list[Ask], Batch, Mapping[Key, Check]]
"""Tasks, the batch that stores them, and the lanes that it opens."""

NOTHING: Mapping[Key, Check] = {}


class _Turn:
    """A round of the tasks of several callers, from the first who waits for it until it has ended."""

    __slots__ = ("asks", "done", "is_whole")

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.asks = list(asks)
        self.done = anyio.Event()
        self.is_whole = False


class Submits:
    """Submits for every manager of one opened store; remembers which lanes were seen open."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._lanes: dict[Key, Check] = {}
        self._made_room: dict[str, float] = {}
        self._one_by_one = anyio.Lock()
        self._next: _Turn | None = None

    async def submit(self, tasks: Sequence[Task]) -> list[str]:
        """Submit all; return their ids in order.

        Raises:
            InvalidValue, InvalidName, ValueTooLarge, NoSuchPool: Nothing was submitted.
            DedupConflict, TooManyLanes: The first one that was refused; all others were submitted. Its `ids` has
                theirs, None for a refused one.
            StoreError: As `Store.commit`; to submit the same tasks again is safe if they have ids or dedup keys.
        """
        asks = await self._check(tasks)
        if (limit := LIMIT.get()) is not None:
            limit.hint = how_to_go_on(asks)
        todo, are_apart = _drop_repeats(asks)
        todo = [ask for ask in todo if ask.outcome is None]
        env, round_ = self._handle.env, 0
        stuck_since: float | None = None
        try:
            while todo:
                left = await self._round(todo, are_apart) if _are_plain(todo) else await self._some_ordered(todo)
                if len(left) < len(todo):
                    round_, stuck_since = 0, None
                elif stuck_since is None:
                    stuck_since = env.monotonic()
                elif env.monotonic() - stuck_since > PATIENCE_SEC:
                    break
                todo, round_ = left, round_ + 1
                if todo and round_ > 2:
                    await anyio.sleep(pause_sec(round_, env))
        except OutcomeUnknown as error:
            raise OutcomeUnknown(f"{error}; {how_to_go_on(asks)}") from error
        except NotApplied as error:
            if any(isinstance(ask.outcome, str) for ask in asks):
                raise OutcomeUnknown(
                    f"some of {len(asks)} tasks were stored, then the store failed: {error}"
                ) from error
            raise
        if todo:
            raise StoreBusy(
                f"{len(todo)} tasks of {len(asks)} met nothing but conflicts for {PATIENCE_SEC:g} s; submit them again"
            )
        return answers(asks)

    async def _some_ordered(self, todo: list[Ask]) -> list[Ask]:
        """Try each once; those with ordering keys together with those of other callers, who would meet each other."""
        plain = [ask for ask in todo if ask.spec.ordering_key is None]
        if plain:
            await self._round(plain, False)
        await self._together([ask for ask in todo if ask.spec.ordering_key is not None])
        return [ask for ask in todo if ask.outcome is None]

    async def _together(self, asks: list[Ask]) -> None:
        """Try each once, in a round with whatever comes while the round before is under way: a batch each ordering key,
        not one each caller, of which all but the first would conflict.
        """
        await self._handle.require_format(SPLIT_KEYS)
        turn = self._next
        if turn is None:
            turn = self._next = _Turn(asks)
            await self._lead(turn, len(asks))
        else:
            turn.asks += asks
            await turn.done.wait()
        if not turn.is_whole:  # it met an error, perhaps for another's task, or the caller that led it was cancelled
            await self._round([ask for ask in asks if ask.outcome is None], False)

    async def _lead(self, turn: _Turn, own: int) -> None:
        try:
            async with self._one_by_one:
                self._next = None
                await self._round(turn.asks, False)
            turn.is_whole = True
        except (StoreError, InputError):
            if len(turn.asks) == own:
                raise
        finally:
            if self._next is turn:
                self._next = None
            turn.done.set()

    async def _check(self, tasks: Sequence[Task]) -> list[Ask]:
        now = await self._handle.now()
        ids = uuids7(now, self._handle.env.entropy(6 * len(tasks)))
        pools, origin = self._handle.pools, self._handle.origin
        asks = []
        for id_, task in zip(ids, tasks, strict=True):
            if not isinstance(task, Task):
                raise InvalidValue("task", task, "a Task")
            if type(task.pool_id) is not str:
                check_name("pool", task.pool_id)  # it may come from a file
            seen = pools.get(task.pool_id) or await self._handle.pool(task.pool_id)
            kind = kind_of(task, seen.pool.id)
            spec = to_spec(task, seen.pool, now, origin, kind)
            if spec.due > now:
                self._handle.saw_due(spec.due)
            asks.append(Ask(id_bytes("task id", task.id) if task.id else id_, task, spec, kind.key))
        if late := [ask for ask in asks if ask.spec.deadline and ask.spec.deadline <= ask.spec.due]:
            await self._check_late(late)
        return asks

    async def _check_late(self, late: list[Ask]) -> None:
        """Refuse tasks whose deadline has passed, but for those that are known: it had not when they came first."""
        named = [ask for ask in late if ask.task.id or ask.task.dedup_key is not None]
        await self._read_back(named)
        for ask in late:
            if ask.outcome is None:
                check_deadline(ask.task, ask.spec)

    async def _round(self, todo: list[Ask], are_apart: bool) -> list[Ask]:
        """Try each once; return those that must be tried again."""
        closed = await self._closed_lanes(todo)
        groups = await self._group([ask for ask in todo if ask.outcome is None])
        now = await self._handle.now()
        steps = [step for group, key in groups if (step := self._step(group, key, closed, now)) is not None]
        commits = await self._handle.commits()
        again: list[Ask] = []
        gone: dict[str, ConvergeError] = {}
        for at in range(0, len(steps), LIMITS.batches):
            some = steps[at : at + LIMITS.batches]
            for (group, _, opens), outcome in zip(some, await self._commit(commits, some, are_apart), strict=True):
                if isinstance(outcome, Committed):
                    for ask in group:
                        ask.outcome = id_text(ask.id)
                    for key in opens:
                        self._lanes[key] = (key, outcome.revision)
                else:
                    again += group
                    for key in outcome.keys:
                        self._lanes.pop(key, None)
                        if key[0] is POOL and (error := await self._look_again(key[1])) is not None:
                            gone[key[1]] = error
        for ask in await self._read_back(again):
            ask.outcome = gone.get(ask.spec.pool)
        return [ask for ask in todo if ask.outcome is None]  # in their order, which is that of their ordering keys

    def _step(self, group: list[Ask], row: KeySeen | None, closed: dict[Key, Closed], now: int) -> _Step | None:
        """Return the batch of the group, which opens those of its lanes that are `closed` and no other batch opens.

        So nobody can close a lane between its opening and its first task. A task whose lane another batch opens, or
        another call has forgotten meanwhile, waits for the next round, and those of its ordering key behind it do.
        """
        first = group[0]
        if first.spec.ordering_key is None and (lane := self._lanes.get(first.lane)) is not None:
            return group, submit(first.id, first.spec, lane, None, now), NOTHING  # the usual case
        opens: dict[Key, Check] = {}
        pool: Check | None = None
        for at, ask in enumerate(group):
            if ask.lane in self._lanes or ask.lane in opens:
                continue
            if ask.lane not in closed:
                group = group[:at]
                break
            opens[ask.lane], pool = closed.pop(ask.lane)
        if not group:
            return None
        if first.spec.ordering_key is None:
            lane = self._lanes[first.lane] if not opens else opens[first.lane]
            batch = submit(first.id, first.spec, lane, None, now, is_open=not opens)
        else:
            batch = ordered_batch(group, self._lanes, row, now, opens)
        return group, batch if pool is None else batch._replace(checks=[*batch.checks, pool]), opens

    async def _look_again(self, pool_id: str) -> ConvergeError | None:
        """Read a pool that has changed; return an error if it is gone."""
        self._handle.pools.pop(pool_id, None)
        try:
            await self._handle.pool(pool_id, is_fresh=True)
        except NoSuchPool as error:
            return error
        return None

    async def _commit(
        self, commits: Commits, steps: Sequence[_Step], are_apart: bool
    ) -> Sequence[Committed | Conflict]:
        batches = [batch for _, batch, _ in steps]
        wake: set[Channel] = {f"lane.{lane}" for lane in {ask.spec.lane for group, _, _ in steps for ask in group}}
        for group, _, opens in steps:
            if opens:
                wake |= {news for ask in group if ask.lane in opens for news in lane_news(lane_of(ask.spec))}
        unknown: OutcomeUnknown | None = None
        began = self._handle.env.monotonic()
        for round_ in range(UNKNOWN_ROUNDS):
            try:
                return await commits.commit(batches, wake=wake, are_apart=are_apart)
            except OutcomeUnknown as error:
                unknown = error
                if self._is_out_of_time(began):
                    break
            except NotApplied as error:
                if unknown is not None:
                    raise unknown from error  # what was sent before may have been stored, whatever became of this
                raise
            await anyio.sleep(UNKNOWN_PAUSE_SEC * round_)
        assert unknown is not None, "a round ends with an answer or an error"
        raise unknown

    def _is_out_of_time(self, began: float) -> bool:
        """Return whether another try would take longer than a call may."""
        return is_out_of_time(self._handle.env.monotonic() - began, self._handle.lease_settings.call_sec)

    async def _closed_lanes(self, todo: list[Ask]) -> dict[Key, Closed]:
        """Return the lanes of the tasks that are not open; refuse a task whose pool has no room for another lane."""
        if len(self._lanes) > LANES_SEEN:
            self._lanes.clear()
        missing = {ask.lane: ask.spec for ask in todo if ask.lane not in self._lanes}
        if not missing:
            return {}
        closed: dict[Key, Closed] = {}
        refused: dict[Key, ConvergeError] = {}
        new: Counter[str] = Counter()
        for key, entry in zip(missing, await get_all(self._handle.store, list(missing)), strict=True):
            seen, pool_id = lane_seen(entry), missing[key].pool
            if seen is not None and not seen.is_closing:
                self._lanes[key] = (key, seen.revision)
            elif seen is None and await self._is_full(pool_id, new[pool_id]):
                refused[key] = TooManyLanes(pool_id, LANES)
            else:
                pool = await self._handle.pool(pool_id)
                closed[key] = (key, seen.revision if seen else ABSENT), (POOL(pool_id), pool.revision)
                new[pool_id] += seen is None
        if refused:
            without = [ask for ask in todo if ask.lane in refused]
            await self._read_back([ask for ask in without if ask.task.id or ask.task.dedup_key is not None])
            for ask in without:
                ask.outcome = ask.outcome or refused[ask.lane]
        return closed

    async def _is_full(self, pool_id: str, new: int) -> bool:
        """Return whether the pool has no room for another lane beside so many new ones, even without empty ones."""
        (count,) = await self._handle.store.count([LANE(pool_id)])
        if count + new < LANES:
            return False
        monotonic = self._handle.env.monotonic()
        if monotonic - self._made_room.get(pool_id, float("-inf")) < ROOM_EVERY_SEC:
            return True  # a look at all the pool's lanes costs far more than a refusal
        self._made_room[pool_id] = monotonic
        return count + new - await make_room(self._handle, pool_id) >= LANES

    async def _group(self, todo: list[Ask]) -> list[Group]:
        """Return one group per batch: a task by itself, or all tasks of one ordering key, which share its row."""
        groups: list[Group] = []
        ordered: dict[Key, list[Ask]] = {}
        for ask in todo:
            if ask.spec.ordering_key is None:
                groups.append(([ask], None))
            else:
                ordered.setdefault(KEY(ask.spec.pool, ask.spec.ordering_key), []).append(ask)
        keys = list(ordered)
        for key, entry in zip(keys, await get_all(self._handle.store, keys), strict=True):
            seen = None if entry is None else KeySeen(entry.revision, decode(entry.value, KeyRow, "key"))
            groups.append((without_repeats(ordered[key])[: LIMITS.batch_ops // 10], seen))
        return groups

    async def _read_back(self, again: list[Ask]) -> list[Ask]:
        """Read back tasks that met a conflict: those that are stored already get their answer."""
        if not again:
            return []
        keys: list[Key] = []
        for ask in again:
            keys.append(TASK(ask.id))
            if ask.spec.dedup_key is not None:
                keys.append(DEDUP(ask.spec.pool, ask.spec.dedup_key))
        found = await get_all(self._handle.store, keys)
        entries = {entry.key: entry.value for entry in found if entry is not None}
        for ask in again:
            try:
                ask.outcome = await self._stored_as(ask, entries)
            except (TornRecord, SchemaTooNew) as error:
                ask.outcome = error  # of this one alone
        return [ask for ask in again if ask.outcome is None]

    async def _stored_as(self, ask: Ask, entries: dict[Key, bytes]) -> str | ConvergeError | None:
        """Return the id under which the task is stored already, or that other content is; None if neither."""
        found = stored_as(ask, entries)
        if not isinstance(found, tuple):
            return found
        (entry,) = await self._handle.store.get([found])
        known = stored_as(ask, entries | {found: entry.value if entry is not None else b""})
        assert not isinstance(known, tuple), "one look more is enough"
        return known


def _are_plain(asks: Sequence[Ask]) -> bool:
    return all(ask.spec.ordering_key is None for ask in asks)


def _drop_repeats(asks: list[Ask]) -> tuple[list[Ask], bool]:
    """Drop repeats within one call: the second of a task, or of a dedup key, waits for the first, then is read back as
    any repeated submit is. Return also whether there were none: then no two batches of the call touch one key.
    """
    if len(asks) == 1:
        return asks, True
    if len({ask.id for ask in asks}) == len(asks) and all(ask.spec.dedup_key is None for ask in asks):
        return asks, True
    first = without_repeats(asks)
    kept = {id(ask) for ask in first}
    return first + [ask for ask in asks if id(ask) not in kept], len(first) == len(asks)
