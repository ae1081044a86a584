"""Draining: until nothing is left in the pool, with the results in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from converge.machines.task import TaskState
from converge.model.pool import Pool
from converge.model.task import Task
from converge.operations import drain as draining
from converge.operations.drain import Drain, hint_of, totals
from converge.runtime.agents.agent import Agent
from converge.runtime.node import Node
from converge.services.tasks.counts import live
from converge.services.tasks.purge import purge
from converge.testing.fixtures import wait_until


class Echo(Agent):
    """Answers its input; submits what it is told to."""

    async def on_task(self, task: Task) -> Any:
        """See the class."""
        for text in task.inputs.get("then", ()):
            await self.submit(Task(pool_id=task.pool_id, inputs={"text": text}))
        if task.inputs["text"] == "bad":
            raise ValueError("it is bad")
        return task.inputs["text"]


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A node with two agents in the pool `p`."""
    async with Node() as node:
        await node.pools.create_pool(Pool(id="p"))
        await node.spawn(Echo, count=2, pool="p")
        yield node


async def submit(node: Node, *texts: str, **fields: Any) -> list[str]:
    """Submit a task for each text."""
    return await node.tasks.submit_many(
        [Task(pool_id="p", inputs={"text": text, **fields}, max_attempts=1) for text in texts]
    )


async def test_results_come_in_the_order_of_the_submit(node: Node) -> None:
    texts = [f"t{at}" for at in range(250)]
    seen: list[tuple[int, int]] = []
    drained = await Drain(node.handle, node.tasks, ["p"], lambda done, total, _: seen.append((done, total))).run(
        await submit(node, *texts)
    )
    assert [row.result for row in drained.rows] == texts
    assert (drained.total, drained.not_completed) == (250, 0)
    assert seen[0] == (0, 250) and seen[-1] == (250, 250)
    assert sorted(seen) == seen


async def test_a_failed_task_is_counted_with_its_error(node: Node) -> None:
    drained = await Drain(node.handle, node.tasks, ["p"]).run(await submit(node, "good", "bad"))
    assert [(row.state, row.error) for row in drained.rows] == [("COMPLETED", ""), ("FAILED", "ValueError: it is bad")]
    assert drained.not_completed == 1


async def test_a_task_that_was_removed_before_anybody_looked_is_not_said_to_have_completed(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "converge.run")
    ids = await submit(node, "good", "bad")
    for id_ in ids:
        await node.tasks.result(id_, timeout=30)
    async for _ in purge(node.handle, ["p"], [TaskState.FAILED], None, is_dry_run=False):
        pass
    await Drain(node.handle, node.tasks, ["p"]).run(ids)
    assert "drained: 1 completed, 1 removed unseen, in" in caplog.text


async def test_tasks_that_tasks_submit_are_waited_for(node: Node) -> None:
    await submit(node, "first", then=["second"])
    drained = await Drain(node.handle, node.tasks, ["p"]).run([])
    assert drained.total in (1, 2), "what had ended before the drain looked is not its matter"
    assert [task async for task in _live(node)] == []


async def test_tasks_that_end_before_the_first_look_are_told_too() -> None:
    async with Node() as node:
        await node.pools.create_pool(Pool(id="p"))
        before = await submit(node, "long ago")
        await node.spawn(Echo, pool="p")
        await node.tasks.result(before[0], timeout=10)
        drain = Drain(node.handle, node.tasks, ["p"])
        await drain.begin()
        waiting = await submit(node, "waiting", then=["child"])
        await node.tasks.result(waiting[0], timeout=10)

        async def is_empty() -> bool:
            return not [task async for task in _live(node)]

        await wait_until(is_empty)
        drained = await drain.run([])
    assert sorted(row.result for row in drained.rows) == ["child", "waiting"]
    assert drained.total == 2


async def test_a_page_of_tasks_that_ended_unseen_is_not_the_last(monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
    monkeypatch.setattr("converge.operations.drain.LOOKED_UP", 7)
    drain = Drain(node.handle, node.tasks, ["p"])
    await drain.begin()
    ids = await submit(node, *(f"t{at}" for at in range(23)))
    for id_ in ids:
        await node.tasks.result(id_, timeout=10)
    assert sorted(row.id for row in (await drain.run([])).rows) == sorted(ids)


async def _live(node: Node) -> AsyncIterator[Task]:
    for state in ("PENDING", "ASSIGNED"):
        for task in await node.tasks.list(state=state, pool_id="p"):
            yield task


async def test_a_task_that_waits_for_its_moment_is_waited_for(node: Node) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.3)
    await node.tasks.submit(Task(pool_id="p", inputs={"text": "later"}, not_before=soon))
    with anyio.fail_after(10):
        drained = await Drain(node.handle, node.tasks, ["p"]).run([])
    assert [row.result for row in drained.rows] == ["later"]
    assert datetime.now(UTC) >= soon


@pytest.mark.parametrize(
    ("results", "sums"),
    [
        ([{"a": 1, "b": 2.5}, {"a": 3, "b": 1}], {"a": 4, "b": 3.5}),
        ([{"a": 1}, {"b": 1}], None),
        ([{"a": 1}, {"a": "x"}], None),
        ([{"a": True}], None),
        ([{}], None),
        ([3], None),
        ([], None),
    ],
)
def test_there_is_a_total_where_all_results_are_numbers_under_the_same_names(results: list[Any], sums: Any) -> None:
    assert totals(results) == sums


@pytest.mark.parametrize(
    ("inputs", "hint"),
    [
        ({"text": "t", "page": "p"}, "p"),
        ({"n": 1, "text": " a\n b "}, "a b"),
        ({"n": 1}, "kind"),
        ({"text": "x" * 90}, "x" * 59 + "…"),
    ],
)
def test_a_task_is_known_by_what_names_it(inputs: dict[str, Any], hint: str) -> None:
    assert hint_of(Task(pool_id="p", type="kind", inputs=inputs)) == hint


class Waits(Agent):
    async def on_task(self, task: Task) -> Any:
        return await task.wait_for("go")


async def test_a_parent_that_is_resumed_while_a_drain_counts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last child's end was told between two looks: nothing is to be told any more, and it waits no more."""
    async with Node() as node:
        await node.pools.create_pool(Pool(id="p"))
        (agent,) = await node.spawn(Waits, pool="p")
        (id_,) = await submit(node, "x")

        async def is_waiting() -> bool:
            return (await node.tasks.get(id_)).state == TaskState.WAITING

        await wait_until(is_waiting, timeout=30)
        await node.retire(agent)

        async def counted(*arguments: Any) -> Any:
            monkeypatch.setattr(draining, "live", live)
            counts = await live(*arguments)
            await node.tasks.signal(id_, "go")
            return counts

        monkeypatch.setattr(draining, "live", counted)
        assert await Drain(node.handle, node.tasks, ["p"])._backlog() == 1
