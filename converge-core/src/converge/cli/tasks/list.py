"""`converge tasks list`: find tasks by state, pool, type, topic and age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import anyio
from cyclopts import Parameter, validators

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import NONE, Common, OfPool
from converge.cli.run import loop_options
from converge.cli.tasks.verbs import record_of, short, waits_of
from converge.errors import InputError
from converge.machines.task import TaskState
from converge.model.task import Task
from converge.operations import run as main
from converge.operations import tasks as operate
from converge.operations.drain import hint_of
from converge.runtime.config.config import Config

WAITING_COLUMNS = ("id", "pool", "waits", "task")
COLUMNS = ("id", "state", "pool", "attempts", "submitted", "worker", "since", "task")
DEAD_COLUMNS = ("id", "pool", "attempts", "ended", "error", "task")
EVERYTHING = operate.Wanted(limit=100)

Since = Annotated[
    str | None,
    Parameter(
        metavar="WHEN",
        help="Only tasks submitted since: an age such as 15m, 2h or 7d, or a moment such as 2026-01-31T12:00 (UTC).",
    ),
]
Skip = Annotated[
    int,
    Parameter(
        metavar="N", validator=validators.Number(gte=0), help="How many to skip first: those of the previous pages."
    ),
]


def list_tasks(
    *,
    pool: OfPool = None,
    state: Annotated[TaskState | None, Parameter(help="Only tasks in this state.")] = None,
    dead_letters: Annotated[
        bool,
        Parameter(
            negative=(), help="Only tasks that failed for good, with their errors; `tasks retry` takes their ids."
        ),
    ] = False,
    type: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", negative=(), help="Only tasks of this type; repeat it for any of several."),
    ] = None,
    topic: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", negative=(), help="Only tasks with this topic; repeat it for any of several."),
    ] = None,
    waiting: Annotated[
        bool, Parameter(negative=(), help="Only tasks that wait; shows what for, since when and until when.")
    ] = False,
    parent: Annotated[str | None, Parameter(metavar="ID", help="Only the children of this task.")] = None,
    since: Since = None,
    limit: Annotated[
        int, Parameter(metavar="N", validator=validators.Number(gte=0), help="How many at most; 0: all.")
    ] = 100,
    skip: Skip = 0,
    common: Common = NONE,
) -> int:
    """List tasks, live ones first. With --json each is written as soon as it is read."""
    settings = common.configured(pool_id=pool)
    if dead_letters and state not in (None, TaskState.FAILED):
        raise InputError(f"--dead-letters lists failed tasks; do not combine it with --state {state.lower()}")
    if waiting and (dead_letters or state not in (None, TaskState.WAITING)):
        other = "--dead-letters" if state is None else f"--state {state.lower()}"
        raise InputError(f"--waiting lists tasks that wait; do not combine it with {other}")
    wanted = operate.Wanted(
        state=TaskState.FAILED if dead_letters else TaskState.WAITING if waiting else state,
        pool_id=settings.pool_id or None,
        types=type or (),
        topics=topic or (),
        since=since,
        parent=parent,
        skip=skip,
        limit=limit,
    )
    found: list[Task] = []

    def write(page: Sequence[Task]) -> None:
        for task in page:
            output.line(record_of(task))

    is_more = anyio.run(_list, settings, wanted, write if common.json else found.extend, backend_options=loop_options())
    if not common.json:
        columns = DEAD_COLUMNS if dead_letters else WAITING_COLUMNS if waiting else COLUMNS
        output.table(
            columns,
            [_waiting_cells(task) if waiting else _cells(task, is_dead=dead_letters) for task in found],
            has_lines=True,
            empty="no tasks" if wanted == EVERYTHING else "no tasks that fit",
        )
    if is_more:
        output.note(f"there are more: --skip {skip + limit} shows the next ones, --limit 0 all")
    return DONE


def _waiting_cells(task: Task) -> tuple[object, ...]:
    return (task.id, task.pool_id, waits_of(task), hint_of(task))


def _cells(task: Task, *, is_dead: bool) -> tuple[object, ...]:
    if is_dead:
        return (task.id, task.pool_id, task.attempts, task.finished_at or "", task.error, hint_of(task))
    worker, since = short(task.claimed_by), task.claimed_at or task.finished_at or ""
    return (
        task.id, task.state.lower(), task.pool_id, task.attempts, task.submitted_at or "", worker, since, hint_of(task),
    )  # fmt: skip


async def _list(config: Config, wanted: operate.Wanted, visit: operate.VisitPage) -> bool:
    async with main.opened_store(config) as store:
        return await operate.list_tasks(store, wanted, visit)
