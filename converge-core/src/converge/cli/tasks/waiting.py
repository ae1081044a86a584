"""`converge tasks signal`, `watch`, `complete` and `fail`: commands for tasks that wait."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE, FAILED
from converge.cli.options import NONE, Common
from converge.cli.run import loop_options
from converge.cli.streams import results
from converge.errors import InputError
from converge.machines.task import TaskState
from converge.model.task import Task
from converge.operations import run as main
from converge.operations import waiting as operate
from converge.runtime.config.config import Config

Id = Annotated[str, Parameter(help="The task's id, as submit wrote it.")]
Payload = Annotated[
    str | None, Parameter(metavar="JSON", help='Plain data as JSON: {"ok": true}, 5 or "text" with its quotes.')
]


def signal(
    task_id: Id,
    name: Annotated[str, Parameter(help="The name that the task waits for, or will.")],
    /,
    *,
    payload: Payload = None,
    key: Annotated[str, Parameter(metavar="TEXT", help="Makes a repeat with the same key harmless.")] = "",
    common: Common = NONE,
) -> int:
    """Send a task a signal that it waits for now or later.

    Example: converge tasks signal ID approval --payload '{"ok": true}'
    """
    settings, data = common.configured(), operate.payload_of(payload)

    async def send(config: Config) -> tuple[str, bool]:
        async with main.opened_store(config) as store:
            return await operate.signal(store, task_id, name, data, key)

    task_id, is_sent = anyio.run(send, settings, backend_options=loop_options())
    if common.json:
        output.line({"id": task_id, "name": name, "is_sent": is_sent})
    else:
        output.table(("id", "signal", "sent"), [(task_id, name, "yes" if is_sent else "no: the task has ended")])
    return DONE if is_sent else FAILED


def watch(
    task_id: Id,
    /,
    *,
    after: Annotated[str, Parameter(metavar="CURSOR", help="Continue after this piece of output.")] = "",
    common: Common = NONE,
) -> int:
    """Follow a task's output, progress and states until it has ended.

    On a terminal text is written as it comes; in a pipe, or with --json, a line of JSON for each piece.
    """
    settings = common.configured()
    is_json = common.json or not results().isatty()

    state, cursor = "", after

    async def follow(config: Config) -> None:
        nonlocal state, cursor
        async with main.opened_store(config) as store, aclosing(operate.follow(store, task_id, after)) as pieces:
            async for piece in pieces:
                state, cursor = piece.data if piece.kind == "state" else state, piece.cursor or cursor
                if is_json:
                    output.line(attrs.asdict(piece))
                elif piece.kind == "data":
                    output.write(output.text(piece.data))
                else:
                    output.note(f"{piece.kind}: {output.text(piece.data)}")

    try:
        anyio.run(follow, settings, backend_options=loop_options())
    except BaseException as error:  # Ctrl-C, or the store is gone
        # Of what a pipe took whoever read it may not have seen the last pieces.
        if cursor and not isinstance(error, InputError | BrokenPipeError):
            output.note(f"to go on behind what was shown: converge tasks watch {task_id} --after {cursor}")
        raise
    return DONE if state == TaskState.COMPLETED else FAILED


def complete(task_id: Id, /, *, result: Payload = None, common: Common = NONE) -> int:
    """Complete a task that waits, with this result, in place of its handler."""
    return _end(task_id, operate.payload_of(result), None, common)


def fail(
    task_id: Id, why: Annotated[str, Parameter(help="The error, for the task's history.")], /, *, common: Common = NONE
) -> int:
    """Fail a task that waits, for good."""
    return _end(task_id, None, why, common)


def _end(task_id: str, result: object, error: str | None, common: Common) -> int:
    settings = common.configured()

    async def end(config: Config) -> Task:
        async with main.opened_store(config) as store:
            return await operate.end(store, task_id, result=result, error=error)

    task = anyio.run(end, settings, backend_options=loop_options())
    if common.json:
        output.line({"id": task.id, "state": str(task.state)})
    else:
        output.table(("id", "state"), [(task.id, task.state.lower())])
    return DONE
