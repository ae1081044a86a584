"""The boundary around user code: of each call it says that it returned, raised, or was cancelled by us.

User code runs in the only child task of a keeper, which has a task group of its own; no task of the node's groups runs
any. A task or a scope for each call would cost more than most calls, so a worker compares instead: a call that has left
a cancel scope open, a cancellation pending or a context variable changed has spoiled its task, which ends, and the
keeper starts another one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import copy_context
from functools import partial
from inspect import CO_COROUTINE, iscoroutinefunction
from math import inf
from types import CodeType, FunctionType, MethodType
from typing import Any, NoReturn, cast

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from converge.errors import UserCodeExited
from converge.foreign import (
    FORKS,
    Raised,
    boxed_in_thread,
    guarded,
    is_a,
    is_cancellation,
    leave_child,
    name_of,
    passes,
)
from converge.runtime.agents.background import Background, Shared
from converge.runtime.agents.hosted import Hosted
from converge.services.messages.waits import Waiter, waiters

CANCELLED = object()
"""What is said of a call that we have cancelled."""

FROM_WITHIN = "the handler was cancelled from within"

Handler = Callable[..., Awaitable[Any]]


def handler_of(agent: Hosted, name: str) -> Callable[..., Any]:
    """Return the agent's handler, as a function: no other object of the agent's is asked anything from here on.

    One that cannot be looked up is a handler that fails, where it is called.
    """
    found = agent.asked(name)
    if type(found) is FunctionType or (type(found) is MethodType and type(found.__func__) is FunctionType):
        return cast(Callable[..., Any], found)
    is_async = found if type(found) is Raised else guarded(iscoroutinefunction, found)

    async def fails(*_: Any) -> NoReturn:
        raise is_async.error

    async def awaited(*arguments: Any) -> Any:
        return await found(*arguments)

    def called(*arguments: Any) -> Any:
        return found(*arguments)

    return fails if type(is_async) is Raised else awaited if is_async else called


class Worker:
    """The task in which user code runs, one call after another, until `is_spoiled`: it then ends without an await.

    This one ends after each call. It is used where the event loop's parts that the other classes read are not what they
    were in the versions that are known.
    """

    is_fast = False

    def __init__(self) -> None:
        self.is_spoiled = False
        self.scope = anyio.CancelScope()
        """The keeper's. Whoever cancels a call cancels it, and keeps a record of why."""
        self._forks = FORKS.count
        self._limiter = CapacityLimiter(1)  # of its own: a thread that never returns keeps the token for itself

    def begin(self, scope: anyio.CancelScope) -> None:
        """Work in the calling task, the only child in the keeper's `scope`."""
        self.scope = scope

    def awaitable(self, handler: Callable[..., Any]) -> Handler:
        """Return what runs the handler: itself, or for a plain function a worker thread."""
        code = getattr(handler, "__code__", None)  # the usual case: to ask `inspect` costs more than many a handler
        if (type(code) is CodeType and code.co_flags & CO_COROUTINE) or iscoroutinefunction(handler):
            return handler

        async def awaited(*arguments: Any) -> Any:
            (result,) = await to_thread.run_sync(
                boxed_in_thread, handler, *arguments, abandon_on_cancel=True, limiter=self._limiter
            )
            return result

        return awaited

    async def call(self, handler: Handler, argument: Any, then: Callable[[Any], Any] | None = None) -> Any:
        """Return what the handler returned, passed through `then` if it is not None; or `Raised`; or CANCELLED."""
        try:
            result = await handler(argument)
            if result is not None and then is not None and type(result) is not Raised:
                result = then(result)
        except BaseException as error:
            result = self._ended(error)
        self._spoiled(result)
        return result

    def _ended(self, error: BaseException) -> Any:
        """Return how a call ended that raised."""
        if FORKS.count != self._forks:
            leave_child(Raised(error))
        if passes(error):
            raise error
        self.is_spoiled = is_a(error, GeneratorExit)  # it may be the loop that ends: not another await
        if not is_cancellation(error):
            return Raised(error)
        if self.is_cancelled:
            self.is_spoiled = True
            return CANCELLED
        return Raised(error, f"{name_of(type(error))}: {FROM_WITHIN}")

    def _spoiled(self, result: Any) -> None:
        """Let no other call run in this task; end a forked child here."""
        self.is_spoiled = True
        if FORKS.count != self._forks:
            leave_child(result)

    @property
    def is_cancelled(self) -> bool:
        """Whether we have cancelled what runs here: in the keeper's scope, or in one around it.

        Where it is not fast, that may also be a scope that user code has left open: the keeper is then not cancelled.
        """
        return self.scope.cancel_called or (self._is_intact and anyio.current_effective_deadline() == -inf)

    @property
    def _is_intact(self) -> bool:
        """Whether the task is in the scopes that it began in."""
        return True


class AsyncioWorker(Worker):
    """Reads what anyio keeps of the task: its innermost scope."""

    is_fast = True

    def __init__(self) -> None:
        super().__init__()
        self._cancelling: Any = None
        self._state: Any = None
        self._innermost: Any = None

    def begin(self, scope: anyio.CancelScope) -> None:
        """See `Worker.begin`."""
        from asyncio import current_task

        from anyio._backends._asyncio import _task_states

        super().begin(scope)
        task: Any = current_task()
        states: Any = _task_states
        self._cancelling = task.cancelling
        self._state = states[task]
        self._innermost = self._state.cancel_scope

    async def call(self, handler: Handler, argument: Any, then: Callable[[Any], Any] | None = None) -> Any:
        """See `Worker.call`."""
        before = copy_context()
        try:
            result = await handler(argument)
            if result is not None and then is not None and type(result) is not Raised:
                result = then(result)
        except BaseException as error:
            result = self._ended(error)
        try:
            if (
                self._state.cancel_scope is self._innermost
                and not self._cancelling()
                and FORKS.count == self._forks
                and copy_context() == before
            ):
                return result
        except BaseException as error:  # variables are compared by what their values say
            if passes(error):
                raise
        self._spoiled(result)
        return result

    @property
    def _is_intact(self) -> bool:
        return self._state.cancel_scope is self._innermost


class TrioWorker(Worker):
    """Reads what trio keeps of the task: its innermost scope, and the nurseries that are open in it."""

    is_fast = True

    def __init__(self) -> None:
        super().__init__()
        self._task: Any = None
        self._innermost: Any = None
        self._nurseries: Any = None

    def begin(self, scope: anyio.CancelScope) -> None:
        """See `Worker.begin`."""
        from trio.lowlevel import current_task

        super().begin(scope)
        self._task = current_task()
        self._innermost = self._task._cancel_status
        self._nurseries = self._task._child_nurseries

    async def call(self, handler: Handler, argument: Any, then: Callable[[Any], Any] | None = None) -> Any:
        """See `Worker.call`."""
        before = copy_context()
        try:
            result = await handler(argument)
            if result is not None and then is not None and type(result) is not Raised:
                result = then(result)
        except BaseException as error:
            result = self._ended(error)
        try:
            if self._is_intact and FORKS.count == self._forks and copy_context() == before:
                return result
        except BaseException as error:  # variables are compared by what their values say
            if passes(error):
                raise
        self._spoiled(result)
        return result

    @property
    def _is_intact(self) -> bool:
        return self._task._cancel_status is self._innermost and not self._nurseries


async def keep(worker: Worker, work: Callable[[Worker], Awaitable[None]], shared: Shared) -> BaseException | None:
    """Run `work` in the only child of a task group of its own, with this worker; return what it raised, if anything.

    What user code has left in the group is cancelled, and what comes out of that is dropped.
    """
    error: BaseException | None = None

    async def run(scope: anyio.CancelScope) -> None:
        nonlocal error
        worker.begin(scope)
        try:
            try:
                await work(worker)
            finally:
                shared.put_back()
        except BaseException as raised:
            if passes(raised):
                shared.is_interrupted = True
                raise
            if not is_a(raised, anyio.get_cancelled_exc_class(), GeneratorExit):
                error = raised

    try:
        async with anyio.create_task_group() as group:
            try:
                shared.start(group, run, group.cancel_scope)
            except BaseException as failed:
                if passes(failed):
                    raise
                error = failed
    except (anyio.get_cancelled_exc_class(), GeneratorExit):
        raise  # the keeper's own
    except BaseException as left:  # of a scope or task group that user code has left open
        if passes(left):
            raise
    shared.put_back()  # of what user code has left in the group
    await checkpoint_if_cancelled()
    return error


Job = Callable[[Worker], Awaitable[bool]]
"""Calls user code with the worker; returns whether it is to be run again, in another one if this one is spoiled."""

IDLE_MOST = 64
"""Workers that wait for a job; further ones end with theirs, so that ten thousand quiet agents cost no task."""


class _Member:
    """A worker's place in the crew: the job that it has, and what wakes it."""

    __slots__ = ("job", "sleeper")

    def __init__(self, job: Job) -> None:
        self.job: Job | None = job
        self.sleeper: Waiter | None = None


class Boundary:
    """Where the user code of one node runs: a crew of workers for all handlers but `on_task`, which has its slots.

    `kind` is the class of its workers; `background` starts their keepers.
    """

    def __init__(self, kind: type[Worker], background: Background) -> None:
        self.kind, self.background = kind, background
        self._idle: list[_Member] = []
        self._new_waiter = waiters()

    def start(self, job: Job) -> None:
        """Start a job in a worker that has none, or in another one."""
        if self._idle:
            member = self._idle.pop()
            member.job = job
            if member.sleeper is not None and not member.sleeper.done():
                member.sleeper.set_result(None)
        else:
            self.background.loop(self._keep, _Member(job))

    async def keep(self, work: Callable[[Worker], Awaitable[None]]) -> BaseException | None:
        """Run `work` with another worker. See the function."""
        return await keep(self.kind(), work, self.background.shared)

    async def _keep(self, member: _Member) -> None:
        while member.job is not None:
            if (error := await self.keep(partial(self._work, member))) is not None:
                raise error  # our own: the job is run again after a pause

    async def _work(self, member: _Member, worker: Worker) -> None:
        while member.job is not None and not worker.is_spoiled:
            if await member.job(worker):
                continue
            self.background.shared.put_back()
            member.job = None
            if worker.is_spoiled:
                return
            if len(self._idle) >= IDLE_MOST:
                return
            member.sleeper = self._new_waiter()
            self._idle.append(member)
            try:
                await member.sleeper
            finally:
                if member.job is None:  # user code has cancelled the task later on
                    self._idle.remove(member)

    async def call(
        self, handler: Callable[..., Any], *arguments: Any, before: Callable[[], None] = lambda: None
    ) -> Any:
        """Call a handler once, in a task of its own, in which `before` is called first; return as `Worker.call`.

        A caller that is cancelled cancels the handler.
        """

        def once(_: None) -> Any:
            return handler(*arguments)

        async def awaited(_: None) -> Any:
            return await handler(*arguments)

        return (await self.each(awaited if iscoroutinefunction(handler) else once, [None], before))[0]

    async def each(
        self, handler: Callable[[Any], Any], arguments: Iterable[Any], before: Callable[[], None]
    ) -> list[Any]:
        """Call a handler with one argument after the other; return as `call`, of each."""
        waiting, results = deque(arguments), list[Any]()

        async def work(worker: Worker) -> None:
            before()
            run = worker.awaitable(handler)
            while waiting and not worker.is_spoiled:
                results.append(await worker.call(run, waiting.popleft()))

        while waiting:
            if (error := await self.keep(work)) is not None:
                raise error
        # Not by us: then the caller would have been cancelled, too.
        return [Raised(UserCodeExited(FROM_WITHIN)) if one is CANCELLED else one for one in results]


async def worker_kind() -> type[Worker]:
    """Return the fastest class of workers that passes its test on the running event loop."""
    kind = TrioWorker if anyio.get_cancelled_exc_class().__module__.startswith("trio") else AsyncioWorker
    return kind if await _stands_test(kind) else Worker


async def _stands_test(kind: type[Worker]) -> bool:
    """Return whether the worker sees what calls leave behind, and nothing where they leave nothing."""

    async def leaves_nothing(_: object) -> None:
        async with anyio.create_task_group():
            with anyio.CancelScope() as scope:
                scope.cancel()
                await checkpoint_if_cancelled()

    async def leaves_scope(_: object) -> None:
        anyio.CancelScope().__enter__()

    async def leaves_group(_: object) -> None:
        await anyio.create_task_group().__aenter__()

    async def is_spoiled_by(handler: Handler) -> bool:
        worker = kind()

        async def work(worker: Worker) -> None:
            await worker.call(handler, None)
            seen.append(worker.is_spoiled)

        seen: list[bool] = []
        if (error := await keep(worker, work, Shared())) is not None:
            raise error
        return seen[0]

    try:
        return not await is_spoiled_by(leaves_nothing) and all(
            [await is_spoiled_by(handler) for handler in (leaves_scope, leaves_group)]
        )
    except (AttributeError, ImportError, KeyError, IndexError):
        return False
