"""The task manager refuses what it cannot do, before it touches the store."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import attrs
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Entry
from converge.errors import InvalidValue, NoSuchPool, StaleClaim
from converge.model.keys import KEY, Key
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.testing.fixtures import wait_until


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_claim_of_less_than_one_task_is_refused_and_takes_nothing(limit: int) -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="p"))
    with pytest.raises(InvalidValue, match="limit"):
        await tasks.claim("a", ["p"], limit=limit)
    assert (await tasks.get(task_id)).attempts == 0
    await tasks._handle.close()


async def test_a_task_that_was_not_claimed_cannot_be_finished() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    task = await tasks.get(await tasks.submit(Task(pool_id="p")))
    with pytest.raises(StaleClaim, match="not claimed"):
        await tasks.complete(task, 1)
    with pytest.raises(StaleClaim, match="holds no claim"):
        await tasks.report("a", task.id, 1)


async def test_the_right_token_with_a_wrong_nonce_is_refused_by_its_own_manager() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="p"))
    (task,) = await tasks.claim("a", ["p"])
    with pytest.raises(StaleClaim):
        await tasks.complete(attrs.evolve(task, nonce="ab" * 16), 1)
    await tasks.complete(task, 2)
    assert (await tasks.get(task.id)).result == 2
    await tasks._handle.close()


@pytest.mark.parametrize("is_said_again", [True, False])
async def test_a_finish_of_an_older_claim_leaves_the_current_one_reportable(is_said_again: bool) -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="p"))
    (older,) = await tasks.claim("a", ["p"])
    await tasks.release(older)
    (current,) = await tasks.claim("a", ["p"])
    if is_said_again:
        await tasks.release(older)
    else:
        with pytest.raises(StaleClaim):
            await tasks.complete(older, 1)
    assert (await tasks.get(current.id)).claimed_by == "a"
    await tasks.report("a", current.id, 2)
    assert (await tasks.get(current.id)).result == 2
    await tasks._handle.close()


async def test_the_tasks_of_a_pool_that_is_not_there_cannot_be_listed() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="docs"))
    tasks = TaskManager(store)
    with pytest.raises(NoSuchPool, match='did you mean "docs"'):
        await tasks.list(pool_id="doc")
    assert await tasks.list(pool_id="docs") == ()


async def test_a_list_that_stops_at_its_limit_leaves_no_scan_open() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    await tasks.submit_many([Task(pool_id="p") for _ in range(3)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        listed = await tasks.list(pool_id="p", limit=1)
        gc.collect()
    assert len(listed) == 1
    assert [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)] == []


async def test_a_task_that_ends_while_it_is_being_cancelled_is_not_cancelled() -> None:
    class Late(MemoryStore):
        """Lets its task end between the two reads of a cancel: where it stands, and what stands around it."""

        before_row: Callable[[], Awaitable[None]] | None = None

        async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
            act = self.before_row
            if act is not None and any(key[0] is KEY for key in keys):
                self.before_row = None
                await act()
            return await super().get(keys)

    store = Late()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="p", ordering_key="k"))
    (task,) = await tasks.claim("a", ["p"])
    store.before_row = partial(tasks.complete, task, 1)
    assert not await tasks.cancel(task_id)
    assert (await tasks.get(task_id)).result == 1
    await tasks._handle.close()


async def test_a_loop_that_polls_an_empty_pool_lets_others_run() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    ran = anyio.Event()

    async def other() -> None:
        ran.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(other)
            while not ran.is_set():
                assert await tasks.claim("a", ["p"]) == []
    await tasks._handle.close()


@pytest.mark.parametrize("name", ["pools", "capabilities", "topics", "types"])
async def test_one_name_where_several_are_expected_is_refused(name: str) -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    given: dict[str, Any] = {"pools": ["p"], name: "p"}
    with pytest.raises(InvalidValue, match=name):
        await TaskManager(store).claim("a", **given)


async def test_a_claimer_on_a_busy_lane_finds_a_new_lane_within_a_poll_interval() -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=0.05)
    await tasks.submit_many([Task(pool_id="p") for _ in range(5_000)])
    await tasks.claim("a", ["p"])
    urgent = await tasks.submit(Task(pool_id="p", type="urgent", priority=5))

    async def is_claimed() -> bool:
        return urgent in {task.id for task in await tasks.claim("a", ["p"])}

    await wait_until(is_claimed, what="a claim of the task of the new lane")
    await tasks._handle.close()


async def test_a_list_of_what_there_is_not_is_refused() -> None:
    tasks = TaskManager(MemoryStore())
    with pytest.raises(InvalidValue, match="PENDING, ASSIGNED"):
        await tasks.list(state="SLEEPING")
    with pytest.raises(InvalidValue, match="limit"):
        await tasks.list(limit=0)
