"""A claim that is cancelled leaves nothing held, and a lease that has ended is told of once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Entry, Key, Store, Take, Turned
from converge.errors import LeaseEnded, StaleClaim, StoreUnavailable
from converge.ids import id_bytes
from converge.model.keys import TASK
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.services.tasks.torn import torn_tasks


class SlowToAnswer(MemoryStore):
    """Takes, and then keeps its answer back until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.has_taken, self.may_answer = anyio.Event(), anyio.Event()

    async def turn(self, batches: Sequence[Batch], take: Take | None, **more: Any) -> Turned:
        turned = await super().turn(batches, take, **more)
        if take is not None:
            self.has_taken.set()
            await self.may_answer.wait()
        return turned


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_claim_cancelled_by_plain_asyncio_holds_nothing(anyio_backend: str) -> None:
    store = SlowToAnswer()
    await PoolManager(store).create_pool(Pool(id="docs"))
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="docs", max_attempts=1))
    claim = asyncio.ensure_future(tasks.claim("a", ["docs"]))
    await store.has_taken.wait()
    claim.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claim
    task = await tasks.get(task_id)
    assert (task.state, task.attempts) == (TaskState.PENDING, 0)
    store.may_answer.set()
    assert [task.id for task in await tasks.claim("a", ["docs"])] == [task_id]
    await tasks._handle.close()


async def test_a_claim_that_its_scope_cancels_holds_what_it_returned_or_nothing(tmp_path: Path) -> None:
    async with open_store(f"file:{tmp_path / 'state.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        tasks = TaskManager(store)
        ids = set(await tasks.submit_many([Task(pool_id="docs") for _ in range(40)]))
        returned: set[str] = set()
        for at in range(40):
            with anyio.move_on_after(0.0001 * at):
                returned |= {task.id for task in await tasks.claim("a", ["docs"])}
        held = {task.id for task in await tasks.list(state=TaskState.ASSIGNED, pool_id="docs")}
        assert held == returned
        assert returned < ids


async def test_a_worker_that_was_away_for_too_long_is_told_once_and_then_claims_again(
    store: Store, pass_time: Callable[[float], None]
) -> None:
    async with store.reopen() as other:
        away = StoreHandle.of(other, lease_settings=LeaseSettings(lease_sec=60.0))
        tasks, others = TaskManager(other), TaskManager(store, poll_sec=0.05)
        ids = await tasks.submit_many([Task(pool_id="docs") for _ in range(2)])
        (held,) = await tasks.claim("a", ["docs"])
        lease = await away.lease()
        lease.abandon()
        pass_time(60)
        lease._deadline = away.env.monotonic()  # its own clock has passed as much
        with pytest.raises(LeaseEnded):
            await tasks.claim("a", ["docs"])
        (again,) = await tasks.claim("a", ["docs"])
        assert again.id in ids
        taken = await others.claim("b", ["docs"], limit=2)
        assert {task.id for task in taken} | {again.id} == set(ids)
        with pytest.raises(StaleClaim):
            await tasks.complete(held, "too late")
        await tasks.complete(again, "in time")
        await away.close()


class SlowToRead(MemoryStore):
    """Does not answer the first read of a task's record, or says that it is away."""

    is_immediate = False

    def __init__(self, *, is_away: bool) -> None:
        super().__init__()
        self.is_asked, self._is_away = anyio.Event(), is_away

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if keys[0][0] is TASK and not self.is_asked.is_set():
            self.is_asked.set()
            if self._is_away:
                raise StoreUnavailable("for a moment")
            await anyio.sleep_forever()
        return await super().get(keys)


async def damaged_and_whole(store: MemoryStore, tasks: TaskManager) -> tuple[str, set[str]]:
    """Submit three tasks, and damage the record of the first; return its id, and the others'."""
    await PoolManager(store).create_pool(Pool(id="docs"))
    damaged, *whole = await tasks.submit_many([Task(pool_id="docs") for _ in range(3)])
    await store.commit([Batch((), ((TASK(id_bytes("task", damaged)), b"{}"),))])
    return damaged, set(whole)


async def test_a_claim_cancelled_while_another_is_set_aside_holds_nothing() -> None:
    store = SlowToRead(is_away=False)
    tasks = TaskManager(store)
    damaged, whole = await damaged_and_whole(store, tasks)
    async with anyio.create_task_group() as group:
        group.start_soon(tasks.claim, "a", ["docs"], (), None, None, 3)
        await store.is_asked.wait()
        group.cancel_scope.cancel()
    assert {task.id for task in await tasks.list(state=TaskState.PENDING)} == whole
    assert {task.id for task in await tasks.claim("a", ["docs"], limit=3)} == whole
    assert [id_ async for id_, _ in torn_tasks(tasks._handle)] == [id_bytes("task", damaged)]
    await tasks._handle.close()


async def test_what_could_not_be_set_aside_is_later_by_a_claim_that_knows_nothing_of_it() -> None:
    store = SlowToRead(is_away=True)
    tasks = TaskManager(store, poll_sec=0.0)  # each claim looks anew
    damaged, whole = await damaged_and_whole(store, tasks)
    assert {task.id for task in await tasks.claim("a", ["docs"], limit=3)} == whole
    assert [id_ async for id_, _ in torn_tasks(tasks._handle)] == []
    assert await tasks.claim("a", ["docs"]) == []
    assert [id_ async for id_, _ in torn_tasks(tasks._handle)] == [id_bytes("task", damaged)]
    await tasks._handle.close()
