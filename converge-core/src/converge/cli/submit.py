"""`converge submit`: tasks for agents that run elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
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
from converge.operations.task_file import check_task, read_inputs
from converge.runtime.config.config import Config


def submit(
    file: Annotated[Path | None, Parameter(help="A file of JSON lines, one task each; - for standard input.")] = None,
    /,
    *,
    pool: PoolId = None,
    capability: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", negative=(), help="What an agent must be able to do; may be repeated."),
    ] = None,
    type: Annotated[
        str | None, Parameter(metavar="NAME", help="The type of task; agents that name their types take no other.")
    ] = None,
    topic: Annotated[
        str | None, Parameter(metavar="NAME", help="What it is about; agents that name their topics take no other.")
    ] = None,
    priority: Annotated[
        int | None, Parameter(metavar="N", help="-1,000 to 1,000, by default 0; a higher one is worth a head start.")
    ] = None,
    dedup_key: Annotated[str | None, Parameter(metavar="KEY", help="Two submits with one key yield one task.")] = None,
    input: Annotated[
        list[str] | None,
        Parameter(metavar="NAME=VALUE", negative=(), help="NAME=VALUE or NAME=@FILE; may be repeated."),
    ] = None,
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
    own: dict[str, Any] = {
        "type": type,
        "topic": topic,
        "priority": priority,
        "dedup_key": dedup_key,
        "required_capabilities": capability,
        "input": input,
    }
    given = {name: value for name, value in own.items() if value is not None}
    if file is not None and given:
        flag = "capability" if "required_capabilities" in given else next(iter(given)).replace("_", "-")
        raise InputError(f"--{flag} describes one task; with a file its lines do that")
    if timeout is not None and not wait:
        raise InputError("--timeout is about --wait")
    if file is None and not settings.pool_id:
        raise InputError("--pool is missing: which pool's agents are to do it?")
    inputs = read_inputs(given.pop("input", []))
    tasks = (
        task_file(file, settings.pool_id)
        if file is not None
        else [check_task(Task(pool_id=settings.pool_id, inputs=inputs, **given))]
    )
    with output.progress(settings.pool_id or "tasks", is_wanted=wait) as on_progress:
        return anyio.run(
            _submit, settings, tasks, wait, timeout, on_progress, common.json, backend_options=loop_options()
        )


async def _submit(
    config: Config,
    tasks: Sequence[Task],
    is_wait: bool,
    timeout_sec: float | None,
    on_progress: Progress | None,
    as_json: bool,
) -> int:
    async with main.opened_store(config) as store:
        ids = await main.submit_all(store, tasks)
        if not is_wait:
            for id_ in ids:
                output.line({"id": id_}) if as_json else output.write(id_)
            return DONE
        try:
            rows = await main.wait_all(store, ids, config.poll_sec, timeout_sec, on_progress)
        except ResultTimeout:
            write_results(
                await main.states_of(store, ids), as_json=as_json
            )  # or nobody could tell which tasks these were
            raise
    write_results(rows, as_json=as_json)
    return DONE if all(row.state == TaskState.COMPLETED for row in rows) and len(rows) == len(ids) else FAILED
