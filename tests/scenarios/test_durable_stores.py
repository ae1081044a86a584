"""Durable tasks on every store: what a store in another process does otherwise, and what is counted."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from converge import Agent, Node, Task, TaskState
from converge.errors import CalledOff
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
            await wait_until(lambda count=number: len(BEGUN) == count, timeout=30)
            await node.tasks.cancel(id_, grace_sec=60)
            assert (await node.tasks.result(id_, timeout=30)).state == TaskState.CANCELLED
            after = await node.tasks.submit(Task(pool_id="p", type="plain"))
            assert (await node.tasks.result(after, timeout=30)).result == "done"
    assert not caplog.records
