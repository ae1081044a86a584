"""Calls that wait for children at once: each attempt may come to another one first, and each finds its own records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest

from converge import Agent, MemoryStore, Node, Pool, Task, TaskState
from converge.errors import WaitTimeout
from converge.model.working import Child
from converge.services.durable.limits import KNOWN_FROM
from converge.testing._task.base import POOL, another
from converge.testing._task.durable import begun
from converge.testing.fixtures import wait_until

KEPT: dict[str, Any] = {}
ROUNDS = 4


class Waits(Agent):
    """Does what the test says; a child ends when it is told to."""

    concurrency = 4

    async def on_task(self, task: Task) -> Any:
        if task.type == "child":
            return await task.wait_for("go")
        return await KEPT["handler"](task, {name: await spawn(task, name) for name in task.inputs["names"]})


async def spawn(task: Task, name: str) -> Child:
    return await task.spawn(Task(pool_id="p", type="child"), name)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node(store=MemoryStore(), poll_sec=0.1) as node:
        await node.spawn(Waits, pool="p")
        yield node


Handler = Callable[[Task, Mapping[str, Child]], Awaitable[Any]]


async def submitted(node: Node, handler: Handler, *names: str) -> tuple[str, dict[str, str]]:
    """Return the id of a task that waits, and those of its children by their names."""
    KEPT["handler"] = handler
    id_ = await node.tasks.submit(Task(pool_id="p", inputs={"names": names}, max_attempts=1))
    await parked(node, id_, 1)
    return id_, dict(zip(names, [one.id for one in await node.tasks.children(id_)], strict=True))


async def parked(node: Node, id_: str, times: int) -> None:
    async def is_parked() -> bool:
        return (await node.tasks.get(id_)).parks >= times

    await wait_until(is_parked, timeout=30)


async def waits_behind(node: Node, id_: str, place: str) -> None:
    """Wait until the task has come by the place, and is parked behind it."""

    async def is_behind() -> bool:
        return KEPT.get(place) == id_ and (await node.tasks.get(id_)).state == TaskState.WAITING

    await wait_until(is_behind, timeout=30)


async def test_two_loops_at_once_are_each_given_their_own_children_in_order(node: Node) -> None:
    async def handler(task: Task, children: Mapping[str, Child]) -> dict[str, list[str]]:
        got: dict[str, list[str]] = {"a": [], "b": []}

        async def loop(kind: str) -> None:
            own = [child for name, child in children.items() if name.startswith(kind)]
            got[kind] = [result async for _, result in task.as_completed(*own)]

        KEPT["round"] = KEPT.get("round", 0) + 1
        async with anyio.create_task_group() as group:
            for kind in "ab" if KEPT["round"] % 2 else "ba":  # what comes first is not the same in each attempt
                group.start_soon(loop, kind)
        return got

    KEPT.pop("round", None)
    order = [f"{kind}{number}" for number in range(ROUNDS) for kind in "ba"]
    id_, children = await submitted(node, handler, *sorted(order))
    for number, name in enumerate(order):
        await parked(node, id_, number + 1)
        await node.tasks.signal(children[name], "go", name)
    done = await node.tasks.result(id_, timeout=30)
    assert done.result == {kind: [f"{kind}{n}" for n in range(ROUNDS)] for kind in "ab"}, done.error


@pytest.mark.parametrize("call", ["gather", "first"])
async def test_of_two_waits_at_once_each_keeps_its_own_time(node: Node, call: str) -> None:
    async def handler(task: Task, children: Mapping[str, Child]) -> dict[str, str]:
        came: dict[str, str] = {}

        async def wait(name: str, timeout: float) -> None:
            if name == "long":
                await task.step("before", anyio.sleep, 0.2)  # once: the next attempt comes to this wait first
            try:
                await getattr(task, call)(children[name], timeout=timeout)
                came[name] = "in time"
            except WaitTimeout:
                came[name], KEPT["late"] = "late", task.id

        async with anyio.create_task_group() as group:
            group.start_soon(wait, "long", 60)
            group.start_soon(wait, "short", 0.5)
        return came

    id_, children = await submitted(node, handler, "long", "short")
    await waits_behind(node, id_, "late")
    await node.tasks.signal(children["long"], "go")
    assert (await node.tasks.result(id_, timeout=30)).result == {"long": "in time", "short": "late"}


async def test_who_was_late_is_told_so_though_the_child_has_ended_since(node: Node) -> None:
    async def handler(task: Task, children: Mapping[str, Child]) -> list[str]:
        said = []
        try:
            await task.first(*children.values(), timeout=0.1)
            said.append("in time")
        except WaitTimeout:
            said.append("late")
            KEPT["late"] = task.id
        for number in range(KNOWN_FROM):  # so many that what was read is kept for the next attempt
            await task.step(f"step-{number}", str)
        said.append((await task.first(*children.values()))[1])
        KEPT["one"] = task.id
        said += await task.gather(*children.values())
        return said

    id_, children = await submitted(node, handler, "one", "two")
    await waits_behind(node, id_, "late")
    await node.tasks.signal(children["one"], "go", "one")
    await waits_behind(node, id_, "one")
    await node.tasks.signal(children["two"], "go", "two")
    done = await node.tasks.result(id_, timeout=30)
    assert done.result == ["late", "one", "one", "two"], done.error


@pytest.mark.parametrize("call", ["gather", "first"])
async def test_a_child_that_ends_in_the_moment_of_the_timeout_is_in_time(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with another(MemoryStore()) as one:
        await one.pools.create_pool(Pool(id=POOL))
        work = await begun(one)
        attempt, child = work.attempt, await work.attempt.spawn(Task(pool_id=POOL, type="child"), "c")
        claimed = await one.claim_one()
        gave_up = attempt.gave_up

        async def ends_first(*args: Any) -> bool:
            monkeypatch.undo()
            await one.tasks.complete(claimed, "in time")
            await one.sweep_all()
            return await gave_up(*args)

        monkeypatch.setattr(attempt, "gave_up", ends_first)
        if call == "gather":
            assert await attempt.gather((child,), 0.0) == ["in time"]
        else:
            assert await attempt.first((child,), False, 0.0) == (child, "in time")
