"""What an attempt reads and only a newer release can: the attempt goes back uncounted, for a process that can."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from converge import Agent, MemoryStore, Node, Pool, PoolManager, Task, TaskManager
from converge.codec import FORMAT, encode
from converge.contracts.store import Batch, Key, Store
from converge.ids import id_bytes
from converge.machines.durable import Signals
from converge.model.keys import ACTOR, SIGNAL, SIGNALS, STATE, STEP, TASK
from converge.model.task import DURABLE, State
from converge.services.durable.agents import ASKS
from converge.services.store.handle import StoreHandle
from converge.testing.fixtures import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

NEWER = json.dumps({"v": FORMAT + 1, "what_it_added": 1}).encode()


async def step(task: Task, name: str) -> None:
    await task.step(name, lambda: 1)


class Durable(Agent):
    """Does what reads each kind of record."""

    async def on_task(self, task: Task) -> Any:
        """See the class."""
        if task.inputs.get("does") == "wait":
            return await task.wait_for("go")
        if task.inputs.get("does") == "two at once":
            async with anyio.create_task_group() as group:
                for name in ("one", "other"):
                    group.start_soon(step, task, name)
        if task.inputs.get("does") == "step":
            return await task.step("one", lambda: 1)
        return "good"

    async def on_ask(self, state: Any, message: Any) -> Any:
        """See the class."""
        return state, "answered"


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """A store with a pool."""
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    yield store
    await StoreHandle.of(store).close()


def of_a_step(id_: bytes) -> list[tuple[Key, bytes]]:
    return [(STEP(id_, 0, ".one"), NEWER)]


def of_signals(id_: bytes) -> list[tuple[Key, bytes]]:
    return [(SIGNALS(id_), NEWER)]


def of_a_signal(id_: bytes) -> list[tuple[Key, bytes]]:
    return [(SIGNALS(id_), encode(Signals(next=1))), (SIGNAL(id_, 0), NEWER)]


def of_an_agent(id_: bytes) -> list[tuple[Key, bytes]]:
    return [(ACTOR("p", "k"), NEWER)]


@pytest.mark.parametrize(
    ("does", "puts"),
    [
        ("step", of_a_step),
        ("two at once", of_a_step),
        ("wait", of_signals),
        ("wait", of_a_signal),
        ("ask", of_an_agent),
    ],
)
async def test_an_attempt_that_meets_a_newer_record_goes_back_uncounted_and_its_lane_is_left_alone(
    store: Store, caplog: pytest.LogCaptureFixture, does: str, puts: Callable[[bytes], list[tuple[Key, bytes]]]
) -> None:
    caplog.set_level(logging.WARNING)
    tasks = TaskManager(store)
    wanted = {"type": ASKS, "required_capabilities": (ASKS,), "ordering_key": "k"} if does == "ask" else {"type": "t"}
    newer = await tasks.submit(Task(pool_id="p", inputs={"does": does}, **wanted))
    id_ = id_bytes("id", newer)
    (raw,) = await store.get([TASK(id_)])
    assert raw is not None
    spec = json.loads(raw.value)
    state = State("PENDING", 0, spec["due"], spec["rank"], v=DURABLE)
    await store.commit([Batch((), [(STATE(id_), encode(state)), *puts(id_)])])
    async with Node(store=store, poll_sec=5.0, grace_sec=0.2) as node:
        await node.spawn(Durable, pool="p")

        def said() -> list[str]:
            return [one.getMessage() for one in caplog.records if "newer release" in one.getMessage()]

        await wait_until(lambda: bool(said()), timeout=30, what="it is said")
        for _ in range(3):
            good = await node.tasks.submit(Task(pool_id="p", type="other"))
            assert (await node.tasks.result(good, timeout=30)).result == "good"
        assert len([one for one in said() if "is left to" in one]) == 1
        left = await node.tasks.get(newer)
        assert (left.state, left.attempts, len(left.history)) == ("PENDING", 0, 1), "it was claimed again and again"


async def test_a_child_of_a_newer_format_that_came_second_is_left_to_others(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class Parent(Agent):
        async def on_task(self, task: Task) -> Any:
            if task.type == "child":
                return "won"
            loser = await task.spawn(Task(pool_id="elsewhere"), name="loser")
            winner = await task.spawn(Task(pool_id="p", type="child"), name="winner")
            await store.commit([Batch((), [(TASK(id_bytes("id", loser.id)), NEWER)])])
            _, result = await task.first(loser, winner, cancel_rest=True)
            return result

    await PoolManager(store).create_pool(Pool(id="elsewhere"))
    async with Node(store=store, grace_sec=0.2) as node:
        await node.spawn(Parent, pool="p")
        parent = await node.tasks.submit(Task(pool_id="p", max_attempts=1))
        task = await node.tasks.result(parent, timeout=30)
        assert (task.result, task.error) == ("won", "")
    assert "is left to processes of a newer release" in caplog.text
