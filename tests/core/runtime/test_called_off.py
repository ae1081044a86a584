"""When a handler is told that its task is being cancelled with grace: at once, and no second time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from converge import Agent, MemoryStore, Node, Pool, Task, TaskState
from converge.errors import CalledOff
from converge.ids import id_bytes
from converge.model.keys import KEPT
from converge.model.working import StepOptions
from converge.services.tasks.surroundings import find
from converge.testing._task.base import POOL, Process, another, let_pass
from converge.testing._task.durable import Working, begun
from converge.testing.fixtures import wait_until

CALLS: list[str] = []
LONG_SEC = 3_600.0


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()


def fails() -> None:
    CALLS.append("fails")
    raise ConnectionError("not now")


class Undoes(Agent):
    """Undoes what it did, once it is told."""

    async def on_task(self, task: Task) -> Any:
        try:
            await task.step("do", fails, retries=1, delay_sec=LONG_SEC)
        except CalledOff:
            await task.step("undo", CALLS.append, "undone")
            raise


class UndoesInThread(Agent):
    """The same in a thread."""

    def on_task(self, task: Task) -> Any:
        try:
            task.blocking.step("do", fails, retries=1, delay_sec=LONG_SEC)
        except CalledOff:
            task.blocking.step("undo", CALLS.append, "undone")
            raise


class LeftBehind(Agent):
    """Its thread goes on when its task has been cancelled."""

    def on_task(self, task: Task) -> Any:
        try:
            task.blocking.step("do", fails, retries=1, delay_sec=LONG_SEC)
        except BaseException:  # on asyncio its call is cancelled
            CALLS.append("left")
            raise


@pytest.mark.parametrize("agent", [Undoes, UndoesInThread])
async def test_a_step_that_is_to_be_tried_again_later_is_told_at_once(agent: type[Agent]) -> None:
    async with Node(store=MemoryStore(), poll_sec=0.1, grace_sec=1.0) as node:
        await node.spawn(agent, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p"))
        await wait_until(lambda: CALLS == ["fails"], timeout=30)
        assert await node.tasks.cancel(id_, grace_sec=LONG_SEC)
        assert (await node.tasks.result(id_, timeout=30)).state == TaskState.CANCELLED
    assert CALLS == ["fails", "undone"]


async def test_a_thread_that_is_left_behind_tries_its_step_no_more() -> None:
    async with Node(store=MemoryStore(), poll_sec=0.1, grace_sec=1.0) as node:
        await node.spawn(LeftBehind, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p"))
        await wait_until(lambda: CALLS == ["fails"], timeout=30)
        assert await node.tasks.cancel(id_)
        await wait_until(lambda: CALLS == ["fails", "left"], timeout=30)


@pytest.fixture
async def process() -> AsyncIterator[Process]:
    async with another(MemoryStore()) as process:
        await process.pools.create_pool(Pool(id=POOL))
        yield process


async def test_a_task_that_is_called_off_without_attempts_left_ends_with_its_process(process: Process) -> None:
    async with another(process.store) as dies:
        id_ = await process.tasks.submit(Task(pool_id=POOL, max_attempts=1))
        await dies.claim_one()
        assert await process.tasks.cancel(id_, grace_sec=LONG_SEC, why="no longer needed")
        await let_pass(process.store, (await dies.handle.lease()).id)
        await process.sweep_all()
        task = await process.tasks.get(id_)
    assert (task.state, await process.claim()) == (TaskState.CANCELLED, [])


async def test_what_a_task_records_that_was_called_off_before_it_recorded_anything_can_be_found(
    process: Process,
) -> None:
    async with another(process.store) as dies:
        id_ = await process.tasks.submit(Task(pool_id=POOL))
        await dies.claim_one()
        assert await process.tasks.cancel(id_, grace_sec=LONG_SEC)
        await let_pass(process.store, (await dies.handle.lease()).id)
        await process.sweep_all()
    work = Working(process, await process.claim_one())
    with pytest.raises(CalledOff):
        await work.step("told", lambda: 1)
    await work.step("undo", lambda: 2)
    assert await process.store.count([KEPT()]) == [1], "whoever removes the task looks for this mark"


async def test_a_notice_that_comes_behind_the_word_of_the_store_ends_no_step_that_undoes(process: Process) -> None:
    work = await begun(process)
    assert await process.tasks.cancel(work.task.id, grace_sec=60)
    assert await work.step("done", lambda: 1) == 1  # its record meets the mark of the cancel
    with pytest.raises(CalledOff):
        await work.step("told", lambda: 2)
    _, state, _ = await find(process.store, id_bytes("id", work.task.id))
    assert state is not None and state.calling is not None

    async def undo(calling: Any) -> str:
        work.attempt.call_off(calling)
        await checkpoint()  # where a cancelled scope ends it
        return "undone"

    for name in ("undo", "undo more"):  # a notice that could not be removed is read again
        assert await work.attempt.step(name, undo, (state.calling,), StepOptions()) == "undone"


@pytest.mark.parametrize("call", ["emit", "progress", "spawn"])
async def test_a_handler_that_calls_no_step_is_told_by_what_it_calls(process: Process, call: str) -> None:
    work = await begun(process)
    given = {"emit": ("piece",), "progress": (1, None, ""), "spawn": (Task(pool_id=POOL), "new")}[call]
    child = await work.attempt.spawn(Task(pool_id=POOL), "before")
    assert await process.tasks.cancel(work.task.id, grace_sec=60)
    _, state, _ = await find(process.store, id_bytes("id", work.task.id))
    assert state is not None and state.calling is not None
    work.attempt.call_off(state.calling)
    with pytest.raises(CalledOff):
        await getattr(work.attempt, call)(*given)
    await getattr(work.attempt, call)(*given)  # it was told, and may undo
    assert len(await process.tasks.children(work.task.id)) == (2 if call == "spawn" else 1), child
