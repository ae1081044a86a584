"""What the commands do with tasks that wait, and what they show of tasks that outlive their attempts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import attrs

from converge.codec import decode
from converge.contracts.store import Entry, Store
from converge.errors import InputError, SchemaTooNew, TornRecord
from converge.ids import id_bytes
from converge.machines.durable import FOREVER, Signal, Step
from converge.model.keys import CHUNK, SIGNAL, STEP
from converge.model.task import Task
from converge.operations.tasks import whole_id
from converge.services.durable.limits import STEPS, shown
from converge.services.durable.manager import TaskManager
from converge.services.durable.output import Output
from converge.services.store.pages import read_all
from converge.services.tasks.records import moment
from converge.services.tasks.surroundings import read_task


@attrs.frozen(kw_only=True)
class Durable:
    """What a task has recorded: its steps in order, the names of signals that it waits for, of signals that nobody has
    consumed, its children by state, how many pieces of output.
    """

    steps: Sequence[dict[str, Any]] = ()
    names: Sequence[str] = ()
    unread: Sequence[str] = ()
    children: dict[str, int] = attrs.field(factory=dict)
    chunks: int = 0


async def durable(store: Store, task: Task) -> Durable:
    """Return what the task has recorded."""
    id_ = id_bytes("task id", task.id)
    _, state = await read_task(store, id_)
    entries = await read_all(store, STEP(id_, state.restarts if state is not None else 0))
    steps = sorted(map(_step, entries), key=lambda one: one[0].number)
    unread = [_name(entry) for entry in await read_all(store, SIGNAL(id_))]
    (chunks,) = await store.count([CHUNK(id_)])
    children = Counter(str(child.state) for child in await TaskManager(store).children(task.id))
    rows = [
        {
            "n": number, "name": shown(label[1:]), "kind": KINDS.get(label[0], "step"), "ms": step.ms,
            "bytes": len(bytes(step.result)), "token": step.token,
            "error": f"{step.kind}: {step.text}" if step.text else step.kind, "is_over": step.is_over,
            "until": moment(step.until).isoformat() if 0 < step.until < FOREVER else None,
        }
        for number, (step, label) in enumerate(steps, 1)
    ]  # fmt: skip
    names = state.wait.names if state is not None and state.wait is not None else ()
    return Durable(steps=rows, names=names, unread=unread, children=dict(children), chunks=chunks)


def _step(entry: Entry) -> tuple[Step, str]:
    """Return a step and its label; of one that cannot be read, why: who looks is to see the others."""
    label = entry.key[3]
    try:
        return decode(entry.value, Step, "the record"), label
    except (TornRecord, SchemaTooNew) as error:
        return Step(number=STEPS, at=0, kind=type(error).__name__, text=str(error)), label


def _name(entry: Entry) -> str:
    try:
        return decode(entry.value, Signal, "the record").name
    except (TornRecord, SchemaTooNew):
        return UNREADABLE


UNREADABLE = "(one that cannot be read)"

KINDS = {".": "step", "?": "wait", "~": "sleep", "+": "spawn", "^": "first", "&": "gather"}


async def signal(store: Store, task_id: str, name: str, payload: Any, key: str) -> tuple[str, bool]:
    """Send the signal; return the task's whole id, and False if it has ended."""
    task_id = await whole_id(store, task_id)
    return task_id, await TaskManager(store).signal(task_id, name, payload, key=key)


async def end(store: Store, task_id: str, *, result: Any = None, error: str | None = None) -> Task:
    """Complete a task that waits, or fail it; return it."""
    manager, task_id = TaskManager(store), await whole_id(store, task_id)
    if error is None:
        await manager.complete(task_id, result)
    else:
        await manager.fail(task_id, error)
    return await manager.get(task_id)


async def follow(store: Store, task_id: str, after: str) -> AsyncGenerator[Output, None]:
    """Yield what the task puts out until it has ended."""
    async for output in TaskManager(store).watch(await whole_id(store, task_id), after=after):
        yield output


def payload_of(text: str | None) -> Any:
    """Return the plain data that a flag holds as JSON; None where it was not given.

    Raises:
        InputError: It is not JSON.
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{text[:80]}… is nested too deep") from error
    except ValueError as error:
        raise InputError(f"{text[:80]} is not JSON ({error}); text needs quotes: '\"yes\"'") from error
