"""`converge submit`: tasks for agents that run elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE, FAILED
from converge.cli.options import NONE, Common, PoolId
from converge.cli.results import write_results
from converge.cli.run import loop_options, task_file
from converge.errors import InputError, ResultTimeout
from converge.machines.task import TaskState
from converge.model.task import Task
from converge.operations import run as main
from converge.operations.drain import Progress
from converge.operations.moments import read_future
from converge.operations.task_file import check_task, read_inputs
from converge.runtime.config.config import Config
from converge.services.pools import PoolManager


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class TaskFlags:
    """The flags that describe one task."""

    capability: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", negative=(), help="What an agent must be able to do; may be repeated."),
    ] = None
    type: Annotated[
        str | None, Parameter(metavar="NAME", help="The task's type; agents that name types claim no others.")
    ] = None
    topic: Annotated[
        str | None, Parameter(metavar="NAME", help="The task's topic; agents that name topics claim no others.")
    ] = None
    priority: Annotated[
        int | None, Parameter(metavar="N", help="-1,000 to 1,000, by default 0; a higher priority is a head start.")
    ] = None
    dedup_key: Annotated[str | None, Parameter(metavar="KEY", help="Two submits with the same key yield one task.")] = (
        None
    )
    input: Annotated[
        list[str] | None,
        Parameter(metavar="NAME=VALUE", negative=(), help="NAME=TEXT, NAME:=JSON or NAME=@FILE; may be repeated."),
    ] = None
    id: Annotated[
        str | None, Parameter(metavar="UUID", help="Its id; two submits with the same id yield one task.")
    ] = None
    ordering_key: Annotated[
        str | None, Parameter(metavar="KEY", help="Tasks with the same key are attempted one at a time, in order.")
    ] = None
    max_attempts: Annotated[int | None, Parameter(metavar="N", help="The most attempts; by default 3.")] = None
    not_before: Annotated[
        str | None,
        Parameter(metavar="WHEN", help="Begin it no earlier than this: 15m, 2h or 7d from now, or a moment."),
    ] = None
    deadline: Annotated[
        str | None, Parameter(metavar="WHEN", help="Fail it if it has not begun by then; written as for --not-before.")
    ] = None

    def fields(self) -> dict[str, Any]:
        """Return what was given, as fields of a task; `input` as it was typed.

        Raises:
            InvalidValue: A time cannot be read.
        """
        given = attrs.asdict(self) | {
            "not_before": read_future("--not-before", self.not_before),
            "deadline": read_future("--deadline", self.deadline),
        }
        return {name: value for name, value in given.items() if value is not None}


NO_FLAGS = TaskFlags()


def submit(
    file: Annotated[Path | None, Parameter(help="A file of JSON lines, one task each; - for standard input.")] = None,
    /,
    *,
    pool: PoolId = None,
    task: TaskFlags = NO_FLAGS,
    create_pool: Annotated[
        bool, Parameter(negative=(), help="Create the pool, and a store in a file, if they do not exist.")
    ] = False,
    wait: Annotated[
        bool, Parameter(negative=(), help="Wait until the tasks have ended, and show their results.")
    ] = False,
    timeout: Annotated[
        float | None,
        Parameter(metavar="SEC", help="Seconds to wait at most, with --wait; by default as long as it takes."),
    ] = None,
    common: Common = NONE,
) -> int:
    """Submit tasks, from flags or from a file of JSON lines, and write their ids.

    Everything is checked before anything is submitted.
    """
    settings = common.configured(pool_id=pool)
    given = task.fields()
    if file is not None and given:
        flag = next(iter(given)).replace("_", "-")
        raise InputError(f"--{flag} describes one task; with a file its lines do that")
    if timeout is not None and not wait:
        raise InputError("--timeout needs --wait")
    if file is None and not settings.pool_id:
        raise InputError("--pool is missing: name the pool to submit to")
    inputs = read_inputs(given.pop("input", []))
    given["required_capabilities"] = given.pop("capability", ())
    tasks = (
        task_file(file, settings.pool_id)
        if file is not None
        else [check_task(Task(pool_id=settings.pool_id, inputs=inputs, **given))]
    )
    with output.progress(settings.pool_id or "tasks", is_wanted=wait) as on_progress:
        return anyio.run(
            _submit,
            settings,
            tasks,
            Waiting(wait, timeout, on_progress),
            create_pool,
            common.json,
            backend_options=loop_options(),
        )


class Waiting(NamedTuple):
    """Whether to wait for the results, how long at most, and what is told meanwhile."""

    is_wanted: bool
    timeout_sec: float | None
    on_progress: Progress | None


async def _submit(config: Config, tasks: Sequence[Task], waiting: Waiting, may_create: bool, as_json: bool) -> int:
    async with main.opened_store(config, must_exist=not may_create) as store:
        if may_create:
            for pool_id in dict.fromkeys(task.pool_id for task in tasks):
                await PoolManager(store).create_pool(main.pool_of(config, pool_id))
        ids = await main.submit_all(store, tasks)
        if not waiting.is_wanted:
            for id_ in ids:
                output.line({"id": id_}) if as_json else output.write(id_)
            return DONE
        try:
            rows = await main.wait_all(store, ids, config.poll_sec, waiting.timeout_sec, waiting.on_progress)
        except ResultTimeout:
            # Or nobody could tell which tasks these were.
            write_results(await main.states_of(store, ids), as_json=as_json)
            raise
    write_results(rows, as_json=as_json)
    return DONE if all(row.state == TaskState.COMPLETED for row in rows) and len(rows) == len(ids) else FAILED
