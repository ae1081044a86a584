"""What user code may do wrong: functions that handlers call, plain ones anywhere, async ones where they can await."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, NoReturn

import anyio

VARIABLE: ContextVar[str] = ContextVar("misbehaviour", default="untouched")

KEPT: list[Any] = []
"""What would say something when it is destroyed: kept until the tests have ended."""

RELEASED = threading.Event()
"""Set when the tests have ended: lets abandoned threads end."""

Plain = Callable[[], Any]
Async = Callable[[], Awaitable[Any]]


class Unshowable(Exception):
    """Cannot be shown."""

    def __str__(self) -> NoReturn:
        raise RuntimeError("no text")

    __repr__ = __str__


class Liar(Exception):
    """Says nothing of its class."""

    @property  # type: ignore[misc]  # that is what is wrong with it
    def __class__(self) -> Any:
        raise SystemExit("asked for its class")


class Bare(BaseException):
    """No `Exception`."""


class EvilText(str):
    """A text whose methods raise."""

    __slots__ = ()

    def encode(self, *_: Any) -> NoReturn:
        """See the class."""
        raise SystemExit("encoded")

    __format__ = __len__ = __getitem__ = encode


class Evil(Exception):
    """Its text is no plain one."""

    def __str__(self) -> str:
        return EvilText("evil")


class Meta(type):
    """Hides the name of its classes, and compares with nothing."""

    @property
    def __name__(cls) -> NoReturn:  # type: ignore[override]
        raise SystemExit("asked for its name")

    def __eq__(cls, _: object) -> NoReturn:
        raise SystemExit("compared")

    __hash__ = type.__hash__


class Nameless(Exception, metaclass=Meta):
    """Its class has no name."""


class Incomparable:
    """Raises when compared."""

    def __eq__(self, _: object) -> NoReturn:
        raise SystemExit("compared")

    __hash__ = None  # type: ignore[assignment]


def raises(error: BaseException | type[BaseException]) -> Plain:
    """Return what raises the error."""

    def misbehave() -> NoReturn:
        raise error

    return misbehave


def in_a_circle() -> NoReturn:
    """Raise an error that is its own cause."""
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    raise one


def doubling() -> BaseException:
    """Return a group of two groups, each of two groups, and so on: nobody can count its errors."""
    error: BaseException = ValueError("one")
    for _ in range(60):
        error = BaseExceptionGroup("twice", [error, error])
    return error


class Endless(Exception):
    """Has a cause, which has a cause, and so on."""

    @property
    def __cause__(self) -> Exception:  # type: ignore[override]  # that is what is wrong with it
        KEPT.append(cause := Endless())
        return cause


def unpicklable() -> NoReturn:
    """Raise an error that cannot be pickled."""
    error = ValueError(lambda: None)
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    raise error


def recurses() -> Any:
    """Call itself without end."""
    return recurses()


def sets_variables() -> str:
    """Leave context variables set."""
    VARIABLE.set("tenant-1 (secret)")
    KEPT.append(variable := ContextVar[Any](f"variable-{len(KEPT)}"))
    variable.set(Incomparable())
    return "set"


def leaves_thread() -> str:
    """Leave a thread running."""
    threading.Thread(target=RELEASED.wait, daemon=True).start()
    return "left"


def forks() -> str:
    """Fork; the child returns."""
    return _ended_with_1(child) if (child := os.fork()) else "forked"


def forks_and_exits() -> None:
    """Fork; the child leaves in the usual way."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        return
    sys.exit(7)


def blocks() -> str:
    """Block whoever runs it."""
    time.sleep(0.02)
    return "blocked"


PLAIN: dict[str, Plain] = {
    "an error that cannot be shown": raises(Unshowable),
    "an error that lies about its class": raises(Liar),
    "an error whose class hides its name": raises(Nameless),
    "an error whose text is evil": raises(Evil),
    "an error that cannot be encoded": raises(ValueError("\udcff\0 \ud800")),
    "an error that cannot be pickled": unpicklable,
    "an error of ten million characters": raises(ValueError("x" * 10_000_000)),
    "errors in a circle": in_a_circle,
    "a BaseException": raises(Bare("bare")),
    "a group": raises(BaseExceptionGroup("group", [ValueError("one"), SystemExit(2), Bare()])),
    "a group in a group": raises(ExceptionGroup("outer", [ExceptionGroup("inner", [Unshowable()])])),
    "a group that doubles": raises(doubling()),
    "causes without end": raises(Endless),
    "SystemExit": raises(SystemExit(Unshowable())),
    "GeneratorExit": raises(GeneratorExit),
    "StopIteration": raises(StopIteration),
    "StopAsyncIteration": raises(StopAsyncIteration),
    "CancelledError of asyncio": raises(asyncio.CancelledError("foreign")),
    "MemoryError": raises(MemoryError),
    "recursion": recurses,
    "context variables": sets_variables,
    "a thread left running": leaves_thread,
    "a fork that returns": forks,
    "a fork that exits": forks_and_exits,
    "blocking": blocks,
    "an object": object,
    "no number": lambda: float("nan"),
    "half a character": lambda: "\ud800",
}


def is_trio() -> bool:
    """Return whether the running event loop is trio's."""
    return anyio.get_cancelled_exc_class().__module__.startswith("trio")


async def cancels_and_returns() -> str:
    """Ask for its own cancellation."""
    if not is_trio():
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
    return "asked"


async def cancels_and_waits() -> None:
    """Cancel itself, and meet that."""
    await cancels_and_returns()
    if is_trio():
        scope = anyio.CancelScope()
        scope.__enter__()
        scope.cancel()
    await anyio.sleep(5)


async def takes_it_back() -> str:
    """Ask for its own cancellation, and for none."""
    await cancels_and_returns()
    if (task := None if is_trio() else asyncio.current_task()) is not None:
        task.uncancel()
        KEPT.append(task)
    return "taken back"


async def awaits_cancelled() -> None:
    """Await what somebody has cancelled."""
    if is_trio():
        raise anyio.get_cancelled_exc_class()._create(source="explicit")  # type: ignore[attr-defined]
    task = asyncio.create_task(asyncio.sleep(5))
    task.cancel()
    await task


async def leaves_scope() -> str:
    """Leave a scope open that is cancelled."""
    scope = anyio.CancelScope()
    scope.__enter__()
    scope.cancel()
    KEPT.append(scope)
    return "left"


async def leaves_timeout() -> str:
    """Leave a scope open that ends soon."""
    KEPT.append(scope := anyio.CancelScope(deadline=anyio.current_time() + 0.005))
    scope.__enter__()
    return "left"


async def leaves_group() -> str:
    """Leave a task group open, with a task in it."""
    KEPT.append(group := anyio.create_task_group())
    await group.__aenter__()
    group.start_soon(anyio.sleep, 3_600)
    return "left"


async def _numbers() -> AsyncIterator[int]:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 3_600)
        for number in range(3):
            yield number


async def breaks_out() -> str:
    """Break out of an async generator that has a task group."""
    KEPT.append(numbers := _numbers())
    async for _ in numbers:
        break
    return "broken out"


async def group_fails() -> None:
    """Let a task of its own fail beside it."""

    async def fail() -> None:
        raise Bare("in a task")

    async with anyio.create_task_group() as group:
        group.start_soon(fail)
        await anyio.sleep(5)


async def closes_group_wrongly() -> None:
    """Leave two scopes in the wrong order."""
    outer, inner = anyio.CancelScope(), anyio.CancelScope()
    outer.__enter__()
    inner.__enter__()
    KEPT.append((outer, inner))
    outer.__exit__(None, None, None)


async def _numbers_of_asyncio() -> AsyncIterator[int]:
    async with asyncio.timeout(3_600), asyncio.TaskGroup() as tasks:
        tasks.create_task(asyncio.sleep(0))
        for number in range(3):
            yield number


async def breaks_out_of_asyncio() -> str:
    """Break out of an async generator that has a task group of asyncio."""
    if not is_trio():
        KEPT.append(numbers := _numbers_of_asyncio())
        async for _ in numbers:
            break
    return "broken out"


async def forks_and_awaits() -> str:
    """Fork; the child comes back to the event loop, which is its parent's, with all that runs there."""
    sleep = _sleep()
    if child := os.fork():
        return _ended_with_1(child)
    for _ in range(100):
        await sleep(0)
    os._exit(9)


def _ended_with_1(child: int) -> str:
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    return "forked"


def _sleep() -> Callable[[float], Awaitable[None]]:
    if not is_trio():
        return asyncio.sleep
    import trio

    return trio.sleep


async def sets_hooks() -> str:
    """Let no async generator of the thread begin or end."""

    def fails(_: object) -> NoReturn:
        raise ValueError("a hook")

    sys.set_asyncgen_hooks(firstiter=fails, finalizer=fails)
    return "set"


ASYNC: dict[str, Async] = {
    "its own cancellation, not awaited": cancels_and_returns,
    "its own cancellation, awaited": cancels_and_waits,
    "a cancellation taken back": takes_it_back,
    "a cancelled task awaited": awaits_cancelled,
    "a scope left open": leaves_scope,
    "a timeout left open": leaves_timeout,
    "a task group left open": leaves_group,
    "an async generator broken out of": breaks_out,
    "an async generator with a group of asyncio": breaks_out_of_asyncio,
    "a fork that awaits": forks_and_awaits,
    "hooks of async generators": sets_hooks,
    "a task that fails in a group": group_fails,
    "scopes left in the wrong order": closes_group_wrongly,
}


async def behaves() -> str:
    """Do what user code does every day: raise if anything is left of what ran here before."""
    assert VARIABLE.get() == "untouched", VARIABLE.get()
    with anyio.move_on_after(0.001) as scope:
        await anyio.sleep(5)
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
    if not is_trio():
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(0))
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
    VARIABLE.set("own")
    return "good"
