"""Guarantees that no other test shows whole: what a handler is given (G5), order (G7), cancel (G8), reads after writes
(G9), one history (G15).
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest

from converge import Agent, MemoryStore, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch, Channel, Store
from converge.errors import StaleClaim, StoreRolledBack
from converge.model.keys import EPOCH
from converge.services.store.handle import StoreHandle
from converge.testing.fixtures import wait_until


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Embedded stores run on both."""
    return str(request.param)


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An embedded store with the pool `docs`."""
    async with open_store("memory:" if request.param == "memory" else f"file:{tmp_path / 'state.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        yield store


class Attempts(Agent):
    """Fails its first two attempts, and remembers what it was given."""

    seen: list[tuple[str, int]]

    async def on_task(self, task: Task) -> str:
        self.seen.append((task.effect_key, task.token))
        if len(self.seen) < 3:
            raise RuntimeError("not yet")
        return "done"


async def test_g5_each_attempt_has_the_same_effect_key_and_a_greater_token(store: Store) -> None:
    class Mine(Attempts):
        seen = []  # noqa: RUF012 - of this test alone

    async with Node(store=store, poll_sec=0.05) as node:
        await node.spawn(Mine, pool="docs")
        task_id = await node.tasks.submit(Task(pool_id="docs", retry_delay_sec=0.01))
        assert (await node.tasks.result(task_id, timeout=20)).state == TaskState.COMPLETED
    keys, tokens = zip(*Mine.seen, strict=True)
    assert len(set(keys)) == 1
    assert list(tokens) == sorted(set(tokens))


async def test_g7_a_task_of_low_priority_is_not_kept_waiting_for_ever_by_higher_ones(store: Store) -> None:
    """A head start is all that a priority is worth, so newer tasks of a higher one come after it at last."""
    await PoolManager(store).create_pool(Pool(id="busy", priority_step_sec=0.5))
    tasks = TaskManager(store)
    low = await tasks.submit(Task(pool_id="busy"))
    claimed: list[str] = []

    async def claim_beside_newer_ones() -> bool:
        await tasks.submit_many([Task(pool_id="busy", priority=2) for _ in range(2)])
        claimed.extend(task.id for task in await tasks.claim("a", ["busy"], limit=1))
        return low in claimed

    await wait_until(claim_beside_newer_ones, timeout=20, what="the claim of the low one")
    assert len(claimed) > 1, "the low one was claimed first, though higher ones were there"


class Patient(Agent):
    """Works until it is cancelled, and notes when that was."""

    begun: anyio.Event
    cancelled: list[float]

    async def on_task(self, task: Task) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.append(monotonic())


def _is_longer(cancelled: list[float], than: int) -> bool:
    return len(cancelled) > than


class Deaf(MemoryStore):
    """A store that wakes nobody: what others have done is found by looking."""

    async def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Any:
        return await super().commit(batches)

    async def turn(self, batches: Sequence[Batch], take: Any, *, wake: Collection[Channel] = ()) -> Any:
        return await super().turn(batches, take)

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        yield Deaf(core=self._core, bell=self._bell)


@pytest.mark.parametrize("is_deaf", [False, True], ids=["woken", "wake-ups-lost"])
async def test_g8_a_running_handler_learns_of_a_cancel_within_a_third_of_the_lease(
    is_deaf: bool, lateness: Callable[[], AbstractAsyncContextManager[list[float]]]
) -> None:
    lease_sec = 9.0 if is_deaf else 45.0
    store = Deaf() if is_deaf else MemoryStore()
    await PoolManager(store).create_pool(Pool(id="docs"))

    class Mine(Patient):
        begun = anyio.Event()
        cancelled = []  # noqa: RUF012 - of this test alone

    async with (
        lateness() as late,
        Node(store=store, lease_sec=lease_sec, poll_sec=0.05) as node,
        store.reopen() as other,
    ):
        await node.spawn(Mine, pool="docs")
        tasks = TaskManager(other)  # an operator's, in another process
        for turn in range(2):
            task_id = await tasks.submit(Task(pool_id="docs"))
            with anyio.fail_after(20):
                await Mine.begun.wait()
            Mine.begun = anyio.Event()
            late.clear()
            asked = monotonic()
            assert await tasks.cancel(task_id)
            assert not await tasks.cancel(task_id)
            await wait_until(partial(_is_longer, Mine.cancelled, turn), timeout=20, what="the handler's end")
            assert (await tasks.get(task_id)).state == TaskState.CANCELLED
        took = Mine.cancelled[1] - asked - sum(late)
        # One that is woken needs no look, which comes after a third of the lease. A busy machine may be late by as much
        # again.
        assert took < (2 * lease_sec / 3 if is_deaf else lease_sec / 4), f"{took:.2f} s"


async def test_g9_what_was_acknowledged_is_read_by_every_client(store: Store) -> None:
    async with store.reopen() as second:
        one, two = TaskManager(store), TaskManager(second)
        for number in range(40):
            writer, reader = (one, two) if number % 2 else (two, one)
            task_id = await writer.submit(Task(pool_id="docs", inputs={"number": number}))
            assert (await reader.get(task_id)).inputs == {"number": number}
            (task,) = await reader.claim("a", ["docs"])
            assert task.id == task_id
            assert (await writer.get(task_id)).state == TaskState.ASSIGNED
            await reader.complete(task, number)
            ended = await writer.get(task_id)
            assert (ended.state, ended.result) == (TaskState.COMPLETED, number)
            assert task_id in {each.id for each in await writer.list(state=TaskState.COMPLETED, pool_id="docs")}
        await StoreHandle.of(second).close()


async def test_g15_a_restored_backup_is_loud_to_a_process_that_saw_what_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with open_store(f"file:{path}") as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        tasks = TaskManager(store)
        await tasks.submit(Task(pool_id="docs"))
        with sqlite3.connect(path) as live, sqlite3.connect(tmp_path / "backup.db") as backup:
            live.backup(backup)
        (task,) = await tasks.claim("a", ["docs"])
        for _ in range(5):
            await tasks.submit(Task(pool_id="docs"))
        with sqlite3.connect(path) as live, sqlite3.connect(tmp_path / "backup.db") as backup:
            backup.backup(live)
        # The claim is gone with the history that held it; nothing of this process counts from now on.
        with pytest.raises((StoreRolledBack, StaleClaim)):
            await tasks.complete(task, 1)
        with pytest.raises(StoreRolledBack, match="history"):
            for _ in range(2):
                await tasks.submit(Task(pool_id="docs"))
        for call in (tasks.submit(Task(pool_id="docs")), tasks.claim("a", ["docs"])):
            with pytest.raises(StoreRolledBack):
                await call


async def test_g15_another_epoch_stops_a_process_before_anything_is_written(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="docs"))
    before = await tasks.list(pool_id="docs")
    await store.commit([Batch((), [(EPOCH(), b'"another"')])])
    with pytest.raises(StoreRolledBack):
        await tasks.submit(Task(pool_id="docs"))
    assert await tasks.list(pool_id="docs") == before
