"""`converge tasks purge`: remove ended tasks before their retention has passed."""

from __future__ import annotations

from typing import Annotated

import anyio
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE, FAILED
from converge.cli.options import NONE, Common
from converge.cli.run import loop_options
from converge.errors import InputError
from converge.machines.task import TaskState
from converge.operations import run as main
from converge.operations import tasks as operate
from converge.operations.drain import Progress
from converge.runtime.config.config import Config
from converge.services.tasks.purge import Purged


def purge(
    *,
    pool: Annotated[
        list[str] | None,
        Parameter(metavar="ID", negative=(), help="Only tasks in this pool; repeat it for several."),
    ] = None,
    all_pools: Annotated[bool, Parameter(negative=(), help="Tasks of every pool.")] = False,
    state: Annotated[
        list[TaskState] | None,
        Parameter(negative=(), help="Only tasks in this state; repeat it for several; by default all that have ended."),
    ] = None,
    older_than: Annotated[
        str | None,
        Parameter(
            metavar="WHEN",
            help="Only tasks that ended so long ago (15m, 2h, 7d), or before a moment (2026-01-31, UTC).",
        ),
    ] = None,
    dry_run: Annotated[bool, Parameter(negative=(), help="Count what would be removed, and remove nothing.")] = False,
    yes: Annotated[
        bool,
        Parameter(name=["--yes", "-y"], negative=(), help="Do not ask; required if standard input is not a terminal."),
    ] = False,
    common: Common = NONE,
) -> int:
    """Remove ended tasks, with their results and dedup keys, before their retention has passed. What is removed cannot
    be recovered.

    Live tasks are never touched. On a terminal it first shows how many there are, and asks.
    """
    settings = common.configured()
    if bool(pool) == all_pools:
        raise InputError("--pool or --all-pools is required: name the pools whose tasks are to be removed")
    wanted = operate.Purging(pool_ids=pool or (), states=state or (), older_than=older_than)
    if dry_run or not yes:
        if not dry_run and not output.can_ask():
            raise InputError(
                "--yes is missing: standard input is not a terminal; --dry-run shows what would be removed"
            )
        found = anyio.run(_purge, settings, wanted, True, None, backend_options=loop_options())
        if dry_run or not found:
            _write(found, is_done=False, as_json=common.json)
            return DONE
        total = sum(one.count for one in found)
        if not output.ask(f"Remove {_tasks(total)} ({_named(found)})? They cannot be had back."):
            output.note("nothing was removed")
            return FAILED
    with output.progress("removed", is_wanted=True) as on_progress:
        found = anyio.run(_purge, settings, wanted, False, on_progress, backend_options=loop_options())
    _write(found, is_done=True, as_json=common.json)
    return DONE


def _write(found: list[Purged], *, is_done: bool, as_json: bool) -> None:
    if as_json:
        for one in found:
            output.line({"pool_id": one.pool_id, "state": one.state, "count": one.count, "is_removed": is_done})
        return
    if not found:
        output.write("there is nothing to remove")
        return
    word = "removed" if is_done else "would be removed"
    rows = [(one.pool_id, one.state.lower(), one.count) for one in found]
    footer = ("total", "", sum(one.count for one in found)) if len(rows) > 1 else None
    output.table(("pool", "state", word), rows, footer=footer)


def _named(found: list[Purged]) -> str:
    return ", ".join(f"{one.count:,} {one.state.lower()} in {one.pool_id}" for one in found)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count:,} tasks"


async def _purge(
    config: Config, wanted: operate.Purging, is_dry_run: bool, on_progress: Progress | None
) -> list[Purged]:
    async with main.opened_store(config) as store:
        if is_dry_run or on_progress is None:
            return await operate.purge(store, wanted, is_dry_run=is_dry_run)
        total = sum(one.count for one in await operate.purge(store, wanted, is_dry_run=True))
        return await operate.purge(
            store, wanted, is_dry_run=False, on_page=lambda done: on_progress(done, max(done, total), 0)
        )
