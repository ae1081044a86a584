"""What user code raises and returns: asked for nothing outside a guard, since any question may raise too."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from itertools import islice
from math import inf
from typing import Any, NoReturn, cast

import anyio

from converge.codec import stored_text
from converge.errors import UserCodeExited

TEXT_CHARS = 10_000
"""The longest text that is kept of one error: longer than any message that people read, shorter than a record."""

CHILD_CODE = 1
"""The exit code of a forked child that comes out of user code, unless it does so by `sys.exit`."""

UNSHOWABLE = "(its text cannot be shown)"


class Raised:
    """How a call of user code ended that did not return: what it raised, and a text that is safe to store and send."""

    __slots__ = ("error", "text")

    def __init__(self, error: BaseException, text: str = "") -> None:
        self.error = error
        self.text = text or describe(error)

    def is_a(self, *kinds: type[BaseException]) -> bool:
        """Return whether the error is of one of these classes."""
        return is_a(self.error, *kinds)


class _Forks:
    """Counts in each process how many forks lie between it and the one that imported this module."""

    def __init__(self) -> None:
        self.count = 0
        self.loops: list[tuple[int, Any]] = []
        """Threads, and the event loop that runs in each, to which no child may come back; None: it is trio's."""
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.count += 1
        for thread, loop in self.loops:
            if thread == threading.get_ident():
                _leave_before_next_step(loop)
        self.loops.clear()


FORKS = _Forks()


@contextmanager
def children_end_here() -> Iterator[None]:
    """End each child that is forked in the block and comes back to this thread's event loop, by an await in user code
    or by its end: all that runs in the loop is its parent's.
    """
    asyncio = sys.modules.get("asyncio")
    home = threading.get_ident(), asyncio._get_running_loop() if asyncio is not None else None
    FORKS.loops.append(home)
    try:
        yield
    finally:
        if home in FORKS.loops:
            FORKS.loops.remove(home)


def _leave_before_next_step(loop: Any) -> None:
    """End this process, a child, before the event loop does anything else; on uvloop what was ready goes first."""
    if loop is None:
        sys.modules["trio"].lowlevel.add_instrument(_LEAVES)
    else:
        loop.call_soon(leave_child, None)
        ready = getattr(loop, "_ready", None)
        if type(ready) is deque:
            ready.rotate(1)
        else:
            guarded(_leave_wake_ups)


def _leave_wake_ups() -> None:
    """Take no wake-up of the parent's: what its threads wake an event loop by stands in the loop's epoll, and uvloop
    looks there before it does the child's next step. One that is read in the child never reaches the parent, nor does
    any after it. Others are put in their place, in which nothing ever stands.
    """
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor that lists them is closed again
            if os.readlink(f"/proc/self/fd/{number}") != "anon_inode:[eventpoll]":
                continue
            with open(f"/proc/self/fdinfo/{number}", encoding="ascii") as info:
                watched = [int(line.split()[1]) for line in info if line.startswith("tfd:")]
            for one in watched:
                if os.readlink(f"/proc/self/fd/{one}") == "anon_inode:[eventfd]":
                    os.dup2(other := os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), one, inheritable=False)
                    os.close(other)


class _Leaves:
    """An instrument of trio's, in a child."""

    def before_task_step(self, _: object) -> None:
        leave_child(None)

    def before_io_wait(self, _: float) -> None:
        leave_child(None)


_LEAVES = _Leaves()


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Return whether the error is of one of these classes, by its true class, and asking no metaclass."""
    return any(type.__subclasscheck__(kind, type(error)) for kind in kinds)


def as_exception(raised: Raised) -> Exception:
    """Return what may be raised to a caller: the error itself or, for what is no `Exception`, UserCodeExited."""
    error = raised.error
    if is_a(error, Exception) and not is_cancellation(error):
        return cast(Exception, error)
    return UserCodeExited(raised.text)


def name_of(kind: type[Any]) -> str:
    """Return the name of a class, also where its metaclass hides it."""
    return clean(type.__dict__["__name__"].__get__(kind))


def text_of(value: object) -> str:
    """Return `str(value)` as text that can be encoded, at most `TEXT_CHARS` long; never raise."""
    try:
        return clean(str(value))
    except BaseException as error:
        if passes(error):
            raise
        return UNSHOWABLE


def describe(error: BaseException) -> str:
    """Return the error's class and text, such as `ValueError: no such page`; of a group also its first ones."""
    text = f"{name_of(type(error))}: {text_of(error)}"
    if not is_a(error, BaseExceptionGroup):
        return text
    some = list(islice(leaves(error), GROUP_SHOWN))
    return clean(f"{text}: {'; '.join(f'{name_of(type(one))}: {text_of(one)}' for one in some)}")


def clean(text: str) -> str:
    """Return plain text, cut to `TEXT_CHARS`, as every store takes it."""
    return stored_text(str.__getitem__(text, slice(0, TEXT_CHARS)))  # of a subclass of str without its methods


GROUP_SHOWN = 3
"""Errors of a group that its text names."""

STACKS = 1_000
"""Errors, with those of groups and those that came before, of which the stacks are logged; of more there are none."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of a group, however deep, or the error itself. A group that stands in others twice counts once:
    sixty groups, each of the one before twice, would never come to an end.
    """
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop()
        if is_a(one, BaseExceptionGroup):
            if id(one) not in seen:
                seen.add(id(one))
                todo += BaseExceptionGroup.exceptions.__get__(one)  # past what a subclass makes of it
        else:
            yield one


def _has_stack(error: BaseException | None) -> bool:
    """Return whether Python comes to an end with the stack of an error: of a group it goes through each error as often
    as that stands in it, and it asks each for its cause, which user code may answer with another one without end.
    """
    todo, seen, count = [error] if error is not None else [], set[int](), 0
    while todo and count <= STACKS:
        one, count = todo.pop(), count + 1
        seen.add(id(one))
        if isinstance(one, BaseExceptionGroup):
            todo += islice(one.exceptions, STACKS)
        todo += [before for before in (one.__cause__, one.__context__) if before is not None and id(before) not in seen]
    return not todo


class _CtrlC:
    """How this process hears of Ctrl-C."""

    def __init__(self) -> None:
        self.is_raised = True
        """Whether as a KeyboardInterrupt; else that is an error like any other."""


CTRL_C = _CtrlC()


def passes(error: BaseException) -> bool:
    """Return whether no boundary may hold the error: Ctrl-C, which only the main thread gets."""
    if not CTRL_C.is_raised or threading.current_thread() is not threading.main_thread():
        return False
    return any(is_a(one, KeyboardInterrupt) for one in leaves(error))


def is_cancellation(error: BaseException) -> bool:
    """Return whether the error is a cancellation, of whoever's, or a group with one in it."""
    return any(is_a(one, anyio.get_cancelled_exc_class()) for one in leaves(error))


def is_cancelled() -> bool:
    """Return whether the calling task, in which no user code runs, is being cancelled by its owner."""
    if anyio.current_effective_deadline() == -inf:
        return True
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return False
    task = asyncio.current_task()  # a loop that ends cancels all of its tasks, without a scope
    return task is not None and task.cancelling() > 0


def guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call plain user code in this thread; return what it returned, or how it failed as `Raised`."""
    try:
        return function(*arguments)
    except BaseException as error:
        if passes(error):
            raise
        return Raised(error)


def hooks_of_threads() -> tuple[Any, Any]:
    """Return the tracer and the profiler that new threads begin with."""
    return threading.gettrace(), threading.getprofile()


def put_back_hooks_of_threads(hooks: tuple[Any, Any]) -> None:
    """Let new threads begin with these."""
    tracer, profiler = hooks
    if threading.gettrace() is not tracer:
        threading.settrace(tracer)
    if threading.getprofile() is not profiler:
        threading.setprofile(profiler)


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call plain user code in a thread of its own; return what it returned, or `Raised`. A forked child ends there.

    A tracer or profiler that it sets, here or for new threads, is put back: where it raised in the library that owns
    the thread, the thread would end, and what it is given next would never be called.
    """
    forks, tracer, profiler, hooks = FORKS.count, sys.gettrace(), sys.getprofile(), hooks_of_threads()
    result = guarded(function, *arguments)
    put_back_hooks_of_threads(hooks)
    if sys.gettrace() is not tracer:
        sys.settrace(tracer)
    if sys.getprofile() is not profiler:
        sys.setprofile(profiler)
    if FORKS.count != forks:
        leave_child(result)
    return result


def boxed_in_thread(function: Callable[..., Any], *arguments: Any) -> tuple[Any]:
    """Do as `in_thread`, with the result in a tuple: trio takes no coroutine from a thread, and some await it."""
    return (in_thread(function, *arguments),)


def called(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call plain user code in this thread, within other user code; return or raise as it does. A forked child ends."""
    result = in_thread(function, *arguments)
    if type(result) is Raised:
        raise result.error
    return result


async def awaited(function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """Await user code in the middle of other user code; return or raise as it does. A child that it forks ends there:
    what follows is ours, and waits for what the child does not have.
    """
    forks = FORKS.count
    try:
        result = await function(*arguments)
    except BaseException as error:
        if FORKS.count != forks:
            leave_child(Raised(error))
        raise
    if FORKS.count != forks:
        leave_child(result)
    return result


def detached(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call plain user code in the middle of a task of ours; return what it returned, or `Raised`.

    It is called in a copy of the context and as if no task ran: there is none that it could cancel, or open a scope in.
    """
    with _without_task():
        return in_thread(copy_context().run, function, *arguments)


@contextmanager
def _without_task() -> Iterator[None]:
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    if loop is not None and asyncio is not None and (task := asyncio.current_task(loop)) is not None:
        asyncio.tasks._leave_task(loop, task)
        try:
            yield
        finally:
            asyncio.tasks._enter_task(loop, task)
    elif (
        trio is not None and (task := getattr(running := trio._core._run.GLOBAL_RUN_CONTEXT, "task", None)) is not None
    ):
        del running.task
        try:
            yield
        finally:
            running.task = task
    else:
        yield


def leave_child(result: object) -> NoReturn:
    """End a forked child that came out of the call that forked: all that it would go on to use is its parent's."""
    code: object = CHILD_CODE
    if type(result) is Raised and is_a(result.error, SystemExit):
        code = guarded(lambda: int(result.error.code or 0))  # type: ignore[attr-defined]
    code = code if type(code) is int else CHILD_CODE
    os.write(2, f"converge: process {os.getpid()}, forked in a handler, came out of it; it ends with {code}\n".encode())
    os._exit(code)


def tell(
    log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    level: int,
    text: str,
    *values: object,
    error: BaseException | None = None,
) -> None:
    """Log a line about user code, with the stack of `error`; what a filter or handler of the log raises is dropped."""
    has_stack = guarded(_has_stack, error) is True
    guarded(lambda: log.log(level, text, *values, exc_info=error if has_stack else None))


class _GuardedLogger(logging.Logger):
    """Raises nothing into the code of ours that logs, whatever filters, handlers and the factory of records do."""

    def makeRecord(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        """See the base class; a factory that fails counts as the usual one."""
        record = guarded(partial(super().makeRecord, *args, **kwargs))
        if type.__subclasscheck__(logging.LogRecord, type(record)):
            return cast(logging.LogRecord, record)
        name, level, path, line, text, values, error, *_ = args
        return logging.LogRecord(name, level, path, line, text, values, error)

    def handle(self, record: logging.LogRecord) -> None:
        """See the base class; what a filter or handler raises is dropped, with the line."""
        guarded(super().handle, record)


LOGS = (
    "census channel claims directory feed fetch health keys lanes lease link listing mailbox network node plugins "
    "pools post reaper registry results retention run sightings slots static store supervision sweep tls torn"
)
"""What follows `converge.` in the names of the kernel's logs: also of modules that are imported while a node runs."""


def guard_logs() -> None:
    """Let no filter, handler or factory of records that user code has set end a loop of ours that logs a line."""
    for name in LOGS.split():
        logging.getLogger(f"converge.{name}")
    for name, logger in tuple(logging.Logger.manager.loggerDict.items()):
        if name.startswith("converge") and type(logger) is logging.Logger:
            logger.__class__ = _GuardedLogger
