"""`converge tasks show`, `explain`, `cancel` and `retry`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from shlex import quote
from typing import Annotated, Any

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE, FAILED
from converge.cli.options import NONE, Common
from converge.cli.run import loop_options
from converge.machines.explain import Explanation
from converge.machines.task import TaskState
from converge.model.identity import SHOWN, is_agent_id
from converge.model.task import Task
from converge.operations import run as main
from converge.operations import tasks as operate
from converge.operations import waiting
from converge.runtime.config.config import Config
from converge.services.durable.manager import TaskManager
from converge.services.tasks.records import moment


def show(
    task_id: Annotated[str, Parameter(help="The task's id, or an unambiguous beginning of it.")],
    /,
    *,
    common: Common = NONE,
) -> int:
    """Show one task with its history."""
    settings = common.configured()
    task, durable = anyio.run(_get, settings, task_id, backend_options=loop_options())
    record = record_of(task)
    if common.json:
        output.line(record | {"durable": attrs.asdict(durable)})
        return DONE
    if task.state == TaskState.WAITING:
        record["state"] = f"{task.state.lower()} {waits_of(task)}"
        record |= dict.fromkeys(("waiting_for", "waiting_since", "not_before", "parks"))
    record["parks"] = record["parks"] or None
    record |= {"unread signals": _counted(durable.unread), "chunks": durable.chunks or ""}
    record["children"] = ", ".join(f"{count} {state.lower()}" for state, count in durable.children.items())
    history = record.pop("history")
    shown = [
        (name, output.text(value) if isinstance(value, dict | list) else value)
        for name, value in record.items()
        if value not in (None, "", [], {})
    ]
    output.table(("field", "value"), shown)
    if history:
        columns = ("ended", "what", "took", "by", "why", "token")
        rows = [(one["at"], one["what"], _took(one), short(one["by"]), one["why"], one["token"]) for one in history]
        output.table(columns, rows)
    if durable.steps:
        steps = ("n", "step", "kind", "ms", "bytes", "token", "error")
        output.table(steps, [_step_cells(one) for one in durable.steps])
    for line in _ways_on(task, durable):
        output.note(line)
    return DONE


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{count} of {name}" for name, count in Counter(names).items())


def _step_cells(step: dict[str, Any]) -> tuple[object, ...]:
    kind = step["kind"]
    if not step["is_over"]:
        until = step["until"]
        kind = f"{kind}, until {datetime.fromisoformat(until):{UNTIL}}" if until else f"{kind}, not over"
    return (step["n"], step["name"], kind, step["ms"], step["bytes"], step["token"], step["error"])


def _ways_on(task: Task, durable: waiting.Durable) -> Iterator[str]:
    """Yield the commands after which a task that waits goes on, or would be over."""
    if task.state != TaskState.WAITING:
        return
    for name in durable.names:
        yield f"to go on: converge tasks signal {task.id} {quote(name)} --payload JSON"
    if durable.children and not durable.names:
        yield f"its children: converge tasks list --parent {task.id}"
    if not durable.names:
        yield f"to end it in place of its handler: converge tasks complete {task.id} --result JSON"


UNTIL = "%b %-d, %H:%M"


def waits_of(task: Task) -> str:
    """Return what a task waits for, since when, until when, and how often it was parked, as a sentence goes on."""
    since = task.waiting_since
    waited = output.age((datetime.now(UTC) - since).total_seconds()) if since is not None else "?"
    due = task.not_before
    year = "" if due is None or due.year == datetime.now(UTC).year else f" {due:%Y}"
    until = f", until {due:{UNTIL}}{year} UTC" if due is not None else ""
    times = "once" if task.parks == 1 else f"{task.parks} times"
    return f"for {task.waiting_for} since {waited}{until}, parked {times}"


def explain(
    task_id: Annotated[str, Parameter(help="The task's id, or an unambiguous beginning of it.")],
    /,
    *,
    common: Common = NONE,
) -> int:
    """Explain why a task is, or is not, claimed, and which agents could claim it.

    An agent's task types are not in its descriptor: one that takes only some types may pass over a task that it is said
    to be able to claim.
    """
    settings = common.configured()
    task_id, found = anyio.run(_explain, settings, task_id, backend_options=loop_options())
    lane = found.lane
    record: dict[str, Any] = {
        "id": task_id, "state": found.state, "place": found.place, "pool_id": lane.pool, "topic": lane.topic,
        "type": lane.type,
        "required_capabilities": list(lane.capabilities), "is_claimable": found.is_claimable,
    }  # fmt: skip
    if common.json:
        agents = [
            {
                "name": one.group.name,
                "count": one.group.count,
                "capabilities": sorted(one.group.claimer.capabilities),
                "topics": sorted(one.group.claimer.topics or ()),
                "why_not": one.refusal,
            }
            for one in found.verdicts
        ]
        output.line({**record, "reasons": list(found.reasons), "agents": agents})
        return DONE
    record["is_claimable"] = "yes" if found.is_claimable else "no"
    shown = [(name, " ".join(value) if isinstance(value, list) else value) for name, value in record.items()]
    output.table(
        ("field", "value"), [*(row for row in shown if row[1] != ""), *(("reason", reason) for reason in found.reasons)]
    )
    if found.verdicts:
        output.table(
            ("agents", "count", "verdict"),
            [(one.group.name, one.group.count, one.refusal or "could claim it") for one in found.verdicts],
        )
    return DONE


async def _explain(config: Config, text: str) -> tuple[str, Explanation]:
    async with main.opened_store(config) as store:
        task_id = await operate.whole_id(store, text)
        return task_id, await operate.explain(store, config.network, task_id)


def cancel(
    task_ids: Annotated[list[str], Parameter(help="The tasks' ids, or unambiguous beginnings of them.")],
    /,
    *,
    why: Annotated[str, Parameter(metavar="TEXT", help="The reason, for the tasks' history.")] = "",
    common: Common = NONE,
) -> int:
    """Cancel tasks that have not ended; the handler of a running one is cancelled.

    All ids are checked before anything is cancelled.
    """
    settings = common.configured()
    done = anyio.run(_cancel, settings, task_ids, why, backend_options=loop_options())
    if common.json:
        for one in done:
            output.line(attrs.asdict(one))
    else:
        rows = [(one.id, one.state.lower(), "now" if one.is_cancelled else "before") for one in done]
        output.table(("id", "state", "ended"), rows)
    return DONE if all(one.state == TaskState.CANCELLED for one in done) else FAILED


def retry(
    task_ids: Annotated[list[str], Parameter(help="The tasks' ids, or unambiguous beginnings of them.")],
    /,
    *,
    common: Common = NONE,
) -> int:
    """Submit a copy of each task that failed or was cancelled; a task that has a copy already gets no other.

    All ids are checked before anything is submitted.
    """
    settings = common.configured()
    done = anyio.run(_retry, settings, task_ids, backend_options=loop_options())
    if common.json:
        for one in done:
            output.line(attrs.asdict(one))
    else:
        output.table(("id", "retried as", "state"), [(one.id, one.retry_id, one.state.lower()) for one in done])
    return DONE


async def _retry(config: Config, ids: Sequence[str]) -> list[operate.Retrying]:
    async with main.opened_store(config) as store:
        return await operate.retry_all(store, [await operate.whole_id(store, one) for one in ids])


async def _cancel(config: Config, ids: Sequence[str], why: str) -> list[operate.Cancelling]:
    async with main.opened_store(config) as store:
        return await operate.cancel_all(store, [await operate.whole_id(store, one) for one in ids], why)


async def _get(config: Config, task_id: str) -> tuple[Task, waiting.Durable]:
    async with main.opened_store(config) as store:
        task = await TaskManager(store).get(await operate.whole_id(store, task_id))
        return task, await waiting.durable(store, task)


def short(id_: str) -> str:
    """Return as much of an agent's id as a table shows; any other name whole."""
    return id_[:SHOWN] if is_agent_id(id_) else id_


def _took(attempt: dict[str, Any]) -> str:
    return "" if attempt["took_sec"] is None else f"{attempt['took_sec']:.3f} s"


def record_of(task: Task) -> dict[str, Any]:
    """Return the task as JSON shows it."""
    record = {field.name: getattr(task, field.name) for field in attrs.fields(Task)}
    record["state"] = str(task.state)
    record["required_capabilities"] = list(task.required_capabilities)
    record["history"] = [
        {"at": moment(one.at).isoformat(), "what": one.what, "by": one.by, "why": one.why, "token": one.token,
        "claimed_at": moment(one.claimed_at).isoformat() if one.claimed_at else None,
        "took_sec": (one.at - one.claimed_at) / 1_000_000 if one.claimed_at else None} for one in task.history
    ]  # fmt: skip
    return record
