"""Waiting until a pool has nothing left to do, and what has become of its tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import attrs

from converge.errors import NoSuchTask
from converge.ids import id_text
from converge.machines.task import TERMINAL, TaskState
from converge.model.keys import DONE
from converge.model.task import Task
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages
from converge.services.tasks.counts import backlog
from converge.services.tasks.manager import TaskManager

WAITERS = 100
"""Tasks waited for at a time; one watch of the store serves them all."""

LOOKED_UP = 1_000
"""Tasks looked up at a time."""

HINTS = ("name", "page", "file", "path", "title", "url")
HINT_LENGTH = 60

Progress = Callable[[int, int], None]
"""Called with how many tasks have ended, and of how many that are known."""


@attrs.frozen(kw_only=True)
class Ended:
    """The report of a task that has ended: its id, a few words by which people know it, its state, its result or
    error.
    """

    id: str
    hint: str
    state: str
    result: Any
    error: str


@attrs.define(kw_only=True)
class Drained:
    """What a drain saw: the tasks in the order in which they were submitted or found, and how many have not
    completed.
    """

    rows: list[Ended] = attrs.field(factory=list)
    total: int = 0
    not_completed: int = 0


@attrs.frozen
class _Begun:
    """What the pools looked like when the drain began: the time (of the store), the tasks that were live, and how long
    ended ones are kept.
    """

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
        self._on_progress = on_progress or (lambda done, total: None)
        self._ended: dict[str, Ended | None] = {}
        self._known = 0
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

        Raises:
            StoreError: As `Store.scan`.
        """
        if self._begun is None:
            await self.begin()
        assert self._begun is not None
        todo = list(dict.fromkeys([*ids, *self._begun.live]))
        while True:
            self._known = len(self._ended) + len(todo)
            self._on_progress(len(self._ended), self._known)
            base = len(self._ended)
            self._ended |= await ask_all(self._tasks.result, todo, partial(self._tell, base))
            todo = await self._live()
            # A task that moves while it is looked for may be missed; it is not missed twice, by another way of
            # counting.
            if not todo and not sum([await backlog(self._handle, pool_id) for pool_id in self._pool_ids]):
                todo = await self._ended_unseen(self._begun)
                if not todo:
                    return self._drained()

    def _tell(self, base: int, done: int) -> None:
        self._on_progress(base + done, self._known)

    async def _live(self) -> list[str]:
        live = [
            task.id
            for pool_id in self._pool_ids
            for state in (TaskState.ASSIGNED, TaskState.PENDING)
            for task in await self._tasks.list(state=state, pool_id=pool_id, limit=LOOKED_UP)
        ]
        return [id_ for id_ in dict.fromkeys(live) if id_ not in self._ended]

    async def _ended_unseen(self, begun: _Begun) -> list[str]:
        """Return the tasks that came and ended between two looks: the index of ended tasks has them behind all that had
        ended before.
        """
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
        bad = sum(row.state != TaskState.COMPLETED for row in rows)
        return Drained(rows=rows, total=len(self._ended), not_completed=bad)


async def ask_all(
    ask: Callable[[str], Awaitable[Task]], ids: Sequence[str], on_one: Callable[[int], None] = lambda _: None
) -> dict[str, Ended | None]:
    """Return what `ask` says of the tasks, in the order given, several asked at a time; None for one that retention has
    removed.

    `on_one` is called after each with the number of tasks so far.

    Raises:
        StoreError: As `Store.get`.
    """
    found: dict[str, Ended | None] = {}
    waiting = iter(ids)

    async def wait_some() -> None:
        for id_ in waiting:
            try:
                found[id_] = ended(await ask(id_))
            except NoSuchTask:
                found[id_] = None
            on_one(len(found))

    async with anyio.create_task_group() as group:
        for _ in range(min(WAITERS, len(ids))):
            group.start_soon(wait_some)
    return {id_: found[id_] for id_ in ids}


def ended(task: Task) -> Ended:
    """Return the report of the task."""
    return Ended(id=task.id, hint=hint_of(task), state=str(task.state), result=task.result, error=task.error)


def hint_of(task: Task) -> str:
    """Return a few words that people know the task by: an input that names it, else its first text, else its type."""
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
