"""What the commands do with tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import datetime

import attrs

from converge.contracts.store import Entry, Store
from converge.errors import InputError, InvalidValue, NoSuchTask, NotRetried, TornRecord
from converge.ids import id_bytes, is_id
from converge.machines.explain import Explanation
from converge.machines.task import TERMINAL, TaskState
from converge.model.descriptor import DiscoveryQuery
from converge.model.keys import STATE, TASK, TORN
from converge.model.task import Task
from converge.operations.moments import read_moment
from converge.services.discovery.service import DiscoveryService
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.store import pages
from converge.services.store.handle import StoreHandle
from converge.services.tasks.explain import explain_task
from converge.services.tasks.listing import visit_tasks
from converge.services.tasks.purge import Purged, purge_torn
from converge.services.tasks.purge import purge as purge_pages
from converge.services.tasks.records import moment
from converge.services.tasks.surroundings import read_from

OPERATOR = "operator"
"""Who did it, in a task's history, where a command did: no agent's id, and the same on every machine."""


@attrs.frozen(kw_only=True)
class Cancelling:
    """The result of cancelling a task: whether this call did it, and the state that the task is in now."""

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
class Wanted:
    """Which tasks to list; None or empty fields do not filter. `since`: submitted then or later, as typed; `parent`:
    the children of this task.
    """

    state: TaskState | None = None
    pool_id: str | None = None
    types: Sequence[str] = ()
    topics: Sequence[str] = ()
    since: str | None = None
    parent: str | None = None
    skip: int = 0
    limit: int = 0


LEAST_PREFIX = 4
"""Characters of an id that stand for it at least."""

_PREFIX = re.compile(r"[0-9a-f-]+")


async def whole_id(store: Store, text: str) -> str:
    """Return the id of the one task whose id begins so; what cannot be the beginning of one comes back as it is.

    Raises:
        InvalidValue: No id begins so, or several do.
        StoreError: As `Store.scan`.
    """
    if is_id(text) or not LEAST_PREFIX <= len(text) < 36 or not _PREFIX.fullmatch(text):
        return text
    found: set[str] = set()

    def look(page: Sequence[Task]) -> bool:
        found.update(task.id for task in page if task.id.startswith(text))
        return len(found) < 2

    await visit_tasks(store, None, None, look)
    if len(found) != 1:
        raise InvalidValue(
            "task id",
            text,
            "more of it: several ids begin with this" if found else "the id of a task: none begins with this",
        )
    return found.pop()


VisitPage = Callable[[Sequence[Task]], None]


async def list_tasks(store: Store, wanted: Wanted, visit: VisitPage) -> bool:
    """Pass the wanted tasks to the visitor, page by page; return whether there were more than the limit (0: none).

    Raises:
        NoSuchPool: With the nearest name.
        InvalidValue: `since` is no age and no moment.
        NoSuchTask: The parent is not there.
    """
    if wanted.pool_id is not None:
        await StoreHandle.of(store).pool(wanted.pool_id)
    since = None if wanted.since is None else moment(read_moment("--since", wanted.since, await store.time()))
    live: set[str] = set()  # one that moves may be met again
    skipped, shown, is_more = 0, 0, False

    def filtered(page: Sequence[Task]) -> bool:
        nonlocal skipped, shown, is_more
        some = [task for task in page if _is_wanted(task, wanted, since) and task.id not in live]
        live.update(task.id for task in some if task.finished_at is None)
        passed = min(len(some), wanted.skip - skipped)
        skipped, some = skipped + passed, some[passed:]
        if wanted.limit and len(some) > wanted.limit - shown:
            some, is_more = some[: wanted.limit - shown], True
        shown += len(some)
        if some:
            visit(some)
        return not is_more

    if wanted.parent is not None:
        filtered(await _children(store, wanted.parent))
    else:
        await visit_tasks(store, wanted.state, wanted.pool_id, filtered)
    return is_more


async def _children(store: Store, task_id: str) -> Sequence[Task]:
    manager, task_id = TaskManager(store), await whole_id(store, task_id)
    parent = await manager.get(task_id)
    if parent.state not in TERMINAL:
        return await manager.children(task_id)
    found: dict[str, Task] = {}  # the end of a task removes its list of children; each still names its parent

    def look(page: Sequence[Task]) -> bool:
        found.update((task.id, task) for task in page if task.parent_id == parent.id)
        return True

    await visit_tasks(store, None, None, look)
    return [found[id_] for id_ in sorted(found)]


def _is_wanted(task: Task, wanted: Wanted, since: datetime | None) -> bool:
    if wanted.state not in (None, task.state) or wanted.pool_id not in (None, task.pool_id):
        return False
    if wanted.types and task.type not in wanted.types:
        return False
    if wanted.topics and task.topic not in wanted.topics:
        return False
    return since is None or (task.submitted_at is not None and task.submitted_at >= since)


@attrs.frozen(kw_only=True)
class Purging:
    """Which ended tasks to remove: of these pools and states (none: all), that ended so long ago, as typed."""

    pool_ids: Sequence[str] = ()
    states: Sequence[TaskState] = ()
    older_than: str | None = None


async def purge(
    store: Store, wanted: Purging, *, is_dry_run: bool, on_page: Callable[[int], None] = lambda _: None
) -> list[Purged]:
    """Remove the tasks, or only count them; return how many of which pool and state.

    Raises:
        InputError: In a group, one for each pool that does not exist, or for a state that is not one of ended tasks;
            then nothing was removed.
        StoreError: The tasks passed to `on_page` are gone; purging again is safe.
    """
    handle, wrong = StoreHandle.of(store), list[InputError]()
    for pool_id in wanted.pool_ids:
        try:
            await handle.pool(pool_id, is_fresh=True)
        except InputError as error:
            wrong.append(error)
    wrong += [InvalidValue("--state", str(state).lower(), _ENDED) for state in wanted.states if state not in TERMINAL]
    if wrong:
        raise ExceptionGroup("pools", wrong)
    pool_ids = list(wanted.pool_ids) or [pool.id for pool in await PoolManager(store).pools()]
    before = None if wanted.older_than is None else read_moment("--older-than", wanted.older_than, await store.time())
    counts: dict[tuple[str, str], int] = {}
    async with aclosing(
        purge_pages(handle, dict.fromkeys(pool_ids), set(wanted.states or TERMINAL), before, is_dry_run=is_dry_run)
    ) as pages:
        async for page in pages:
            counts[page.pool_id, page.state] = counts.get((page.pool_id, page.state), 0) + page.count
            on_page(sum(counts.values()))
    if not wanted.states:
        torn = purge_torn(handle, set(wanted.pool_ids) or None, before, is_dry_run=is_dry_run)
        async with aclosing(torn) as ones:
            async for one in ones:
                counts[one.pool_id, one.state] = counts.get((one.pool_id, one.state), 0) + one.count
    return [Purged(pool_id=pool_id, state=state, count=count) for (pool_id, state), count in counts.items()]


_ENDED = f"a state of tasks that have ended: {', '.join(sorted(state.lower() for state in TERMINAL))}"


@attrs.frozen(kw_only=True)
class Retrying:
    """The copy of a task: its id, and the state that it is in now (one that was made before may have ended)."""

    id: str
    retry_id: str
    state: str


async def retry_all(store: Store, ids: Sequence[str]) -> list[Retrying]:
    """Submit a copy of each task; a task that has one already gets no other.

    Raises:
        InputError: In a group, one for each id that names no task, or none that failed or was cancelled; then nothing
            was submitted.
        StoreError: As `TaskManager.retry`; to retry all again is safe.
    """
    manager, done = TaskManager(store), list[Retrying]()
    torn = await _unreadable(store, ids)
    tasks = await get_all(manager, [id_ for id_ in ids if id_ not in torn])
    wrong = [
        NotRetried(task.id, state=task.state)
        for task in tasks
        if task.state not in (TaskState.FAILED, TaskState.CANCELLED)
    ]
    if wrong:
        raise ExceptionGroup("tasks", wrong)
    for id_ in [*(task.id for task in tasks), *torn]:
        copy_id = await manager.retry(id_)
        done.append(Retrying(id=id_, retry_id=copy_id, state=str((await manager.get(copy_id)).state)))
    return done


async def _unreadable(store: Store, ids: Sequence[str]) -> list[str]:
    """Return those of the tasks that cannot be read, set aside or still where they stand."""
    known = {id_: id_bytes("task id", id_) for id_ in dict.fromkeys(ids) if is_id(id_)}
    entries = await pages.get_all(store, [family(key) for key in known.values() for family in (TORN, TASK, STATE)])
    records = zip(entries[::3], entries[1::3], entries[2::3], strict=True)
    return [id_ for (id_, key), one in zip(known.items(), records, strict=True) if _is_unreadable(key, *one)]


def _is_unreadable(id_: bytes, torn: Entry | None, spec: Entry | None, state: Entry | None) -> bool:
    if torn is not None:
        return True
    try:
        read_from(id_, (spec, state))
    except TornRecord:
        return True
    except NoSuchTask:
        pass
    return False


async def explain(store: Store, network: str, task_id: str) -> Explanation:
    """Return why the task is or is not claimed, by all agents that are listed.

    Raises:
        NoSuchTask: There is none.
    """
    agents = await DiscoveryService(store=store, network=network).query(DiscoveryQuery(), refresh_from_store=True)
    return await explain_task(StoreHandle.of(store), task_id, agents)


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
