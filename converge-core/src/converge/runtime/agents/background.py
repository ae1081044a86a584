"""The boundary around a node's own tasks: each of them is started here, and restarted after an unexpected error.

One that would come again each time ends the node instead: a plugin's backend that does not keep to its contract.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import copy_context
from copy import copy
from math import inf
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint_if_cancelled

from converge.env import Env
from converge.foreign import (
    describe,
    hooks_of_threads,
    is_cancellation,
    is_cancelled,
    passes,
    put_back_hooks_of_threads,
    tell,
)
from converge.plugins.blame import BrokenContract
from converge.runtime.agents.ailments import Ailment, Code

log = logging.getLogger("converge.node")

BACKOFF_LEAST_SEC, BACKOFF_GREATEST_SEC = 0.05, 5.0
"""Pauses before a loop runs again: twice as long each time."""

WELL_SEC = 10.0
"""How long nothing must fail before a loop counts as well again."""

Run = Callable[..., Coroutine[Any, Any, None]]


class Shared:
    """What user code shares with its node and may change under it: settings of the calling thread and its event loop.

    The rule: what nobody has a reason to change while the loop runs is put back before other tasks get their turn, at
    each look of the watchdog (a handler may await meanwhile), and whenever a task of the node has failed. What some
    libraries do change, the factory of tasks, is put back once no task can be started with it. Nothing is looked at for
    each call.
    """

    def __init__(self) -> None:
        asyncio = sys.modules.get("asyncio")
        self._loop: Any = asyncio._get_running_loop() if asyncio is not None else None
        self._factory = None if self._loop is None else self._loop.get_task_factory()
        self._hooks, self._thread_hooks = sys.get_asyncgen_hooks(), hooks_of_threads()
        self.is_interrupted = False
        """Whether Ctrl-C has come amid a call of user code: nothing tells any more how that call ended."""

    def put_back(self) -> None:
        """Let async generators, which the libraries under the node are full of, begin and end as they did, and new
        threads begin.
        """
        put_back_hooks_of_threads(self._thread_hooks)
        first, last = sys.get_asyncgen_hooks()
        if first is not self._hooks.firstiter or last is not self._hooks.finalizer:
            sys.set_asyncgen_hooks(*self._hooks)

    def start(self, group: TaskGroup, run: Run, *arguments: Any) -> None:
        """Start a task, with another factory of tasks if it cannot be started with the one that user code has set."""
        try:
            _create(group, run, arguments)
        except BaseException as error:
            self.put_back()
            if passes(error) or self._loop is None or self._loop.get_task_factory() is self._factory:
                raise
            self._loop.set_task_factory(self._factory)
            _create(group, run, arguments)


def _create(group: TaskGroup, run: Run, arguments: Iterable[Any]) -> None:
    """Create a task. What a group that ends does not take is closed: on trio, `start_soon` would leave it behind."""
    coroutine = run(*arguments)
    try:
        group.create_task(coroutine)
    except BaseException:
        coroutine.close()
        raise


class Background:
    """Starts the tasks of one node: `loop` what is to run as long as the node does, `errand` what ends by itself.

    Each begins with the context in which this object was made: whoever starts it may be in the middle of user code,
    whose context variables are nobody else's.
    """

    def __init__(self, group: TaskGroup, env: Env) -> None:
        self._group, self._env = group, env
        self._context, self.shared = copy_context(), Shared()
        self._is_ending = False
        self.failures: Counter[str] = Counter()
        """How often each has failed in a way that nothing expected, by the name of its function."""
        self._ailing: dict[str, tuple[Ailment, float]] = {}  # until when, if it does not fail again

    @asynccontextmanager
    async def ending_early(self) -> AsyncIterator[Background]:
        """Yield what starts tasks that end with the block, and counts what fails together with this one. What is
        started when they have ended is not begun. An error passes unchanged, after them.
        """
        other, failure = copy(self), None
        async with anyio.create_task_group() as other._group:
            try:
                yield other
            except Exception as error:
                failure = error
            other._is_ending = True
            other._group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def loop(self, run: Run, *arguments: Any) -> None:
        """Start a loop. When it raises, that is logged and counted, and it runs again after a pause; until it ends."""
        self._start(self.again, (run, *arguments))

    def errand(self, run: Run, *arguments: Any) -> None:
        """Start a task that ends by itself. When it raises, that is logged, counted and shown by health."""
        self._start(self._once, (run, *arguments))

    def _start(self, how: Run, arguments: tuple[Any, ...]) -> None:
        try:
            self._context.copy().run(self.shared.start, self._group, how, *arguments)
        except RuntimeError:  # the group is not active
            if not self._is_ending:
                raise

    async def again(self, run: Run, *arguments: Any) -> None:
        """Run a loop in the calling task, as `loop` does in one of its own."""
        pause_sec = BACKOFF_LEAST_SEC
        began = self._env.monotonic()
        while not await self._is_over(run, arguments, pause_sec):
            await anyio.sleep(pause_sec)
            if (now := self._env.monotonic()) - began > WELL_SEC:
                pause_sec = BACKOFF_LEAST_SEC
            pause_sec, began = min(pause_sec * 2, BACKOFF_GREATEST_SEC), now

    async def _once(self, run: Run, *arguments: Any) -> None:
        await self._is_over(run, arguments, 0.0)

    async def _is_over(self, run: Run, arguments: tuple[Any, ...], pause_sec: float) -> bool:
        """Run it; return whether it returned."""
        if anyio.current_effective_deadline() == -inf:
            # On asyncio, anyio stops cancelling once nobody is left to be cancelled: who is started after that would
            # wait for ever, or run in circles at a checkpoint. It goes on again where a scope is left.
            with anyio.CancelScope():  # noqa: ASYNC100
                pass
        try:
            await run(*arguments)
            return True
        except (GeneratorExit, BrokenContract):
            raise
        except BaseException as error:
            self.shared.put_back()
            if passes(error) or (is_cancellation(error) and is_cancelled()):
                raise
            self._failed(run.__qualname__, error, pause_sec)
        await checkpoint_if_cancelled()
        return False

    def _failed(self, name: str, error: BaseException, pause_sec: float) -> None:
        text, now = describe(error), self._env.monotonic()
        self.failures[name] += 1
        tell(log, logging.ERROR, "%s failed, which nothing expected; the node goes on: %s", name, text, error=error)
        ailment = Ailment(Code.LOOP_FAILED, f"{name} has failed {self.failures[name]} times, at last: {text}", now)
        if (before := self._ailing.get(name)) is not None and before[1] > now:
            ailment = ailment._replace(since=before[0].since)
        self._ailing[name] = ailment, now + pause_sec + WELL_SEC

    def ailments(self) -> Iterable[Ailment]:
        """Return recent failures. A source of the node's vitals, read from any thread."""
        now = self._env.monotonic()
        return [ailment for ailment, until in tuple(self._ailing.values()) if now < until]
