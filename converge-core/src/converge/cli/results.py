"""A table of the outcomes of tasks, with their total if there is one."""

from __future__ import annotations

from collections.abc import Sequence

from converge.cli import output
from converge.machines.task import TaskState
from converge.operations.drain import Ended, totals


def write_results(rows: Sequence[Ended], *, as_json: bool) -> None:
    """Write a row per task: its name, its result or error; a last row has the sums where all results are numbers."""
    if as_json:
        for row in rows:
            output.line({"id": row.id, "hint": row.hint, "state": row.state, "result": row.result, "error": row.error})
        return
    if not rows:
        return
    completed = [row for row in rows if row.state == TaskState.COMPLETED]
    sums = totals([row.result for row in completed])
    names = list(sums) if sums else ["result"]
    has_others = len(completed) < len(rows)
    columns = ["task", *names, *(["state", "error"] if has_others else [])]
    cells = [
        [row.hint or row.id, *_result(row, names if sums else None), *([row.state.lower(),
        row.error] if has_others else [])]
        for row in rows
    ]  # fmt: skip
    footer = (
        [
            f"total ({len(completed):,} {'task' if len(completed) == 1 else 'tasks'})",
            *sums.values(),
            *(["", ""] if has_others else []),
        ]
        if sums
        else None
    )
    output.table(columns, cells, footer=footer)


def _result(row: Ended, names: Sequence[str] | None) -> list[object]:
    if row.state != TaskState.COMPLETED:
        return [""] * len(names or ["result"])
    return [output.text(row.result)] if names is None else [row.result[name] for name in names]
