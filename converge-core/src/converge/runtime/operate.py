"""What operators' commands do to tasks."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from converge.contracts.store import Store
from converge.errors import InputError, NotRetried
from converge.machines.explain import Explanation
from converge.machines.task import TaskState
from converge.model.descriptor import DiscoveryQuery
from converge.model.task import Task
from converge.services.discovery import DiscoveryService
from converge.services.explain import explain_task
from converge.services.opened import Opened
from converge.services.tasks import TaskManager

OPERATOR = "operator"
"""Who did it, in a task's history, where a command did: no agent's id, and the same on every machine."""


@attrs.frozen(kw_only=True)
class Cancelling:
    """What came of cancelling a task: whether this call did it, and the state that the task is in now."""

    id: str
    is_cancelled: bool
    state: str


async def cancel_all(store: Store, ids: Sequence[str], why: str) -> list[Cancelling]:
    """Cancel the tasks, each once; a terminal one stays as it is.

    Raises:
        InputError: In a group, one for each id that names no task; then nothing was cancelled.
        StoreError: As `TaskManager.cancel`; those before it were cancelled.
    """
    manager, done = TaskManager(store), list[Cancelling]()
    for task in await get_all(manager, ids):
        is_cancelled = await manager.cancel(task.id, by=OPERATOR, why=why)
        state = TaskState.CANCELLED if is_cancelled else (await manager.get(task.id)).state
        done.append(Cancelling(id=task.id, is_cancelled=is_cancelled, state=str(state)))
    return done


@attrs.frozen(kw_only=True)
class Retrying:
    """The copy of a task: its id, and the state that it is in now (one that was made before may have ended)."""

    id: str
    retry_id: str
    state: str


async def retry_all(store: Store, ids: Sequence[str]) -> list[Retrying]:
    """Submit a copy of each task; a task that has one already gets no other.

    Raises:
        InputError: In a group, one for each id that names no task, or none that failed or was cancelled; then nothing was submitted.
        StoreError: As `TaskManager.retry`; to retry all again is safe.
    """
    manager, done = TaskManager(store), list[Retrying]()
    tasks = await get_all(manager, ids)
    wrong = [NotRetried(task.id, state=task.state) for task in tasks if task.state not in (TaskState.FAILED, TaskState.CANCELLED)]
    if wrong:
        raise ExceptionGroup("tasks", wrong)
    for task in tasks:
        copy_id = await manager.retry(task.id)
        done.append(Retrying(id=task.id, retry_id=copy_id, state=str((await manager.get(copy_id)).state)))
    return done


async def explain(store: Store, network: str, task_id: str) -> Explanation:
    """Return why the task is or is not claimed, by all agents that are listed.

    Raises:
        NoSuchTask: There is none.
    """
    agents = await DiscoveryService(store=store, network=network).query(DiscoveryQuery(), refresh_from_store=True)
    return await explain_task(Opened.of(store), task_id, agents)


async def get_all(manager: TaskManager, ids: Sequence[str]) -> list[Task]:
    """Return the tasks in their order, without repeats.

    Raises:
        InputError: In a group, one for each id that names no task.
    """
    found: dict[str, Task] = {}
    wrong: list[InputError] = []
    for id_ in dict.fromkeys(ids):
        try:
            task = await manager.get(id_)
            found[task.id] = task
        except InputError as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("tasks", wrong)
    return list(found.values())
