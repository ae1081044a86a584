"""Steps within steps, steps that raise groups, and calls in the wrong place: none is done twice, none never ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from converge import Agent, MemoryStore, Node, Pool, Task
from converge.errors import ChildFailed, NoRetry, NotRunning, StepFailed
from converge.runtime.attempts.names import STEP_NAME, Names
from converge.services.durable.limits import NAME_CHARS, WITHIN

CALLS: list[str] = []
KEPT: dict[str, Callable[[Task], Any]] = {}


class Loop(Agent):
    """Does what the test says, in one slot of the event loop."""

    async def on_task(self, task: Task) -> Any:
        return await KEPT[task.type](task)


class Thread(Agent):
    """The same in a thread."""

    def on_task(self, task: Task) -> Any:
        return KEPT[task.type](task)


class Broken(Exception):
    pass


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    CALLS.clear()
    async with Node(store=MemoryStore(), poll_sec=0.1, grace_sec=1.0) as node:
        await node.spawn(Loop, pool="p")
        await node.spawn(Thread, pool="threads")
        yield node


async def ended(node: Node, handler: Callable[[Task], Any], pool: str = "p", **fields: Any) -> Task:
    KEPT["handler"] = handler
    id_ = await node.tasks.submit(Task(pool_id=pool, type="handler", **({"max_attempts": 1} | fields)))
    return await node.tasks.result(id_, timeout=30)


def charged() -> str:
    CALLS.append("charged")
    return "charged"


def fails_once() -> None:
    CALLS.append("tried")
    if CALLS.count("tried") == 1:
        raise Broken("once")


@pytest.mark.parametrize("pool", ["p", "threads"])
async def test_what_a_step_has_recorded_does_not_run_again_when_it_is_tried_again(node: Node, pool: str) -> None:
    async def order(task: Task) -> str:
        name = await task.step("charge", charged)
        await task.spawn(Task(pool_id="elsewhere"), "child")
        fails_once()
        return name

    async def works(task: Task) -> Any:
        first = [await task.step("charge", charged)]  # of this name, too
        return [*first, await task.step("order", order, task, retries=1, delay_sec=0.0)]

    def order_in_thread(task: Task) -> str:
        name = task.blocking.step("charge", charged)
        task.blocking.spawn(Task(pool_id="elsewhere"), "child")
        fails_once()
        return name

    def works_in_thread(task: Task) -> Any:
        first = [task.blocking.step("charge", charged)]
        return [*first, task.blocking.step("order", order_in_thread, task, retries=1, delay_sec=0.0)]

    await node.pools.create_pool(Pool(id="elsewhere"))
    task = await ended(node, works if pool == "p" else works_in_thread, pool)
    assert task.result == ["charged"] * 2, task.error
    assert CALLS == ["charged", "charged", "tried", "tried"]
    found = await node.tasks.list(pool_id="elsewhere")
    assert len(found) == 1


@pytest.mark.parametrize("pool", ["p", "threads"])
async def test_a_name_within_one_step_is_not_that_within_another(node: Node, pool: str) -> None:
    """An attempt that is given the record of the first step does not come to the names within it."""

    async def outer(task: Task, value: str) -> list[str]:
        inner = await task.step("inner", str, value)
        child = await task.spawn(Task(pool_id="elsewhere", inputs={"of": value}), "child")
        if value == "b":
            fails_once()
        return [inner, child.id, child.name]

    async def works(task: Task) -> Any:
        return [await task.step(f"outer-{value}", outer, task, value) for value in "ab"]

    def outer_in_thread(task: Task, value: str) -> list[str]:
        inner = task.blocking.step("inner", str, value)
        child = task.blocking.spawn(Task(pool_id="elsewhere", inputs={"of": value}), "child")
        if value == "b":
            fails_once()
        return [inner, child.id, child.name]

    def works_in_thread(task: Task) -> Any:
        return [task.blocking.step(f"outer-{value}", outer_in_thread, task, value) for value in "ab"]

    await node.pools.create_pool(Pool(id="elsewhere"))
    task = await ended(node, works if pool == "p" else works_in_thread, pool, max_attempts=2, retry_delay_sec=0.0)
    spawned = {child.inputs["of"]: child.id for child in await node.tasks.list(pool_id="elsewhere")}
    assert task.attempts == 2 and len(spawned) == 2
    assert task.result == [[value, spawned[value], "child"] for value in "ab"], task.error


async def test_a_step_is_not_given_what_one_within_another_has_returned(node: Node) -> None:
    """Not in the first attempt, nor in one that begins again between them."""

    async def works(task: Task) -> Any:
        async def outer() -> Any:
            return await task.step("inner", lambda: "inner")

        inner = await task.step("outer", outer)
        fails_once()
        return [inner, await task.step("outer/inner", lambda: "another")]

    task = await ended(node, works, max_attempts=2)
    assert (task.result, task.attempts) == (["inner", "another"], 2), task.error


async def test_a_step_within_another_is_not_given_what_one_beside_it_has_returned(node: Node) -> None:
    async def works(task: Task) -> Any:
        async def outer() -> Any:
            fails_once()
            return await task.step("inner", lambda: "inner")

        if task.attempts == 1:
            await task.step("inner", lambda: "beside")
        inner = await task.step("outer", outer)
        return [inner, await task.step("inner", lambda: "beside again")]

    task = await ended(node, works, max_attempts=2)
    assert (task.result, task.attempts) == (["inner", "beside"], 2), task.error


async def test_a_wait_is_not_given_what_came_for_one_whose_names_read_alike(node: Node) -> None:
    async def works(task: Task) -> Any:
        came = await task.wait_for("a|b") if task.attempts == 1 else None
        fails_once()
        return [came, await task.wait_for("a", "b")]

    KEPT["handler"] = works
    id_ = await node.tasks.submit(Task(pool_id="p", type="handler", max_attempts=2))
    for name in ("a|b", "b"):
        await node.tasks.signal(id_, name, f"for {name}")
    task = await node.tasks.result(id_, timeout=30)
    assert (task.result, task.attempts) == ([None, ["b", "for b"]], 2), task.error


LONG = "n" * NAME_CHARS
CALLED = [
    (step, *names)
    for step in ("", "a", f"a{WITHIN}b", "a#2", LONG, f"{LONG[:-1]}m")
    for names in (["b"], ["a"], ["a", "b"], ["a|b"], ["b/c"], ["a/b"], [LONG], [LONG, LONG], [LONG, "b"])
]


def test_no_two_calls_have_one_label() -> None:
    """Whatever step they are in, whatever names they have: of any two the later one has a record of its own."""
    labels: list[str] = []
    for step, *called in CALLED:
        names = Names("task")  # an attempt that comes to this call only
        token = STEP_NAME.set(step)
        try:
            labels += [names.label_of_wait(called), *(names.label(".", name) for name in called if len(called) == 1)]
        finally:
            STEP_NAME.reset(token)
    assert len(labels) > len(CALLED) and len(set(labels)) == len(labels)


async def raises_in_group(error: Exception) -> None:
    async def raises() -> None:
        raise error

    CALLS.append("called")
    async with anyio.create_task_group() as group:
        group.start_soon(raises)


def raises_group(error: Exception) -> None:
    CALLS.append("called")
    raise ExceptionGroup("of a thread", [error])


@pytest.mark.parametrize("pool", ["p", "threads"])
@pytest.mark.parametrize("error", [Broken("declined"), NoRetry("no")])
async def test_an_error_in_a_group_counts_as_the_error_itself(node: Node, pool: str, error: Exception) -> None:
    options: dict[str, Any] = {"retries": 2, "delay_sec": 0.0, "final": (Broken,)}

    async def works(task: Task) -> Any:
        try:
            await task.step("s", raises_in_group, error, **options)
        except StepFailed as failed:
            return [failed.kind, failed.text]

    def works_in_thread(task: Task) -> Any:
        try:
            task.blocking.step("s", raises_group, error, **options)
        except StepFailed as failed:
            return [failed.kind, failed.text]

    task = await ended(node, works if pool == "p" else works_in_thread, pool, max_attempts=3)
    expected = (["Broken", "declined"], "") if isinstance(error, Broken) else (None, "no")
    assert (task.result, task.error) == expected and len(CALLS) == task.attempts == 1


async def test_a_group_of_other_errors_is_tried_again(node: Node) -> None:
    async def works(task: Task) -> None:
        await task.step("s", raises_in_group, ValueError("passes"), retries=2, delay_sec=0.0, final=(Broken,))

    task = await ended(node, works)
    assert "ValueError: passes" in task.error and len(CALLS) == 3


async def test_a_sleep_without_an_end_is_refused(node: Node) -> None:
    async def works(task: Task) -> None:
        await task.sleep(None)  # type: ignore[arg-type]  # as the test says

    assert "InvalidValue: sleep: None is not allowed; expected seconds" in (await ended(node, works)).error


@pytest.mark.parametrize("call", ["gather", "first"])
@pytest.mark.parametrize("pool", ["p", "threads"])
async def test_children_are_not_waited_for_in_a_step(node: Node, pool: str, call: str) -> None:
    """A step cannot be parked: it would keep the slot that they need for ever."""

    async def child(_: Task) -> None: ...

    async def works(task: Task) -> None:
        spawned = await task.spawn(Task(pool_id="p", type="child"))
        await task.step("s", getattr(task, call), spawned)

    def works_in_thread(task: Task) -> None:
        spawned = task.blocking.spawn(Task(pool_id="p", type="child"))
        task.blocking.step("s", getattr(task.blocking, call), spawned)

    KEPT["child"] = child
    task = await ended(node, works if pool == "p" else works_in_thread, pool)
    assert f"{call}: 'a call in step \"s\"' is not allowed; expected a call outside of steps" in task.error


async def test_another_thread_than_the_handlers_is_told_where_to_call(node: Node) -> None:
    def works(task: Task) -> Any:
        call = task.blocking
        with ThreadPoolExecutor(1) as pool:
            try:
                pool.submit(call.step, "s", charged).result(timeout=10)
            except NotRunning as error:
                return [str(error), call.step("s", charged)]

    text, value = (await ended(node, works, "threads")).result
    assert "in another thread than the handler's" in text and (value, CALLS) == ("charged", ["charged"])


async def test_who_takes_children_as_they_end_may_go_on_behind_one_that_failed(node: Node) -> None:
    async def child(task: Task) -> int:
        number = int(task.inputs["n"])
        if number == 1:
            raise NoRetry("broken")
        return number

    async def works(task: Task) -> Any:
        left = {}
        for number in range(3):
            spawned = await task.spawn(Task(pool_id="p", type="child", inputs={"n": number}), f"c{number}")
            left[spawned.id] = spawned
        got: list[Any] = []
        while left:
            try:
                ended, result = await task.first(*left.values())
                left.pop(ended.id)
                got.append(result)
            except ChildFailed as failed:
                got.append(f"{left.pop(failed.child_id).name} {failed.state}: {failed.error}")
        return got

    KEPT["child"] = child
    task = await ended(node, works)
    assert task.result == [0, "c1 FAILED: broken", 2], task.error
