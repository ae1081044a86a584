"""What user code does that shows only after the call: late cancellations, blocked loops, threads that never return."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from inspect import CO_COROUTINE
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import misbehaviour as bad
import pytest
from anyio import to_thread

from converge import Agent, Node, Task
from converge.env import SYSTEM
from converge.errors import HandlerFailed, ToolTimeout
from converge.foreign import LOGS, tell
from converge.runtime import parts
from converge.runtime.agents import background
from converge.runtime.agents.background import Background
from converge.runtime.agents.boundary import Boundary, Worker, worker_kind
from converge.runtime.agents.decisions import InvokeTool
from converge.testing.fixtures import wait_until

GOOD = "good"
TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loops."""
    if request.param == "trio":
        return "trio", {}
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What abandoned threads wait for."""
    event = threading.Event()
    yield event
    event.set()


async def result(node: Node, kind: str, **options: Any) -> Task:
    """Return a task's only attempt, ended."""
    one = Task(pool_id="p", inputs={"kind": kind}, max_attempts=1, **options)
    return await node.tasks.result(await node.tasks.submit(one), timeout=20)


async def test_a_cancellation_that_comes_after_the_call_ends_nothing() -> None:
    came = anyio.Event()

    class Late(Agent):
        async def on_task(self, task: Task) -> str:
            if task.inputs["kind"] == GOOD:
                return await bad.behaves()
            if bad.is_trio():
                came.set()
                return "nothing comes late"
            mine = asyncio.current_task()
            assert mine is not None

            def cancel() -> None:
                mine.cancel()
                came.set()

            asyncio.get_running_loop().call_later(0.005, cancel)
            return "late"

    with anyio.fail_after(30):
        async with Node() as node:
            await node.spawn(Late, pool="p")
            assert (await result(node, "late")).state == "COMPLETED"
            await came.wait()
            for _ in range(3):
                assert (await result(node, GOOD)).result == GOOD
            assert node.health().is_ready


async def test_a_loop_that_is_blocked_for_longer_than_the_lease_works_on(caplog: pytest.LogCaptureFixture) -> None:
    class Blocking(Agent):
        async def on_task(self, task: Task) -> str:
            if task.inputs["kind"] == GOOD:
                return await bad.behaves()
            time.sleep(2.5)  # noqa: ASYNC251  # what the test is about
            return "late"

    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(60):
        async with Node(lease_sec=1.0, stall_sec=1.0) as node:  # short: it is to end
            await node.spawn(Blocking, pool="p")
            await node.tasks.submit(Task(pool_id="p", inputs={"kind": "block"}, max_attempts=1))
            assert (await result(node, GOOD)).result == GOOD
            await wait_until(lambda: node.health().is_ready, what="the node is ready")


async def test_a_thread_that_never_returns_keeps_no_other_task_from_one(release: threading.Event) -> None:
    class Hanging(Agent):
        def on_task(self, task: Task) -> str:
            if task.inputs["kind"] != GOOD:
                release.wait()
            return GOOD

    with anyio.fail_after(30):
        async with Node() as node:
            await node.spawn(Hanging, pool="p")
            for _ in range(2):
                assert (await result(node, "hang", timeout_sec=0.05)).error.startswith("timed out")
                good = await result(node, GOOD, timeout_sec=10)
                assert (good.state, good.result) == ("COMPLETED", GOOD)


async def test_tools_that_never_return_keep_no_other_tool_from_a_thread(release: threading.Event) -> None:
    class Using(Agent):
        tools = ("hang", "work")

        def hang(self) -> None:
            release.wait()

        def work(self) -> str:
            return GOOD

        async def on_task(self, task: Task) -> str:
            for _ in range(3):
                with pytest.raises(ToolTimeout):
                    await self.act(InvokeTool(name="hang", timeout_sec=0.02))
            return str(await self.tool("work"))

    with anyio.fail_after(30):
        async with Node() as node:
            node.executor._threads = anyio.CapacityLimiter(2)
            await node.spawn(Using, pool="p")
            assert (await result(node, GOOD)).result == GOOD


async def test_code_that_holds_every_thread_of_the_loop_keeps_its_node_from_nothing(tmp_path: Path) -> None:
    limiter = to_thread.current_default_thread_limiter()
    held = range(int(limiter.total_tokens))

    class Holding(Agent):
        async def on_task(self, task: Task) -> str:
            for number in held if task.inputs["kind"] != GOOD else ():
                limiter.acquire_on_behalf_of_nowait(number)
            return GOOD

    try:
        with anyio.fail_after(30):
            async with Node(store=f"file:{tmp_path / 'state.db'}", identity_dir=str(tmp_path / "keys")) as node:
                await node.spawn(Holding, pool="p")
                assert (await result(node, "hold")).result == GOOD
                await node.spawn(Holding, pool="p")
                assert (await result(node, GOOD)).result == GOOD
    finally:
        for number in held:
            limiter.release_on_behalf_of(number)


async def test_what_a_handler_starts_elsewhere_has_not_its_context() -> None:
    seen: list[str] = []

    class Telling(Agent):
        async def on_task(self, task: Task) -> str:
            TENANT.set("tenant-1 (secret)")
            await self.submit(Task(pool_id="q"))
            await self.send(listening.id, "x", ack="handled")
            return GOOD

    class Listening(Agent):
        async def on_message(self, message: Any) -> None:
            seen.append(TENANT.get())

        async def on_task(self, task: Task) -> None:
            seen.append(TENANT.get())

    with anyio.fail_after(30):
        async with Node() as node:
            (listening,) = await node.spawn(Listening, pool="q")
            await node.spawn(Telling, pool="p")
            assert (await result(node, GOOD)).result == GOOD
            await wait_until(lambda: len(seen) == 2, what="both have come")
    assert seen == ["nobody", "nobody"]


async def test_without_the_parts_that_it_reads_a_worker_takes_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> type[Worker]:
        return Worker

    class Any_(Agent):
        async def on_task(self, task: Task) -> Any:
            kind = task.inputs["kind"]
            return await (bad.behaves() if kind == GOOD else bad.ASYNC[kind]())

    monkeypatch.setattr(parts, "worker_kind", slow)
    with anyio.fail_after(60):
        async with Node() as node:
            await node.spawn(Any_, pool="p")
            for kind in bad.ASYNC:
                await result(node, kind)
                assert (await result(node, GOOD)).result == GOOD, kind
            assert node.health().is_ready


async def test_the_loops_that_are_known_need_no_task_for_a_call() -> None:
    assert (await worker_kind()).is_fast


async def test_a_loop_that_fails_runs_again_and_shows_in_health(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    runs: list[int] = []
    again = anyio.Event()

    async def fails_twice() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise bad.Unshowable
        again.set()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            background = Background(group, SYSTEM)
            background.loop(fails_twice)
            await again.wait()
            (name,) = background.failures
            assert name.endswith("fails_twice") and background.failures[name] == 2
            (ailment,) = background.ailments()
            assert ailment.code == "loop_failed" and "Unshowable" in ailment.text
            group.cancel_scope.cancel()


async def test_what_comes_while_tasks_end_is_not_begun_and_left_behind_by_nothing() -> None:
    async def one() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ends.set()

    async def comes() -> None:
        await ends.wait()
        background.errand(anyio.sleep_forever)

    with anyio.fail_after(30):
        for _ in range(50):  # which of those that wait for the last one goes on first is left to chance on trio
            ends = anyio.Event()
            async with anyio.create_task_group() as group, Background(group, SYSTEM).ending_early() as background:
                background.errand(one)
                group.start_soon(comes)
                await anyio.wait_all_tasks_blocked()
    gc.collect()  # of what was never awaited a warning tells, which is an error in tests


async def test_what_comes_when_the_last_task_has_ended_is_cancelled(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """Whoever waits for the tasks goes on one turn of the loop later; what is started in it keeps them waiting."""
    if anyio_backend[0] == "trio":
        return  # a nursery without tasks takes no other
    turns = anyio.CapacityLimiter(1)

    async def comes() -> None:
        async with turns:
            await anyio.sleep_forever()

    async def one() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: tasks.errand(comes))
        await anyio.sleep_forever()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group, Background(group, SYSTEM).ending_early() as tasks:
            tasks.errand(one)
            await anyio.wait_all_tasks_blocked()


async def test_what_is_started_under_a_cancelled_scope_is_cancelled_at_its_first_wait() -> None:
    ended = anyio.Event()

    async def late(begun: anyio.Event) -> None:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            background = Background(group, SYSTEM)
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()  # nobody is left to be cancelled
                for start in (background.errand, background.loop):
                    ended, begun = anyio.Event(), anyio.Event()
                    start(late, begun)
                    await begun.wait()
                    await ended.wait()


async def test_a_job_of_the_crew_is_taken_up_by_another_worker_when_its_own_is_spoiled() -> None:
    done: list[Any] = []
    todo = ["a scope left open", GOOD]

    async def act(kind: str) -> Any:
        return await (bad.behaves() if kind == GOOD else bad.ASYNC[kind]())

    async def job(worker: Worker) -> bool:
        while todo:
            done.append(await worker.call(act, todo.pop(0)))
            if worker.is_spoiled:
                return True
        ended.set()
        return False

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            ended = anyio.Event()
            Boundary(await worker_kind(), Background(group, SYSTEM)).start(job)
            await ended.wait()
            group.cancel_scope.cancel()
    assert done == ["left", GOOD]


async def test_a_log_that_raises_ends_no_loop_that_logs() -> None:
    """A filter or a factory of records is user code, too, and runs wherever a line is logged."""
    manager, factory = logging.Logger.manager, logging.getLogRecordFactory()
    ours = [logging.getLogger(name) for name in list(manager.loggerDict) if name.startswith("converge")]

    def fails(*_: Any, **__: Any) -> Any:
        raise SystemExit("in a log")

    class Breaking(Agent):
        async def on_task(self, task: Task) -> str:
            if task.inputs["kind"] == GOOD:
                return GOOD
            for logger in ours:
                logger.addFilter(fails)
            logging.setLogRecordFactory(fails)
            return "broken"

    try:
        with anyio.fail_after(30):
            async with Node() as node:
                await node.spawn(Breaking, pool="p")
                assert (await result(node, "logs")).result == "broken"
                assert (await result(node, GOOD)).result == GOOD
                for logger in ours:
                    logger.critical("a line of ours")
    finally:
        logging.setLogRecordFactory(factory)
        for logger in ours:
            logger.removeFilter(fails)
    assert "converge.slots" in {logger.name for logger in ours}


async def test_the_log_of_a_module_that_is_imported_while_a_node_runs_is_guarded_too() -> None:
    loggers, name = logging.Logger.manager.loggerDict, f"converge.{LOGS.split()[0]}"
    before = loggers.pop(name, None)  # as if none had been imported
    try:
        async with Node():
            logger = logging.getLogger(name)
            logger.addFilter(fails)
            logger.critical("a line of ours")
    finally:
        loggers.pop(name)
        if before is not None:
            loggers[name] = before


@pytest.mark.parametrize("hook", ["settrace", "setprofile"])
async def test_a_tracer_of_a_thread_ends_with_the_call(hook: str) -> None:
    class Tracing(Agent):
        def on_task(self, task: Task) -> str:
            if task.inputs["kind"] != GOOD:
                getattr(sys, hook)(fails)
            return GOOD

    with anyio.fail_after(60):
        async with Node() as node:
            await node.spawn(Tracing, pool="p")
            await result(node, hook)
            for _ in range(3):
                assert (await result(node, GOOD)).result == GOOD


@pytest.mark.parametrize("error", [bad.doubling(), bad.Endless()], ids=["group", "causes"])
async def test_an_error_whose_stack_never_ends_is_logged_without_one(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("converge.slots")
    tell(log, logging.ERROR, "it failed", error=ExceptionGroup("some", [ValueError("one")]))
    tell(log, logging.ERROR, "it failed", error=error)
    assert [record.exc_info is not None for record in caplog.records] == [True, False]


CLAIMING = "converge/runtime/claiming/"


class Raising:
    """A profiler that raises, once, where the node's own code has called so many functions of claiming."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """See the class."""
        code = frame.f_code
        if event != "call" or CLAIMING not in code.co_filename or code.co_flags & CO_COROUTINE:
            return
        self._left -= 1
        if self._left <= 0:
            sys.setprofile(None)
            raise MemoryError(f"in {code.co_qualname}")


async def test_no_claim_is_lost_wherever_the_nodes_own_code_fails_after_a_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory ends, or a profiler or the handler of a signal raises: between any two lines of ours, not in the call."""

    class Leaving(Agent):
        concurrency = 2

        async def on_task(self, task: Task) -> str:
            if calls := task.inputs["calls"]:
                sys.setprofile(Raising(calls))
            return GOOD

    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(background, "BACKOFF_GREATEST_SEC", background.BACKOFF_LEAST_SEC)
    try:
        with anyio.fail_after(120):
            async with Node() as node:
                await node.spawn(Leaving, pool="p")
                for calls in range(1, 60):
                    tasks = [Task(pool_id="p", inputs={"calls": one}, max_attempts=1) for one in (calls, 0)]
                    for id_ in await node.tasks.submit_many(tasks):
                        assert (await node.tasks.result(id_, timeout=20)).state in ("COMPLETED", "FAILED"), calls
                sys.setprofile(None)  # the node's end is not part of this
                assert len(node.parts.boundary.background.failures) > 1, "nothing was raised in slots and feed"
    finally:
        sys.setprofile(None)


def fails(*_: Any, **__: Any) -> Any:
    """Raise, wherever it is called."""
    raise ValueError("in what the thread shares")


def spoils_generators() -> None:
    """Let no async generator of the thread begin."""
    sys.set_asyncgen_hooks(firstiter=fails, finalizer=fails)


def spoils_factory() -> None:
    """Let no task be started on asyncio's event loops."""
    if not bad.is_trio():
        asyncio.get_running_loop().set_task_factory(fails)


@pytest.mark.parametrize(
    ("spoils", "waits"),
    [(spoils_generators, False), (spoils_generators, True), (spoils_factory, False)],
)
async def test_what_a_call_changes_for_its_whole_thread_is_put_back(
    spoils: Callable[[], None], waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    hooks, done, going_on = sys.get_asyncgen_hooks(), list[str](), anyio.Event()

    class Changing(Agent):
        async def on_task(self, task: Task) -> None:
            if task.inputs["kind"] != GOOD:
                spoils()
                done.append("spoilt")
                if waits:
                    await going_on.wait()

    class Beside(Agent):
        async def on_task(self, task: Task) -> None:
            done.append(task.pool_id)

    with anyio.fail_after(60):
        async with Node() as node:
            await node.spawn(Changing, pool="p")
            await node.spawn(Beside, pool="q")
            await node.tasks.submit(Task(pool_id="p", inputs={"kind": "changes"}, max_attempts=1))
            await wait_until(lambda: done == ["spoilt"], timeout=20, what="the call is over, or waits")
            await wait_until(lambda: sys.get_asyncgen_hooks() == hooks, timeout=20, what="they are put back")
            await node.tasks.submit(Task(pool_id="q"))
            await wait_until(lambda: "q" in done, timeout=20, what="another agent works")
            going_on.set()
            assert (await result(node, GOOD)).state == "COMPLETED"


ASKED: set[str] = set()
"""The handlers that were looked up in vain."""


class Hidden:
    """A handler that is there when its class is checked, and that no instance has."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, agent: Agent | None, _: type) -> Any:
        if agent is None:
            return self
        ASKED.add(self._name)
        raise SystemExit(f"asked for {self._name}")


async def test_a_handler_that_cannot_be_looked_up_is_one_that_fails() -> None:
    """A property or descriptor is user code, too, and runs where a handler is looked up."""

    class Hiding(Agent):
        tick_sec = 0.02
        on_stop = Hidden("on_stop")
        on_message = Hidden("on_message")
        on_tick = Hidden("on_tick")

        async def on_task(self, task: Task) -> str:
            return GOOD

    ASKED.clear()
    with anyio.fail_after(30):
        async with Node() as node:
            (hiding,) = await node.spawn(Hiding, pool="p")
            with pytest.raises(HandlerFailed, match="asked for on_message"):
                await node.ask(hiding.id, {})
            await wait_until(lambda: "on_tick" in ASKED, timeout=20, what="a tick looks for its handler")
            assert (await result(node, GOOD)).result == GOOD
            assert not [one for one in node.health().reasons if one.code == "loop_failed"]
    assert "on_stop" in ASKED


@pytest.mark.parametrize("nonsense", ["soon", None, -1, 10**400], ids=["text", "none", "negative", "huge"])
async def test_an_agent_that_spoils_its_own_interval_goes_on_ticking_as_before(nonsense: Any) -> None:
    ticks: list[float] = []

    class Spoiling(Agent):
        tick_sec = 0.05

        async def on_tick(self) -> None:
            ticks.append(anyio.current_time())
            vars(self)["tick_sec"] = nonsense

    with anyio.fail_after(30):
        async with Node() as node:
            await node.spawn(Spoiling)
            await wait_until(lambda: len(ticks) >= 4, timeout=20, what="it ticks on")
            assert node.health().is_ready
    assert ticks[3] - ticks[0] >= 3 * 0.9 * 0.05 - 0.01, "it ticked without a pause"
