"""Odd uses of durable tasks: each ends, and says what is wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from converge import Agent, MemoryStore, Node, Pool, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch
from converge.errors import (
    AskCycle,
    CalledOff,
    ConvergeError,
    InvalidName,
    InvalidValue,
    NoRetry,
    NotRunning,
    Release,
    RetryAfter,
    StepFailed,
    ValueTooLarge,
    WentOn,
)
from converge.model.keys import STATE
from converge.model.working import Child
from converge.runtime.attempts import attempt as attempts
from converge.runtime.attempts import putting_out
from converge.services.durable.limits import STEP_BYTES, WAIT_NAMES
from converge.testing.fixtures import wait_until

CALLS: list[str] = []
KEPT: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()
    KEPT.clear()


def raises(error: BaseException) -> None:
    CALLS.append("raises")
    raise error


async def raises_later(error: BaseException) -> None:
    raises(error)


class Asks(Agent):
    """Asks whom the message names, one after another."""

    concurrency = 4

    async def on_ask(self, state: Any, message: list[str]) -> tuple[Any, Any]:
        if not message:
            return state, "asked"
        try:
            return state, await KEPT["node"].agent(message[0], pool="asks").ask(message[1:])
        except AskCycle as error:
            return state, list(error.chain)


class Odd(Agent):
    """Does what the test says, in the event loop."""

    concurrency = 4

    async def on_task(self, task: Task) -> Any:
        if task.type == "echo":
            return task.inputs.get("n")
        return await KEPT["handler"](task)


class OneAtATime(Odd):
    concurrency = 1


class OddInThread(Agent):
    def on_task(self, task: Task) -> Any:
        return KEPT["handler"](task)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node(store=MemoryStore(), poll_sec=0.1, grace_sec=1.0) as node:
        await node.spawn(Odd, pool="p")
        await node.spawn(OddInThread, pool="threads")
        await node.spawn(OneAtATime, pool="one")
        yield node


async def ended(node: Node, handler: Callable[[Task], Any], *, pool: str = "p", **fields: Any) -> Task:
    KEPT["handler"] = handler
    id_ = await node.tasks.submit(Task(pool_id=pool, **({"max_attempts": 1, "retry_delay_sec": 0.0} | fields)))
    return await node.tasks.result(id_, timeout=30)


# Steps.


async def test_a_method_of_the_task_is_a_step(node: Node) -> None:
    async def handler(task: Task) -> None:
        await task.step("say", task.emit, "once")

    task = await ended(node, handler)
    assert task.state == TaskState.COMPLETED, task.error
    said = await anext(node.tasks.watch(task.id))
    assert (said.data, said.step) == ("once", "say")


MISUSES: list[tuple[Any, dict[str, Any]]] = [
    (raises, {"retries": -1}),
    (raises, {"retries": "2"}),
    (raises, {"delay_sec": -1}),
    (raises, {"delay_sec": float("nan")}),
    (raises, {"final": ValueError}),
    (raises, {"final": ("ValueError",)}),
    (raises, {"final": (BaseException,)}),
    (None, {}),
]


@pytest.mark.parametrize("pool", ["p", "threads"])
async def test_a_step_that_cannot_be_run_so_is_refused_before_it_runs(node: Node, pool: str) -> None:
    async def each(task: Task) -> None:
        for function, options in MISUSES:
            with pytest.raises(InvalidValue):
                await task.step("s", function, ValueError("x"), **options)

    def each_in_thread(task: Task) -> None:
        for function, options in MISUSES:
            with pytest.raises(InvalidValue):
                task.blocking.step("s", function, ValueError("x"), **options)

    task = await ended(node, each if pool == "p" else each_in_thread, pool=pool)
    assert (task.state, CALLS) == (TaskState.COMPLETED, []), task.error


async def test_a_step_of_a_thread_is_no_coroutine(node: Node) -> None:
    def works(task: Task) -> object:
        return task.blocking.step("s", raises_later, ValueError("x"))

    task = await ended(node, works, pool="threads")
    assert "a plain function" in task.error and not CALLS


@pytest.mark.parametrize("call", ["emit", "progress"])
async def test_what_cannot_be_put_out_is_named_after_the_call(node: Node, call: str) -> None:
    async def works(task: Task) -> None:
        await getattr(task, call)(object())

    assert (await ended(node, works)).error.startswith(f"InvalidValue: {call}")


@pytest.mark.parametrize("pool", ["p", "threads"])
@pytest.mark.parametrize(("word", "state"), [(NoRetry("no"), "FAILED"), (RetryAfter(0, "later"), "FAILED")])
async def test_a_word_on_the_attempt_ends_it_whatever_the_step_says(
    node: Node, pool: str, word: ConvergeError, state: str
) -> None:
    options: dict[str, Any] = {"retries": 3, "delay_sec": 0.0, "final": (Exception,)}

    async def works(task: Task) -> None:
        await task.step("s", raises_later, word, **options)

    def works_in_thread(task: Task) -> None:
        task.blocking.step("s", raises, word, **options)

    task = await ended(node, works if pool == "p" else works_in_thread, pool=pool, max_attempts=2)
    attempts = 1 if isinstance(word, NoRetry) else 2
    assert (task.state, len(CALLS), task.attempts) == (state, attempts, attempts), task.error
    assert StepFailed.__name__ not in task.error


async def test_a_step_that_hands_its_task_back_is_neither_recorded_nor_counted(node: Node) -> None:
    async def once() -> str:
        CALLS.append("once")
        if len(CALLS) == 1:
            raise Release("elsewhere")
        return "done"

    async def works(task: Task) -> Any:
        return await task.step("s", once, final=(Exception,))

    task = await ended(node, works)
    assert (task.result, task.attempts) == ("done", 1), task.error


@pytest.mark.parametrize("pool", ["p", "threads"])
async def test_only_what_the_function_raises_is_final(node: Node, pool: str) -> None:
    async def works(task: Task) -> None:
        await task.step("s", object, final=(Exception,))

    def works_in_thread(task: Task) -> None:
        task.blocking.step("s", object, final=(Exception,))

    task = await ended(node, works if pool == "p" else works_in_thread, pool=pool)
    assert "InvalidValue" in task.error and StepFailed.__name__ not in task.error, task.error


async def test_a_step_with_final_errors_is_told_that_its_task_is_called_off(node: Node) -> None:
    async def works(task: Task) -> None:
        CALLS.append("begun")
        try:
            await task.step("long", anyio.sleep, 60.0, final=(Exception,))
        except CalledOff:
            CALLS.append("told")

    KEPT["handler"] = works
    id_ = await node.tasks.submit(Task(pool_id="p"))
    await wait_until(lambda: CALLS == ["begun"], timeout=30)
    await node.tasks.cancel(id_, grace_sec=20)
    assert (await node.tasks.result(id_, timeout=30)).state == TaskState.CANCELLED
    assert CALLS == ["begun", "told"]


async def test_a_task_that_is_called_off_waits_for_nothing_and_undoes_the_rest(node: Node) -> None:
    async def works(task: Task) -> None:
        CALLS.append("begun")
        try:
            await task.step("long", anyio.sleep, 60.0)
        except CalledOff:
            waits: list[Callable[[], Awaitable[Any]]] = [
                lambda: task.wait_for("go"),
                lambda: task.sleep(60.0),
                lambda: task.restart({}),
            ]
            for wait in waits:
                with pytest.raises(CalledOff, match="wait"):
                    await wait()
            await task.step("undo", CALLS.append, "undone")

    KEPT["handler"] = works
    id_ = await node.tasks.submit(Task(pool_id="p"))
    await wait_until(lambda: CALLS == ["begun"], timeout=30)
    await node.tasks.cancel(id_, grace_sec=60)
    assert (await node.tasks.result(id_, timeout=30)).state == TaskState.CANCELLED
    assert CALLS == ["begun", "undone"]


@pytest.mark.parametrize("how", ["wait_for", "restart"])
async def test_who_parks_in_the_moment_of_a_cancel_with_grace_is_told_of_it(how: str, tmp_path: Path) -> None:
    async def works(task: Task) -> Any:
        await task.step("do", CALLS.append, "done")
        try:
            await (task.wait_for("go") if how == "wait_for" else task.restart({"n": 1}))
        except CalledOff:
            await task.step("undo", CALLS.append, "undone")
            raise

    url, is_cancelled = f"file:{tmp_path / 'state.db'}", False
    KEPT["handler"] = works
    async with open_store(url) as store, open_store(url) as other, Node(store=store, poll_sec=0.1) as node:
        await node.spawn(Odd, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p"))

        def before(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def called(batches: Sequence[Batch], *rest: Any, **more: Any) -> Any:
                nonlocal is_cancelled
                ends = any(one.deletes and key[0] is STATE for one in batches for key, _ in one.puts)
                if ends and CALLS and not is_cancelled:
                    is_cancelled = True
                    assert await TaskManager(other).cancel(id_, grace_sec=60)
                return await call(batches, *rest, **more)

            return called

        with pytest.MonkeyPatch.context() as patch:
            for name in ("commit", "turn"):
                patch.setattr(store, name, before(getattr(store, name)))
            await node.tasks.result(id_, timeout=30)
        assert is_cancelled and (await node.tasks.get(id_)).state == TaskState.CANCELLED
    assert CALLS == ["done", "undone"]


# Waits.


async def test_a_wait_has_up_to_a_hundred_names(node: Node) -> None:
    names = [f"a rather long name of a signal {number}" for number in range(WAIT_NAMES)]

    async def works(task: Task) -> Any:
        first = await task.wait_for(*names)
        return [first, await task.wait_for(*reversed(names))]

    KEPT["handler"] = works
    id_ = await node.tasks.submit(Task(pool_id="p", max_attempts=1))
    await node.tasks.signal(id_, names[7], 1)
    await node.tasks.signal(id_, names[99], 2)
    task = await node.tasks.result(id_, timeout=30)
    assert task.result == [[names[7], 1], [names[99], 2]], task.error


NAMES: list[Any] = ["", "a#2", "a\nb", "a\0", "\ud800", "x" * 101, 5, None]


async def test_what_cannot_be_waited_for_is_refused_where_it_is_signalled_too(node: Node) -> None:
    async def each(task: Task) -> None:
        for name in NAMES:
            for names in ([name], ["good", name]):
                with pytest.raises(InvalidName, match="signal"):
                    await task.wait_for(*names)
        for count in (0, WAIT_NAMES + 1):
            with pytest.raises(InvalidValue):
                await task.wait_for(*map(str, range(count)))

    task = await ended(node, each)
    assert task.state == TaskState.COMPLETED, task.error
    for name in NAMES:
        with pytest.raises(InvalidValue, match="name"):
            await node.tasks.signal(task.id, name)


async def test_a_signal_in_the_moment_of_the_timeout_is_consumed(node: Node) -> None:
    async def works(task: Task) -> Any:
        ledger = KEPT["node"].tasks.durable.handle
        time = ledger.store.time

        async def with_a_signal() -> int:  # between the wait's look for signals and its record of the timeout
            ledger.store.time = time
            await KEPT["node"].tasks.signal(task.id, "go", 5)
            return int(await time())

        ledger.store.time = with_a_signal
        return await task.wait_for("go", timeout=0)

    KEPT["node"] = node
    task = await ended(node, works)
    assert task.result == 5, task.error


async def test_a_wait_in_a_shielded_scope_ends_with_an_error(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ENDS_SEC", 0.05)

    async def works(task: Task) -> None:
        with anyio.CancelScope(shield=True):
            await task.wait_for("never")

    task = await ended(node, works)
    assert WentOn.__name__ in task.error and "shield" in task.error, task


async def test_what_a_handler_left_running_parks_nothing(node: Node) -> None:
    """Neither its task, nor the one that the same slot works on next."""
    goes_on, is_refused = anyio.Event(), anyio.Event()

    async with anyio.create_task_group() as group:

        async def waits(waiting: Awaitable[None]) -> None:
            await goes_on.wait()
            with pytest.raises(NotRunning):
                await waiting
            is_refused.set()

        async def leaves(task: Task) -> str:
            group.start_soon(waits, task.wait_for("never"))
            return "left"

        async def looks(task: Task) -> str:
            goes_on.set()
            await is_refused.wait()
            return "undisturbed"

        assert (await ended(node, leaves, pool="one")).result == "left"
        assert (await ended(node, looks, pool="one")).result == "undisturbed"


async def test_a_wait_after_a_step_that_put_out_from_its_thread(node: Node) -> None:
    """The handler is none of a thread because a step of it is."""

    async def works(task: Task) -> str:
        async def waits() -> None:
            await task.wait_for("go")

        await task.step("speak", lambda: task.blocking.emit("hello"))
        async with anyio.create_task_group() as group:
            group.start_soon(waits)
        return "gone on"

    KEPT["handler"] = works
    id_ = await node.tasks.submit(Task(pool_id="p", max_attempts=1))
    await node.tasks.signal(id_, "go")
    task = await node.tasks.result(id_, timeout=30)
    assert task.result == "gone on", task.error


async def test_a_wait_in_a_thread_of_a_handler_of_the_loop(node: Node) -> None:
    async def works(task: Task) -> Any:
        async with anyio.create_task_group() as group:
            group.start_soon(to_thread.run_sync, lambda: task.blocking.wait_for("go"))
        return "gone on"

    KEPT["handler"] = works
    id_ = await node.tasks.submit(Task(pool_id="p", max_attempts=1))

    async def is_parked() -> bool:
        return (await node.tasks.get(id_)).parks == 1

    await wait_until(is_parked, timeout=30)
    await node.tasks.signal(id_, "go")
    task = await node.tasks.result(id_, timeout=30)
    assert task.result == "gone on", task.error


async def test_a_plain_handler_may_ask_whether_it_is_parked(node: Node) -> None:
    def works(task: Task) -> str:
        assert not task.is_parking and not task.is_called_off
        try:
            task.blocking.wait_for("go")
        finally:
            CALLS.append(f"parking: {task.is_parking}")
        return "gone on"

    KEPT["handler"] = works
    id_ = await node.tasks.submit(Task(pool_id="threads", max_attempts=1))
    await wait_until(lambda: CALLS == ["parking: True"], timeout=30)
    await node.tasks.signal(id_, "go")
    task = await node.tasks.result(id_, timeout=30)
    assert (task.result, CALLS) == ("gone on", ["parking: True", "parking: False"]), task.error


# Children.


async def test_who_gathers_a_child_twice_is_given_its_result_twice(node: Node) -> None:
    async def works(task: Task) -> Any:
        one = await task.spawn(Task(pool_id="p", type="echo", inputs={"n": 1}), "one")
        two = await task.spawn(Task(pool_id="p", type="echo", inputs={"n": 2}), "two")
        return [await task.gather(one, two, one), await task.gather()]

    assert (await ended(node, works)).result == [[1, 2, 1], []]


async def test_a_task_of_others_is_not_waited_for(node: Node) -> None:
    async def each(task: Task) -> None:
        others: list[Any] = [Child(id=task.id), "child", None]
        for other in others:
            for waits in (task.gather, task.first):
                with pytest.raises(InvalidValue, match="children"):
                    await waits(other)
        for waits in (task.gather, task.first):
            with pytest.raises(InvalidName):
                await waits(Child(id="x"))

    task = await ended(node, each)
    assert task.state == TaskState.COMPLETED, task.error


async def test_a_child_of_before_a_restart_may_be_waited_for(node: Node) -> None:
    async def works(task: Task) -> Any:
        if not task.inputs:
            child = await task.spawn(Task(pool_id="p", type="echo", inputs={"n": 7}))
            await task.restart({"child": child.id})
        return await task.gather(Child(id=task.inputs["child"]))

    assert (await ended(node, works)).result == [7]


async def test_a_plain_handler_takes_children_as_they_end(node: Node) -> None:
    def works(task: Task) -> Any:
        children = [
            task.blocking.spawn(Task(pool_id="p", type="echo", inputs={"n": number}), f"c{number}")
            for number in range(3)
        ]
        return sorted(result for _, result in task.blocking.as_completed(*children))

    task = await ended(node, works, pool="threads")
    assert task.result == [0, 1, 2], task.error


# What is sent and kept.


async def test_a_restart_with_too_much_is_refused(node: Node) -> None:
    async def works(task: Task) -> str:
        with pytest.raises(ValueTooLarge):
            await task.restart({"text": "x" * 1_048_576})
        return "went on"

    assert (await ended(node, works)).result == "went on"


async def test_the_longest_signals_at_once_go_out_in_parts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = node.tasks.durable.handle
    commits = await handle.commits()
    commit, sizes = commits.commit, list[int]()

    async def counted(batches: Any, **more: Any) -> Any:
        sizes.extend(sum(len(put[1]) for put in batch.puts) for batch in batches)
        return await commit(batches, **more)

    await node.pools.create_pool(Pool(id="nobody"))
    id_ = await node.tasks.submit(Task(pool_id="nobody"))
    payload = "x" * (STEP_BYTES - 2)
    monkeypatch.setattr(commits, "commit", counted)
    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(node.tasks.signal, id_, "go", payload)
    assert max(sizes) < 5 * 1_048_576 and sum(sizes) > 40 * STEP_BYTES


async def test_a_task_that_is_failed_by_its_id_is_not_retried_later(node: Node) -> None:
    task = await ended(node, echo)
    with pytest.raises(InvalidValue, match="failed for good"):
        await node.tasks.fail(task.id, "no", after=1.0)


async def test_a_cursor_that_is_none_is_refused(node: Node) -> None:
    task = await ended(node, echo)
    cursors: list[Any] = ["²", "1.²", "1.١", "1", ".", "-1.2", f"{10**30}.1", "1.2.3", "1.2", 5, b"1.2"]
    for cursor in cursors:
        with pytest.raises(InvalidValue, match="cursor"):
            await anext(node.tasks.watch(task.id, after=cursor))


async def test_a_cursor_of_another_task_or_of_another_store_is_refused(node: Node) -> None:
    """It would skip what the task has put out, in silence."""
    first, second = [await ended(node, speaks) for _ in range(2)]
    (of_first, of_second) = [[one async for one in node.tasks.watch(task.id)] for task in (first, second)]
    with pytest.raises(InvalidValue, match=f"{second.id}, not of the task whose id ends in {first.id[-8:]}"):
        node.tasks.watch(second.id, after=of_first[0].cursor)
    token, number, mark = of_second[0].cursor.split(".")
    for ahead in (f"{int(token) + 1}.0.{mark}", f"{token}.2.{mark}", f"{int(token) - 1}.{number}.{mark}"):
        with pytest.raises(InvalidValue, match=f"{second.id} has put out in this store"):
            await anext(node.tasks.watch(second.id, after=ahead))
    assert [one async for one in node.tasks.watch(second.id, after=of_second[0].cursor)] == of_second[1:]


async def test_a_cursor_whose_piece_has_gone_is_told_what_it_has_missed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(putting_out, "CHUNKS", 3)
    task = await ended(node, speaks, inputs={"n": 10})
    (piece, *_) = [one async for one in node.tasks.watch(task.id)]
    token, _, mark = piece.cursor.split(".")
    seen = [one async for one in node.tasks.watch(task.id, after=f"{token}.4.{mark}") if one.kind == "data"]
    assert [(one.data, one.missing) for one in seen] == [(7, 2), (8, 0), (9, 0)]


async def speaks(task: Task) -> None:
    for number in range(task.inputs.get("n") or 2):
        await task.emit(number)


async def echo(task: Task) -> str:
    return "echo"


class Silent(Agent):
    """Counts its messages, and answers nothing."""

    async def on_ask(self, state: Any, message: Any) -> tuple[Any, Any]:
        return (state or 0) + 1, message


async def test_the_state_of_a_virtual_agent_is_kept_whatever_it_answers(node: Node) -> None:
    await node.spawn(Silent, pool="silent")
    agent = node.agent("a", pool="silent")
    answers: list[Any] = [None, None, False, 0, "", [], {}]
    assert [await agent.ask(answer, timeout=30) for answer in answers] == answers
    assert await agent.state() == len(answers)


@pytest.mark.parametrize("others", [["a"], ["b", "a"], ["b", "c", "b"]])
async def test_a_virtual_agent_that_waits_for_itself_is_told(node: Node, others: list[str]) -> None:
    KEPT["node"] = node
    await node.spawn(Asks, pool="asks")
    a = node.agent("a", pool="asks")
    chain = [f"{name} of pool asks" for name in ["a", *others[:-1]]]
    assert await a.ask(others, timeout=30) == chain
    assert await a.ask(["b", "c"], timeout=30) == "asked"


class Reminds(Agent):
    """Leaves something running that asks it again."""

    async def on_ask(self, state: int | None, message: Any) -> tuple[int, None]:
        async def again() -> None:
            await KEPT["answered"].wait()
            await KEPT["node"].agent("one", pool="reminds").ask("again", timeout=20)

        if message == "first":
            KEPT["group"].start_soon(again)
        return (state or 0) + 1, None


async def test_who_has_answered_may_be_asked_by_what_it_left_running(node: Node) -> None:
    await node.spawn(Reminds, pool="reminds")
    one = node.agent("one", pool="reminds")
    async with anyio.create_task_group() as group:
        KEPT.update(node=node, group=group, answered=anyio.Event())
        await one.ask("first", timeout=20)
        KEPT["answered"].set()
    assert await one.state() == 2
