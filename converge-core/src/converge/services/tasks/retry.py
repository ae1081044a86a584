"""The copy of a task that is tried again by an operator."""

from __future__ import annotations

import hashlib
from datetime import datetime

from converge.ids import uuid7
from converge.model.task import Task

RETRY_OF = "retry_of"
"""The name in the copy's `trace` under which the task's id stands."""

SAME = (
    "pool_id",
    "type",
    "topic",
    "required_capabilities",
    "inputs",
    "priority",
    "timeout_sec",
    "max_attempts",
    "retry_delay_sec",
    "ordering_key",
)
"""What a copy takes over as it is."""


def retry_id(id_: bytes, finished: int) -> bytes:
    """Return the id of the copy of a task that ended at `finished` (store time).

    It follows from the task, so that two operators, or one whose answer was lost, make one copy.
    """
    data = hashlib.blake2b(id_, digest_size=8, person=b"converge/retry").digest()
    return uuid7(finished, data[:6], int.from_bytes(data[6:], "big"))


def retry_of(task: Task, copy_id: str, now: datetime) -> Task:
    """Return what to submit: the task without its dedup key (it still has it) and without a passed deadline."""
    not_before = task.not_before if task.not_before is not None and task.not_before > now else None
    return Task(
        id=copy_id,
        dedup_key=None,
        not_before=not_before,
        deadline=task.deadline if task.deadline is not None and task.deadline > now else None,
        trace={**task.trace, RETRY_OF: task.id},
        **{name: getattr(task, name) for name in SAME},
    )
