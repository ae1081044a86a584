"""The task that a handler is given: attributes are decoded from its record on first access, since most handlers use
few.

To read all of it takes as long as the rest of a quick task's way through the node.
"""

from __future__ import annotations

from typing import Any

import attrs
from msgspec.structs import astuple

from converge.codec import decode_inputs
from converge.errors import TornRecord
from converge.ids import id_text
from converge.model.place import Found
from converge.model.task import DURABLE, Task
from converge.services.tasks.records import to_task


def claimed_task(found: Found, by: str) -> Task:
    """Return the task that its claimer `by` works on. What cannot be read raises `TornRecord` where it is looked at."""
    task: Task = _new(_Claimed)
    _set(task, "__dict__", {"_source": (found, by)})
    return task


_new, _set = object.__new__, object.__setattr__


class _Unread:
    """An attribute that was not accessed yet; once it is in the task's dictionary, that hides this."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, task: Task | None, owner: type[Task]) -> Any:
        if task is None:
            return getattr(Task, self.name)
        values, name = task.__dict__, self.name
        found: Found = values["_source"][0]
        if name == "id":
            value: Any = id_text(found.id)
        elif name == "inputs" and (found.state is None or found.state.v < DURABLE):
            try:
                value = decode_inputs(found.spec.inputs, "")
            except TornRecord:
                decode_inputs(found.spec.inputs, id_text(found.id))  # its text takes as long as the inputs
                raise
        elif name == "attempts":
            value = 1 if found.state is None else found.state.attempts + 1
        else:
            return getattr(whole(task), name)
        values[name] = value
        return value


class _Claimed(Task):
    """A task of which not all has been read; then it becomes a `Task` like any other."""

    def __eq__(self, other: object) -> bool:
        return Task.__eq__(whole(self), whole(other) if isinstance(other, Task) else other)

    __hash__ = Task.__hash__

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        return whole(self).__reduce_ex__(protocol)


_Claimed.__qualname__ = Task.__qualname__  # its repr is a task's
for _field in attrs.fields(Task):
    setattr(_Claimed, _field.name, _Unread(_field.name))


def replaced_inputs(task: Task, inputs: Any) -> Task:
    """Return the task with other inputs."""
    other: Task = _new(Task)
    _set(other, "__dict__", vars(whole(task)) | {"inputs": inputs})
    return other


def whole(task: Task) -> Task:
    """Read all of a task, and return it."""
    if type(task) is _Claimed:
        values = task.__dict__
        found, by = values.pop("_source")
        for name, value in vars(to_task(*astuple(found), by=by)).items():
            values.setdefault(name, value)
        _set(task, "__class__", Task)
    return task
