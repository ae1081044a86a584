"""Tasks that outlive their attempts, as a handler and its callers see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import anyio
import pytest

from converge import Agent, MemoryStore, Node, Pool, Task, TaskState, open_store
from converge.errors import (
    CalledOff,
    ChildFailed,
    HandlerFailed,
    InvalidValue,
    NoHandler,
    NoSuchTask,
    NotRunning,
    NotWaiting,
    ResultTimeout,
    StepConflict,
    StepFailed,
    StepUncertain,
    WaitTimeout,
)
from converge.model.keys import GONE, KEPT, READER, SIGNALS, STEP
from converge.operations.tasks import Purging, purge
from converge.runtime.attempts import putting_out
from converge.testing.fixtures import wait_until

RAN: Counter[str] = Counter()

OF_TASKS = (STEP, SIGNALS, READER, KEPT, GONE)
"""Families of what tasks record."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    RAN.clear()


def ran(name: str, value: Any = None) -> Any:
    RAN[name] += 1
    return value


async def ran_async(name: str, value: Any = None) -> Any:
    RAN[name] += 1
    return value


@asynccontextmanager
async def running(agent: type[Agent], *pools: str) -> AsyncIterator[Node]:
    async with Node(store=MemoryStore(), poll_sec=0.2) as node:
        await node.spawn(agent, pool=list(pools) or "p")
        yield node


async def until_state(node: Node, task_id: str, state: TaskState) -> Task:
    async def is_there() -> bool:
        return (await node.tasks.get(task_id)).state == state

    await wait_until(is_there, timeout=30)
    return await node.tasks.get(task_id)


class Approving(Agent):
    async def on_task(self, task: Task) -> Any:
        first = await task.step("first", ran_async, "first", 1)
        verdict = await task.wait_for("approval", timeout=3600)
        second = await task.step("second", ran, "second", first + 1)
        return [first, second, verdict]


async def test_a_task_waits_for_a_signal_and_its_steps_run_once() -> None:
    async with running(Approving) as node:
        id_ = await node.tasks.submit(Task(pool_id="p"))
        task = await until_state(node, id_, TaskState.WAITING)
        assert (task.waiting_for, task.parks, task.attempts) == ("approval", 1, 0)
        assert await node.tasks.signal(id_, "other")
        assert await node.tasks.signal(id_, "approval", {"ok": True})
        task = await node.tasks.result(id_, timeout=10)
        assert task.result == [1, 2, {"ok": True}], task.error
        assert RAN == {"first": 1, "second": 1}
        assert not await node.tasks.signal(id_, "approval")


async def test_a_signal_before_the_wait_is_kept() -> None:
    async with running(Approving) as node:
        id_ = await node.tasks.submit(Task(pool_id="p"))
        await node.tasks.signal(id_, "approval", 7)
        assert (await node.tasks.result(id_, timeout=10)).result == [1, 2, 7]


class TimesOut(Agent):
    async def on_task(self, task: Task) -> Any:
        await task.sleep(0.1)
        try:
            await task.wait_for("a", "b", timeout=0.1)
        except WaitTimeout:
            return "late"


async def test_a_wait_ends_in_time() -> None:
    async with running(TimesOut) as node:
        id_ = await node.tasks.submit(Task(pool_id="p"))
        task = await node.tasks.result(id_, timeout=10)
        assert (task.result, task.parks) == ("late", 2)


class InThread(Agent):
    def on_task(self, task: Task) -> Any:
        first = task.blocking.step("first", ran, "first", 1)
        name, payload = task.blocking.wait_for("a", "b")
        task.blocking.sleep(0.05)
        child = task.blocking.spawn(Task(pool_id="p", type="child", inputs={"n": 3})) if not task.parent_id else None
        task.blocking.emit("out")
        return [first, name, payload, task.blocking.gather(child) if child else 0]


class Children(InThread):
    task_types = ()

    def on_task(self, task: Task) -> Any:
        return task.inputs["n"] if task.type == "child" else super().on_task(task)


async def test_a_plain_handler_waits_and_spawns() -> None:
    async with running(Children) as node:
        id_ = await node.tasks.submit(Task(pool_id="p"))
        await until_state(node, id_, TaskState.WAITING)
        await node.tasks.signal(id_, "b", 5)
        task = await node.tasks.result(id_, timeout=10)
        assert task.result == [1, "b", 5, [3]], task.error
        assert RAN == {"first": 1}


class Fans(Agent):
    async def on_task(self, task: Task) -> Any:
        if task.type == "child":
            if task.inputs["n"] < 0:
                raise ValueError("negative")
            return task.inputs["n"]
        children = [
            await task.spawn(Task(pool_id=task.inputs["pool"], type="child", max_attempts=1, inputs={"n": n}), f"c{n}")
            for n in task.inputs["ns"]
        ]
        if task.type == "completed":
            return sorted([result async for _, result in task.as_completed(*children)])
        if task.type == "first":
            return (await task.first(*children, cancel_rest=True))[1]
        return await task.gather(*children)


@pytest.mark.parametrize("pool", ["p", "q"])
async def test_a_parent_gathers_its_children_in_one_slot(pool: str) -> None:
    async with running(Fans, "p", "q") as node:
        for kind, result in (("gather", [3, 1, 2]), ("completed", [1, 2, 3])):
            id_ = await node.tasks.submit(Task(pool_id="p", type=kind, inputs={"ns": [3, 1, 2], "pool": pool}))
            task = await node.tasks.result(id_, timeout=10)
            assert task.result == result, task.error
        id_ = await node.tasks.submit(Task(pool_id="p", type="first", inputs={"ns": [3, 1, 2], "pool": pool}))
        assert (await node.tasks.result(id_, timeout=10)).result in (1, 2, 3)


async def test_a_child_that_failed_fails_the_gather() -> None:
    async with running(Fans) as node:
        id_ = await node.tasks.submit(Task(pool_id="p", type="gather", inputs={"ns": [1, -1], "pool": "p"}))
        task = await node.tasks.result(id_, timeout=10)
        assert task.state == TaskState.FAILED and ChildFailed.__name__ in task.error, task


class Parent(Agent):
    async def on_task(self, task: Task) -> Any:
        if task.type == "child":
            await task.wait_for("never")
        await task.spawn(Task(pool_id="p", type="child"))
        await task.wait_for("go")


@pytest.mark.parametrize("ends", ["complete", "cancel", "fail", "signal"])
async def test_the_end_of_a_parent_reaches_its_children(ends: str) -> None:
    async with running(Parent) as node:
        id_ = await node.tasks.submit(Task(pool_id="p"))
        await until_state(node, id_, TaskState.WAITING)
        (child,) = await node.tasks.children(id_)
        assert child.parent_id == id_
        await until_state(node, child.id, TaskState.WAITING)
        if ends == "complete":
            await node.tasks.complete(id_, 5)
        elif ends == "fail":
            await node.tasks.fail(id_, "no")
        elif ends == "cancel":
            await node.tasks.cancel(id_)
        else:
            await node.tasks.signal(id_, "go")
        await until_state(node, child.id, TaskState.CANCELLED)
        with pytest.raises(NotWaiting):
            await node.tasks.complete(id_, 5)


class Emits(Agent):
    async def on_task(self, task: Task) -> Any:
        async def speak() -> None:
            await task.emit("a")
            await task.emit("b")

        await task.progress(1, of=2, text="half")
        await task.step("speak", speak)
        await task.wait_for("go")
        await task.emit("c")


async def test_output_is_followed() -> None:
    async with running(Emits) as node:
        id_ = await node.tasks.submit(Task(pool_id="p"))
        seen = []
        async for output in node.tasks.watch(id_):
            seen.append(output)
            if output.kind == "state" and output.data == "WAITING":
                await node.tasks.signal(id_, "go")
        data = [(one.data, one.step) for one in seen if one.kind == "data"]
        assert data == [("a", "speak"), ("b", "speak"), ("c", "")]
        assert [one.data for one in seen if one.kind == "progress"] == 2 * [{"done": 1, "of": 2, "text": "half"}]
        assert seen[-1].data == "COMPLETED"
        cursor = next(one.cursor for one in seen if one.data == "a")
        again = [one.data async for one in node.tasks.watch(id_, after=cursor) if one.kind == "data"]
        assert again == ["b", "c"]


class Restarts(Agent):
    async def on_task(self, task: Task) -> Any:
        await task.step("one", ran, "one")
        if task.inputs["n"]:
            await task.restart({"n": task.inputs["n"] - 1})
        return task.inputs["n"]


async def test_a_restart_begins_anew_with_other_inputs() -> None:
    async with running(Restarts) as node:
        id_ = await node.tasks.submit(Task(pool_id="p", inputs={"n": 2}))
        assert (await node.tasks.result(id_, timeout=10)).result == 0
        assert RAN == {"one": 3}


async def none_left(node: Node) -> None:
    """Purge what has ended; sweep until nothing is left of it."""
    await purge(node.store, Purging(), is_dry_run=False)

    async def is_nothing_left() -> bool:
        await node.tasks.durable.sweep().page()
        return not any(await node.store.count([family() for family in OF_TASKS]))

    await wait_until(is_nothing_left, timeout=30)


class BeginsWith(Agent):
    """Records nothing before it waits, sleeps, restarts or is called off."""

    async def on_task(self, task: Task) -> Any:
        if task.type == "waits":
            return await task.wait_for("go", timeout=60)
        if task.type == "restarts" and not task.inputs:
            await task.restart({"again": 1})
        if task.type == "sleeps":
            await task.sleep(0.05)
        if task.type == "runs":
            ran("begun")
            with suppress(CalledOff):
                await task.step("long", anyio.sleep, 30.0)
        return await task.step("one", ran, "one")


@pytest.mark.parametrize("first", ["waits", "sleeps", "restarts", "runs"])
async def test_whatever_a_task_records_first_is_removed_with_it(first: str) -> None:
    async with running(BeginsWith) as node:
        id_ = await node.tasks.submit(Task(pool_id="p", type=first))
        if first == "waits":
            await until_state(node, id_, TaskState.WAITING)
            await node.tasks.cancel(id_)
        elif first == "runs":
            await wait_until(lambda: RAN["begun"] == 1, timeout=30)
            await node.tasks.cancel(id_, grace_sec=20)
        await node.tasks.result(id_, timeout=10)
        await none_left(node)


async def test_a_reader_that_is_gone_leaves_nothing_behind() -> None:
    async with Node(store=MemoryStore(), poll_sec=0.2) as node:
        await node.pools.create_pool(Pool(id="p"))
        id_ = await node.tasks.submit(Task(pool_id="p"))
        reader = node.tasks.watch(id_)
        assert (await anext(reader)).data == "PENDING"

        async def is_registered() -> bool:
            return list(await node.store.count([READER(), KEPT()])) == [1, 1]

        async with anyio.create_task_group() as group:
            group.start_soon(reader.__anext__)
            await wait_until(is_registered, timeout=30)
            group.cancel_scope.cancel()
        await node.tasks.cancel(id_)
        await none_left(node)
        with pytest.raises(NoSuchTask):
            await anext(reader)  # it ends without a key, too
        assert not any(await node.store.count([READER(), KEPT()]))


class Undoes(Agent):
    async def on_task(self, task: Task) -> Any:
        await task.step("do", ran, "do")
        try:
            if task.type == "waits":
                await task.wait_for("go")
            await task.step("long", anyio.sleep, 30.0)
        except CalledOff:
            await task.step("undo", ran, "undo")
            raise


@pytest.mark.parametrize("kind", ["waits", "runs"])
async def test_a_cancel_with_grace_lets_the_handler_undo(kind: str) -> None:
    async with running(Undoes) as node:
        id_ = await node.tasks.submit(Task(pool_id="p", type=kind))
        await (
            until_state(node, id_, TaskState.WAITING)
            if kind == "waits"
            else wait_until(lambda: RAN["do"] == 1, timeout=30)
        )
        assert await node.tasks.cancel(id_, grace_sec=20, why="enough")
        assert not await node.tasks.cancel(id_, grace_sec=20)
        task = await node.tasks.result(id_, timeout=10)
        assert (task.state, RAN["undo"]) == (TaskState.CANCELLED, 1)


@pytest.mark.parametrize("end", ["released", "lease"])
async def test_a_called_off_claim_that_ends_without_its_handler_is_undone_by_the_next(end: str) -> None:
    """Its process stops or dies, or the answer to its take was lost: what was done is still to be undone."""
    store = MemoryStore()
    async with Node(store=store, poll_sec=0.2) as node:
        await node.pools.create_pool(Pool(id="p"))
        id_ = await node.tasks.submit(Task(pool_id="p", type="waits", max_attempts=2))
        (agent,) = await node.spawn(Undoes, pool="p")
        await until_state(node, id_, TaskState.WAITING)
        await node.retire(agent)
        assert await node.tasks.cancel(id_, grace_sec=60)
        async with Node(store=store) as other:
            (claimed,) = await other.tasks.claim("one", ["p"])
            assert (claimed.id, RAN["undo"]) == (id_, 0)
            if end == "released":
                await other.tasks.release(claimed, "it was not begun")
        # Where it was not released, the end of the node has ended its lease.
        await node.spawn(Undoes, pool="p")
        task = await node.tasks.result(id_, timeout=30)
        assert (task.state, RAN["undo"]) == (TaskState.CANCELLED, 1)
        await none_left(node)


async def test_a_called_off_task_that_nobody_takes_ends_with_its_grace_time() -> None:
    async with Node(store=MemoryStore(), poll_sec=0.2) as node:
        await node.pools.create_pool(Pool(id="p"))
        id_ = await node.tasks.submit(Task(pool_id="p"))
        (claimed,) = await node.tasks.claim("one", ["p"])
        assert await node.tasks.cancel(id_, grace_sec=1.0)
        await node.tasks.release(claimed)
        assert (await node.tasks.get(id_)).state == TaskState.PENDING
        assert (await node.tasks.result(id_, timeout=30)).state == TaskState.CANCELLED
        await none_left(node)


class Declined(Exception):
    pass


class Final(Agent):
    async def on_task(self, task: Task) -> Any:
        async def pay() -> None:
            RAN["pay"] += 1
            raise Declined("no money")

        async def flaky() -> int:
            RAN["flaky"] += 1
            if RAN["flaky"] < 3:
                raise ValueError
            return RAN["flaky"]

        assert await task.step("flaky", flaky, retries=2, delay_sec=0.001) == 3
        try:
            await task.step("pay", pay, final=(Declined,))
        except StepFailed as error:
            if RAN["seen"] == 0:
                RAN["seen"] += 1
                raise RuntimeError("again") from error
            return [error.kind, error.text]


async def test_a_final_error_is_recorded_and_others_are_retried() -> None:
    async with running(Final) as node:
        id_ = await node.tasks.submit(Task(pool_id="p", retry_delay_sec=0.0))
        task = await node.tasks.result(id_, timeout=10)
        assert task.result == ["Declined", "no money"], task
        assert RAN == {"pay": 1, "flaky": 3, "seen": 1}


class Counts(Agent):
    concurrency = 8

    async def on_ask(self, state: Any, message: Any) -> Any:
        count = (state or 0) + 1
        if message == "fail":
            raise ValueError("no")
        return count, [count, message]


class CountsInThread(Counts):
    def on_ask(self, state: Any, message: Any) -> Any:
        return (state or 0) + 1, [(state or 0) + 1, message]


@pytest.mark.parametrize("kind", [Counts, CountsInThread])
async def test_virtual_agents_answer_in_order_and_keep_their_state(kind: type[Agent]) -> None:
    answers: dict[str, list[Any]] = {"a": [], "b": []}
    async with running(kind) as node:

        async def ask(key: str, number: int) -> None:
            answers[key].append(await node.agent(key, pool="p").ask(number))

        async with anyio.create_task_group() as group:
            for number in range(5):
                for key in answers:
                    group.start_soon(ask, key, number)
        for key, all_ in answers.items():
            assert sorted(one[0] for one in all_) == [1, 2, 3, 4, 5]
            assert await node.agent(key, pool="p").state() == 5
        if kind is Counts:
            with pytest.raises(HandlerFailed):
                await node.agent("a", pool="p").ask("fail", timeout=20)
        await node.agent("a", pool="p").forget()
        assert await node.agent("a", pool="p").ask("x") == [1, "x"]


class Twice(Agent):
    async def on_task(self, task: Task) -> Any:
        values = [await task.step("n", ran, "n", n) for n in range(3)]
        with pytest.raises(StepConflict):
            async with anyio.create_task_group() as group:
                group.start_soon(self.one, task)
                await anyio.lowlevel.checkpoint()
                await task.step("slow", ran, "slow")
        await task.wait_for("go")
        return values

    async def one(self, task: Task) -> None:
        await task.step("slow", anyio.sleep, 30.0)


async def test_a_task_that_no_handler_runs_has_no_steps() -> None:
    with pytest.raises(NotRunning):
        await Task(pool_id="p").step("x", ran, "x")


class Renames(Agent):
    """Its process is away after it has begun to pay; the next attempt has another name for that."""

    async def on_task(self, task: Task) -> None:
        await task.step("pay" if task.attempts == 1 else "charge", self.pay, at_most_once=True)

    async def pay(self) -> None:
        ran("pay")
        raise ConnectionError("no answer")


async def test_a_step_that_was_begun_is_not_run_under_another_name() -> None:
    async with running(Renames) as node:
        id_ = await node.tasks.submit(Task(pool_id="p", max_attempts=2, retry_delay_sec=0.0))
        error = (await node.tasks.result(id_, timeout=20)).error
        assert error.startswith(StepUncertain.__name__) and '"charge" is new, and "pay" was begun' in error, error
        assert RAN == {"pay": 1}


class AtOnce(Agent):
    async def on_task(self, task: Task) -> None:
        async def same() -> None:
            await task.step("same", anyio.sleep, 0)

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(same)


async def test_a_group_that_a_handler_raises_names_the_errors_in_it() -> None:
    async with running(AtOnce) as node:
        id_ = await node.tasks.submit(Task(pool_id="p", max_attempts=1))
        error = (await node.tasks.result(id_, timeout=20)).error
        assert StepConflict.__name__ in error and "name steps that run at once apart" in error, error


async def test_an_ask_that_no_agent_can_answer_says_what_is_missing() -> None:
    async with running(AtOnce) as node:
        with pytest.raises(ResultTimeout, match="run an agent with `on_ask` in pool p"):
            await node.agent("a", pool="p").ask("x", timeout=0.1)
    with pytest.raises(NoHandler, match="AtOnce answers for no virtual agents: it has no on_ask"):
        AtOnce().on_ask(None, "x")


async def test_an_ask_with_a_timeout_that_is_none_sends_nothing() -> None:
    async with running(AtOnce) as node:
        for timeout in (-1, float("nan"), "1"):
            with pytest.raises(InvalidValue, match="timeout"):
                await node.agent("a", pool="p").ask("x", timeout=cast(float, timeout))
        assert not await node.tasks.list(pool_id="p")


class Paused(Agent):
    """Puts a piece out, and the next one as soon as its test lets it."""

    def __init__(self) -> None:
        self.has_begun, self.go_on = anyio.Event(), anyio.Event()

    async def on_task(self, task: Task) -> None:
        await task.emit("before")
        self.has_begun.set()
        await self.go_on.wait()
        await task.emit("after")
        await task.wait_for("never")


async def test_a_reader_that_comes_while_a_task_puts_out_need_not_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(putting_out, "READERS_FRESH_SEC", 3_600.0)  # it has looked for readers before, and not since
    async with open_store("memory:") as store, Node(store=store, poll_sec=60) as node:
        (agent,) = await node.spawn(Paused, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p"))
        await agent.has_begun.wait()

        async def has_reader() -> bool:
            return (await store.count([READER()]))[0] == 1

        async def let_go_on() -> None:
            await wait_until(has_reader)
            await anyio.wait_all_tasks_blocked()  # it has looked, and waits
            agent.go_on.set()

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(let_go_on)
                async for output in node.tasks.watch(id_):
                    if output.data == "after":
                        break
