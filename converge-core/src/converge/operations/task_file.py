"""Read tasks from JSON lines, and the inputs of one from flags; everything is checked before any task is used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from converge.codec import decode_plain
from converge.errors import ConvergeError, InputError, TornRecord
from converge.ids import check_name, id_bytes
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.tasks.records import check_deadline, to_spec

FIELDS = (
    "pool_id", "id", "type", "topic", "required_capabilities", "inputs", "priority", "not_before", "deadline",
    "timeout_sec", "max_attempts",
    "retry_delay_sec", "dedup_key", "ordering_key", "trace",
)  # fmt: skip
"""What a submitter says of a task; the rest of a Task is the store's."""

PROBLEMS = 20
"""Most problems reported; a file with more is not a file of tasks."""


def read_tasks(lines: Iterable[str], name: str, *, pool_id: str = "") -> list[Task]:
    """Return the tasks of the lines, empty ones left out; `pool_id` is for those that name none.

    Raises:
        InputError: Everything that is wrong, each with the number of its line.
    """
    tasks: list[Task] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix("\ufeff")  # what some editors put at the start of UTF-8
        if not line.strip():
            continue
        try:
            tasks.append(check_task(_task(line, pool_id)))
        except (ConvergeError, ValueError) as error:
            problems.append(f"{name}: line {number}: {error}")
            if len(problems) == PROBLEMS:
                break
    if problems:
        raise InputError("\n".join(problems))
    return tasks


def check_task(task: Task) -> Task:
    """Return the task if a submit would not refuse it for what it is.

    Raises:
        InputError: Which field, and what it should be.
    """
    check_name("pool_id", task.pool_id)
    if task.id:
        id_bytes("id", task.id)
    spec = to_spec(task, Pool(id=task.pool_id), 0)
    check_deadline(task, spec)  # with not_before; with store time it is compared when it is submitted
    return task


def _task(line: str, pool_id: str) -> Task:
    try:
        values = decode_plain(line.encode(), "line")
    except TornRecord as error:
        raise ValueError(f"this is not valid JSON for Converge: {error.reason}") from error
    except UnicodeEncodeError as error:
        raise ValueError("this is not UTF-8") from error
    if not isinstance(values, dict):
        raise ValueError("expected an object with the fields of a Task")
    for key in values:
        if key not in FIELDS:
            near = difflib.get_close_matches(key, FIELDS, n=1)
            raise ValueError(
                f"{key}: unknown key; " + (f'did you mean "{near[0]}"?' if near else f"known are {', '.join(FIELDS)}")
            )
    values = {key: value for key, value in values.items() if value is not None}
    if not values.setdefault("pool_id", pool_id):
        raise ValueError("pool_id is missing, and --pool is not given either")
    return Task(**_with_moments(values))


def _with_moments(values: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(values)
    for key in ("not_before", "deadline"):
        if key in made:
            try:
                made[key] = datetime.fromisoformat(made[key])
            except (TypeError, ValueError):
                raise ValueError(f"{key}: {made[key]!r} is not a moment such as 2026-01-31T12:00:00+00:00") from None
    return made


def read_inputs(texts: Sequence[str]) -> dict[str, Any]:
    """Return the inputs of `NAME=TEXT`, `NAME:=JSON` and `NAME=@FILE`: a file's content is text if it is UTF-8.

    Raises:
        InputError: Which one is not well formed, or cannot be read.
    """
    inputs: dict[str, Any] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        is_json, name = name.endswith(":"), name.removesuffix(":")
        if not mark or not name:
            raise InputError(f"--input {text}: expected NAME=TEXT, NAME:=JSON or NAME=@FILE")
        if name in inputs:
            raise InputError(f"--input {name}: is given twice")
        if is_json:
            inputs[name] = _json(name, value)
        else:
            inputs[name] = _content(name, Path(value[1:])) if value.startswith("@") else _text(name, value)
    return inputs


def _json(name: str, value: str) -> Any:
    try:
        return decode_plain(_text(name, value).encode(), "value")
    except TornRecord as error:
        raise InputError(f"--input {name}:={value}: is not valid JSON for Converge: {error.reason}") from error


def _text(name: str, value: str) -> str:
    # What Python makes of an argument's bytes that are no UTF-8.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(f"--input {name}: is not UTF-8; bytes come from a file: --input {name}=@FILE")
    return value


def _content(name: str, file: Path) -> str | bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"--input {name}: {file} cannot be read: {error.strerror}") from error
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content
