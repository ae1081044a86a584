"""Durable tasks on every store: what a store in another process does otherwise, and what is counted."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from converge import Agent, Node, Task, TaskState
from converge.contracts.store import Batch, Range, Take
from converge.errors import CalledOff
from converge.ids import id_bytes
from converge.model.keys import HELD, KEPT, LATER, READY, SIGNAL, SIGNALS, STATE, STEP, TASK
from converge.testing.fixtures import wait_until

STORES = ["memory", "file", "redis", "sql"]
BEGUN: list[str] = []


class Undoes(Agent):
    async def on_task(self, task: Task) -> str:
        if task.type == "plain":
            return "done"
        await task.step("do", str)
        BEGUN.append(task.id)
        try:
            await task.step("long", anyio.sleep, 60.0)
        except CalledOff:
            for number in range(2):
                await task.step(f"undo {number}", str)
        return "undone"


@asynccontextmanager
async def running(place: tuple[str, list[str], str], agent: type[Agent]) -> AsyncIterator[Node]:
    url, plugins, network = place
    async with Node(store=url, plugins=plugins, network=network, poll_sec=0.2, grace_sec=1.0) as node:
        await node.spawn(agent, pool="p")
        yield node


@pytest.mark.parametrize("place", STORES, indirect=True)
async def test_a_slot_goes_on_after_a_handler_that_was_called_off(
    place: tuple[str, list[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its claim has another token since then, and is known under that of its batch nevertheless."""
    BEGUN.clear()
    caplog.set_level(logging.ERROR, logger="converge")
    async with running(place, Undoes) as node:
        for number in range(1, 3):
            id_ = await node.tasks.submit(Task(pool_id="p"))
            await wait_until(lambda: len(BEGUN) == number, timeout=30)  # noqa: B023
            await node.tasks.cancel(id_, grace_sec=60)
            assert (await node.tasks.result(id_, timeout=30)).state == TaskState.CANCELLED
            after = await node.tasks.submit(Task(pool_id="p", type="plain"))
            assert (await node.tasks.result(after, timeout=30)).result == "done"
    assert not caplog.records


class Waits(Agent):
    concurrency = 16

    async def on_task(self, task: Task) -> Any:
        last = await task.wait_for("last", timeout=86_400.0)
        return [last, *[await task.wait_for("go") for _ in range(task.inputs["signals"])]]


async def parked(node: Node, count: int, signals: int = 0) -> list[str]:
    """Submit so many tasks; return their ids once all are parked."""
    ids = await node.tasks.submit_many([Task(pool_id="p", inputs={"signals": signals}) for _ in range(count)])

    async def are_parked() -> bool:
        return list(await node.store.count([LATER(), HELD(), READY()])) == [count, 0, 0]

    await wait_until(are_parked, timeout=60)
    return list(ids)


@pytest.mark.parametrize("place", STORES, indirect=True)
async def test_many_signals_at_once_to_one_task_take_few_commits(
    place: tuple[str, list[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(place, Waits) as node:
        (id_,) = await parked(node, 1, signals=199)
        commits = list[int]()

        commit, turn = node.store.commit, node.store.turn

        def count(batches: Sequence[Batch]) -> None:
            signals = sum(key[0] is SIGNAL for batch in batches for key, _ in batch.puts)
            commits.extend([signals] if signals else [])

        async def counted(batches: Sequence[Batch], **more: Any) -> Any:
            count(batches)
            return await commit(batches, **more)

        async def counted_beside_take(batches: Sequence[Batch], take: Take | None, **more: Any) -> Any:
            count(batches if take is not None else ())  # without one it is how some stores commit
            return await turn(batches, take, **more)

        monkeypatch.setattr(node.store, "commit", counted)
        monkeypatch.setattr(node.store, "turn", counted_beside_take)
        async with anyio.create_task_group() as group:
            for number in range(200):
                group.start_soon(node.tasks.signal, id_, "last" if number == 199 else "go", number)
        assert sum(commits) == 200 and len(commits) <= 5, commits
        task = await node.tasks.result(id_, timeout=60)
        assert sorted(task.result) == list(range(200)) and task.result[0] == 199, task.error


@pytest.mark.parametrize("place", ["file", "redis"], indirect=True)
async def test_parked_tasks_cost_six_short_records_and_no_calls(
    place: tuple[str, list[str], str], calls_of: Callable[..., Counter[str]]
) -> None:
    async with running(place, Waits) as node:
        calls = calls_of(node.store, "get", "scan", "count", "commit", "turn")

        async def idle() -> int:
            before = calls.total()
            await anyio.sleep(1.0)  # some polls: what is counted is what nobody asked for
            return calls.total() - before

        few = await parked(node, 2)
        of_few = await idle()
        (id_,) = [id_bytes("task id", id_) for id_ in few[:1]]
        pages = await node.store.scan([Range(family(id_), None, 10) for family in (STEP, SIGNAL)])
        records = [entry for entry in await node.store.get([f(id_) for f in (TASK, STATE, SIGNALS, KEPT)]) if entry]
        await node.tasks.cancel(few[0])
        await node.tasks.cancel(few[1])
        steps, signals = pages
        assert (len(steps), len(signals), len(records)) == (1, 0, 4)  # and its key in `later`
        assert sum(len(entry.value) for entry in (*steps, *records)) < 800
        await parked(node, 200)
        assert await idle() < of_few + 100
