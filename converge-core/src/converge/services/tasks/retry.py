"""Tasks that an operator tries again: each by a copy, which is submitted once."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

from converge.codec import decode
from converge.contracts.store import Entry
from converge.errors import NoSuchTask, NotRetried, TornRecord
from converge.ids import id_text, uuid7
from converge.machines.task import TaskState
from converge.model.keys import TASK, TORN
from converge.model.task import Spec, Task
from converge.services.store.handle import StoreHandle
from converge.services.tasks.records import moment, to_task
from converge.services.tasks.surroundings import find, read_task
from converge.services.tasks.torn import end_torn, read_torn, set_standing_aside

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


class Retries:
    """Submits copies of tasks that have failed, were cancelled, or cannot be read."""

    def __init__(self, handle: StoreHandle, submit: Callable[[Sequence[Task]], Awaitable[list[str]]]) -> None:
        self._handle, self._store, self._submit = handle, handle.store, submit

    async def retry(self, id_: bytes) -> str:
        """Submit a copy of the task unless there is one; return its id. See `TaskManager.retry`."""
        (torn,) = await self._store.get([TORN(id_)])
        if torn is not None:
            return await self._retry_torn(torn)
        try:
            spec, state = await read_task(self._store, id_)
        except NoSuchTask:
            lost = TornRecord(f"task {id_text(id_)}", "its specification is missing")
            if (torn := await set_standing_aside(self._handle, id_, lost)) is None:
                raise
            return await self._retry_torn(torn)
        except TornRecord as error:
            if (torn := await set_standing_aside(self._handle, id_, error)) is None:
                raise
            return await self._retry_torn(torn)
        if state is None or state.state not in (TaskState.FAILED, TaskState.CANCELLED):
            spec, state, place = await find(self._store, id_)
            raise NotRetried(id_text(id_), state=to_task(id_, spec, state, place).state)
        copy_id = retry_id(id_, state.finished)
        try:
            await read_task(self._store, copy_id)
        except NoSuchTask:
            return await self._copy(to_task(id_, spec, state, None), copy_id)
        return id_text(copy_id)

    async def _retry_torn(self, torn: Entry) -> str:
        """Submit a copy of a task that was set aside, as far as its specification can be read, and end it."""
        id_ = torn.key[1]
        (raw,) = await self._store.get([TASK(id_)])
        if raw is None:
            raise TornRecord(f"task {id_text(id_)}", "nothing is left of its specification; purge it")
        spec = decode(raw.value, Spec, f"task {id_text(id_)}")
        copy_id = retry_id(id_, max(spec.submitted, read_torn(torn).at))
        copied = await self._copy(to_task(id_, spec, None, None), copy_id)
        await end_torn(self._handle, torn)
        return copied

    async def _copy(self, task: Task, copy_id: bytes) -> str:
        return (await self._submit([retry_of(task, id_text(copy_id), moment(await self._handle.now()))]))[0]
