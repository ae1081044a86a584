"""Waiting until a pool has nothing left to do, and the outcomes of its tasks."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import attrs

from converge.errors import NoSuchTask, ResultTimeout
from converge.ids import id_text
from converge.machines.task import TERMINAL, TaskState
from converge.model.keys import DONE, TOLD
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages
from converge.services.tasks.counts import live

log = logging.getLogger("converge.run")

WAITERS = 100
"""Tasks waited for at a time; one watch of the store serves them all."""

LOOKED_UP = 1_000
"""Tasks looked up at a time."""

_VARYING = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")

KINDS_SHOWN = 3
"""What tasks wait for, of which a drain names as many."""

HINTS = ("name", "page", "file", "path", "title", "url")
HINT_LENGTH = 60

REASONS = 10
"""Reasons that a summary names; the rows have them all."""

REASON_LENGTH = 200

WAITING_LOOK_SEC = 1.0
"""How often a drain looks whether a task waits, of those that it was told to wait for."""

LEFT_SEC = 2.0
"""How long a drain that is cut short may take to count what is left."""

Progress = Callable[[int, int, int], None]
"""Called with how many tasks have ended, of how many that are known, and how many of them have not completed."""


@attrs.frozen(kw_only=True)
class Ended:
    """The report of a task that has ended: its id, a few words for people, its state, its result or error."""

    id: str
    hint: str
    state: str
    result: Any
    error: str


@attrs.define(kw_only=True)
class Drained:
    """What a drain saw: the tasks in their order, how many have not completed, and how long it took."""

    rows: list[Ended] = attrs.field(factory=list)
    total: int = 0
    not_completed: int = 0
    took_sec: float = 0.0


@attrs.frozen
class _Begun:
    """The pools when the drain began: the time (of the store), the live tasks, and how long ended ones are kept."""

    now: int
    live: Sequence[str]
    keep: Mapping[tuple[str, TaskState], float]


class Drain:
    """Waits for the given tasks, then for whatever else is in the pools, until nothing is. `begin` it before the
    agents: what they end counts too.
    """

    def __init__(
        self, handle: StoreHandle, tasks: TaskManager, pool_ids: Sequence[str], on_progress: Progress | None = None
    ) -> None:
        self._handle, self._tasks, self._pool_ids = handle, tasks, pool_ids
        self._on_progress = on_progress or (lambda done, total, bad: None)
        self._began = handle.env.monotonic()
        self._ended: dict[str, Ended | None] = {}
        self._known = self._done = 0
        self._begun: _Begun | None = None

    async def begin(self) -> None:
        """Record what is in the pools: all that ends from here on is reported.

        Raises:
            NoSuchPool: One is not there.
            StoreError: As `Store.scan`.
        """
        self._begun = _Begun(await self._handle.now(), await self._live(), await self._keep())

    async def run(self, ids: Sequence[str]) -> Drained:
        """Return once every task of the pools is terminal.

        A drain that is cancelled says in the log how many are left.

        Raises:
            StoreError: As `Store.scan`.
        """
        try:
            return await self._until_drained(ids)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(LEFT_SEC, shield=True):
                left = await self._backlog()
                text = "the drain was cut short: %s have ended, %s are left in %s"
                log.warning(text, f"{self._done:,}", f"{left:,}", ", ".join(self._pool_ids))
            raise

    async def _until_drained(self, ids: Sequence[str]) -> Drained:
        if self._begun is None:
            await self.begin()
        assert self._begun is not None
        todo = list(dict.fromkeys([*ids, *self._begun.live]))
        while True:
            self._known = len(self._ended) + max(len(todo), await self._backlog())
            base, bad = len(self._ended), sum(map(is_bad, self._ended.values()))
            self._on_progress(base, self._known, bad)
            seen = await ask_all(self._end_of, todo, partial(self._tell, base, bad))
            self._ended |= {id_: one for id_, one in seen.items() if one is None or one.state != TaskState.WAITING}
            todo = await self._live()
            # A task that moves while it is looked for may be missed; it is not missed twice, by another way of
            # counting.
            if not todo and not await self._backlog():
                todo = await self._ended_unseen(self._begun)
                if not todo:
                    await self._tell_waiting()
                    return _logged(self._drained())

    async def _end_of(self, id_: str) -> Task:
        """Return the task when it has ended, or waits: a drain does not wait for signals."""
        while True:
            try:
                return await self._tasks.result(id_, timeout=WAITING_LOOK_SEC)
            except ResultTimeout:
                task = await self._tasks.get(id_)
                if task.state == TaskState.WAITING:
                    return task

    async def _backlog(self) -> int:
        """Count what a drain waits for: what has not ended and does not wait, and ends of children to be told."""
        live_ones, parked = await self._counted()
        if not live_ones:
            return 0
        (told,) = await self._handle.store.count([TOLD()])
        if left := live_ones - parked + told:
            return left
        live_ones, parked = await self._counted()  # an end that was told between the two looks has resumed a parent
        return live_ones - parked

    async def _counted(self) -> tuple[int, int]:
        """Return how many tasks have not ended, and how many of them wait."""
        counts = (await live(self._handle.store, self._pool_ids)).values()
        return sum(one.live for one in counts), sum(one.parked for one in counts)

    async def _tell_waiting(self) -> None:
        counts = await live(self._handle.store, self._pool_ids)
        kinds: dict[str, int] = {}
        for pool_id in (pool_id for pool_id, one in counts.items() if one.parked):
            for task in await self._tasks.list(state=TaskState.WAITING, pool_id=pool_id, limit=LOOKED_UP):
                kinds[task.waiting_for] = kinds.get(task.waiting_for, 0) + 1
        if not kinds:
            return
        most = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
        shown = ", ".join(f"{kinds[kind]:,} for {kind}" for kind in most[:KINDS_SHOWN])
        count, more = sum(one.parked for one in counts.values()), ", ..." if len(most) > KINDS_SHOWN else ""
        verb = "task waits" if count == 1 else "tasks wait"
        text = "%s %s (%s%s), which the drain leaves alone; `converge tasks list --waiting` shows them"
        log.warning(text, f"{count:,}", verb, shown, more)

    def _tell(self, base: int, bad_before: int, done: int, bad: int) -> None:
        self._done = base + done
        self._on_progress(self._done, max(self._known, self._done), bad_before + bad)

    async def _live(self) -> list[str]:
        live = [
            task.id
            for pool_id in self._pool_ids
            for state in (TaskState.ASSIGNED, TaskState.PENDING)
            for task in await self._tasks.list(state=state, pool_id=pool_id, limit=LOOKED_UP)
        ]
        return [id_ for id_ in dict.fromkeys(live) if id_ not in self._ended]

    async def _ended_unseen(self, begun: _Begun) -> list[str]:
        """Return the tasks that came and ended between two looks, from the index of ended tasks."""
        found: list[bytes] = []
        for (pool_id, state), keep_sec in (await self._keep()).items():
            until = begun.now + int(min(begun.keep[pool_id, state], keep_sec) * 1_000_000)
            ended = Pages(self._handle.store, DONE(pool_id, state), after=(until, b"\xff" * 16), size=LOOKED_UP)
            found += [entry.key[4] async for page in ended for entry in page]
        return [id_ for id_ in map(id_text, found) if id_ not in self._ended]

    async def _keep(self) -> dict[tuple[str, TaskState], float]:
        pools = [(await self._handle.pool(pool_id, is_fresh=True)).pool for pool_id in self._pool_ids]
        return {
            (pool.id, state): pool.keep_completed_sec if state is TaskState.COMPLETED else pool.keep_failed_sec
            for pool in pools
            for state in sorted(TERMINAL)
        }

    def _drained(self) -> Drained:
        rows = [row for row in self._ended.values() if row is not None]
        took_sec = self._handle.env.monotonic() - self._began
        return Drained(rows=rows, total=len(self._ended), not_completed=sum(map(is_bad, rows)), took_sec=took_sec)


async def ask_all(
    ask: Callable[[str], Awaitable[Task]],
    ids: Sequence[str],
    on_one: Callable[[int, int], None] = lambda done, bad: None,
) -> dict[str, Ended | None]:
    """Return what `ask` says of the tasks, in their order, several at a time; None for one that was removed.

    `on_one` is called after each with the number of tasks so far, and of those that have not completed.

    Raises:
        StoreError: As `Store.get`.
    """
    found: dict[str, Ended | None] = {}
    bad = 0
    waiting = iter(ids)

    async def wait_some() -> None:
        nonlocal bad
        for id_ in waiting:
            try:
                found[id_] = ended(await ask(id_))
            except NoSuchTask:
                found[id_] = None
            bad += is_bad(found[id_])
            on_one(len(found), bad)

    async with anyio.create_task_group() as group:
        for _ in range(min(WAITERS, len(ids))):
            group.start_soon(wait_some)
    return {id_: found[id_] for id_ in ids}


def _logged(drained: Drained) -> Drained:
    """Sum it up in the log, with the reasons of what has not completed."""
    seen, total = len(drained.rows), drained.total
    more = f", {drained.not_completed:,} not" if drained.not_completed else ""
    more += f", {total - seen:,} removed unseen" if total > seen else ""
    rate = total / max(drained.took_sec, 0.001)
    text = "drained: %s completed%s, in %.1f s (%s tasks/s)"
    log.info(text, f"{seen - drained.not_completed:,}", more, drained.took_sec, f"{rate:,.0f}")
    found = reasons(drained.rows)
    for reason, count in found[:REASONS]:
        log.warning("%s not completed: %s", f"{count:,}", " ".join(reason.split())[:REASON_LENGTH])
    if len(found) > REASONS:
        log.warning("%s not completed, for other reasons", f"{sum(count for _, count in found[REASONS:]):,}")
    return drained


def is_bad(row: Ended | None) -> bool:
    """Return whether it is known that the task has not completed."""
    return row is not None and row.state != TaskState.COMPLETED


def reasons(rows: Sequence[Ended]) -> list[tuple[str, int]]:
    """Return why tasks have not completed, each reason with how many, the most common first; numbers and quoted words
    in it do not make two reasons of one.
    """
    counts: dict[str, tuple[str, int]] = {}
    for row in filter(is_bad, rows):
        text = row.error or row.state.lower()
        first, count = counts.get(kind := _VARYING.sub("*", text), (text, 0))
        counts[kind] = first, count + 1
    return sorted(counts.values(), key=lambda one: -one[1])


def ended(task: Task) -> Ended:
    """Return the report of the task."""
    return Ended(id=task.id, hint=hint_of(task), state=str(task.state), result=task.result, error=task.error)


def hint_of(task: Task) -> str:
    """Return a short name of the task for people: an input that names it, else its first text, else its type."""
    named = [task.inputs[key] for key in HINTS if isinstance(task.inputs.get(key), str)]
    texts = named or [value for value in task.inputs.values() if isinstance(value, str)]
    text = " ".join(texts[0].split()) if texts else task.type
    return text if len(text) <= HINT_LENGTH else text[: HINT_LENGTH - 1] + "…"


def totals(results: Sequence[Any]) -> dict[str, int | float] | None:
    """Return the sums of the results where they are mappings of the same names to numbers; None where they are not."""
    if not results or not all(
        isinstance(result, Mapping) and result and result.keys() == results[0].keys() for result in results
    ):
        return None
    if any(
        isinstance(value, bool) or not isinstance(value, int | float) for result in results for value in result.values()
    ):
        return None
    return {name: sum(result[name] for result in results) for name in results[0]}
