"""What user code does that is not its call's alone but the whole process's: hooks of all threads, Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import anyio
import pytest

from converge import Agent, Node, Task


@pytest.fixture(scope="module", params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loops."""
    if request.param == "trio":
        return "trio", {}
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
def hooks() -> Iterator[tuple[Any, Any]]:
    """The tracer and the profiler of new threads, which are put back in any case."""
    before = threading.gettrace(), threading.getprofile()
    yield before
    threading.settrace(before[0])
    threading.setprofile(before[1])


def fails(*_: Any) -> NoReturn:
    """Raise in whatever thread is started."""
    raise ValueError("in a tracer")


@pytest.mark.parametrize("hook", ["settrace", "setprofile"])
@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "async"])
async def test_a_tracer_of_all_new_threads_ends_with_the_call(
    hook: str, is_plain: bool, hooks: tuple[Any, Any]
) -> None:
    together = threading.Barrier(8)

    class Tracing(Agent):
        async def on_task(self, task: Task) -> None:
            getattr(threading, hook)(fails)

    class Plain(Agent):
        def on_task(self, task: Task) -> None:
            getattr(threading, hook)(fails)

    class Meeting(Agent):
        concurrency = together.parties

        def on_task(self, task: Task) -> None:
            together.wait(30)

    with anyio.fail_after(60):
        async with Node() as node:
            await node.spawn(Plain if is_plain else Tracing, pool="p")
            await node.tasks.result(await node.tasks.submit(Task(pool_id="p", max_attempts=1)), timeout=20)
            await node.spawn(Meeting, pool="q")
            for id_ in await node.tasks.submit_many([Task(pool_id="q", max_attempts=1)] * together.parties):
                assert (await node.tasks.result(id_, timeout=20)).state == "COMPLETED"
            assert (threading.gettrace(), threading.getprofile()) == hooks


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("handler", ["on_task", "on_message", "on_tick"])
def test_ctrl_c_amid_a_handler_waits_for_no_grace_time(handler: str, backend: str) -> None:
    """Nothing will end that call any more: a program that runs the node in an event loop of its own ends at once."""

    async def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    cls: Any = type("Interrupted", (Agent,), {handler: interrupted, "tick_sec": 0.01 if handler == "on_tick" else None})

    async def main() -> None:
        async with Node(grace_sec=600) as node:
            (agent,) = await node.spawn(cls, pool="p")
            if handler == "on_task":
                await node.tasks.submit(Task(pool_id="p"))
            elif handler == "on_message":
                await node.send(agent.id, "x")
            await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        anyio.run(main, backend=backend)
