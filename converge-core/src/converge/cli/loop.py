"""The event loop of a process that is a node and nothing else: it goes on when user code stops it, and ends whatever
user code has left in it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from converge.foreign import passes, tell

log = logging.getLogger("converge.node")

ENTERED_MOST = 1_000
"""How often a loop is entered again at most: user code that stops it without end must not keep the process for ever."""

LEFT_SEC = 1.0
"""How long each has to end, once the node has: tasks that user code has left, async generators, threads of the loop."""

_LEFT: list[asyncio.Future[Any]] = []
"""What has not ended: kept, since it may wait for more when it is destroyed."""


def loop_factory() -> asyncio.AbstractEventLoop:
    """Return the fastest event loop that is installed. It is entered again after a `stop()`, a SystemExit or a
    KeyboardInterrupt that comes from a task which user code has started beside its calls; at the end it waits for what
    is left in it, but not for ever.
    """
    module = "uvloop" if importlib.util.find_spec("uvloop") is not None else "asyncio"
    loop: Any = importlib.import_module(module).new_event_loop()
    loop.run_until_complete = partial(_run_until_complete, loop, loop.run_until_complete)
    return loop  # type: ignore[no-any-return]  # it is given a method


def _run_until_complete(loop: Any, run: Callable[[Any], Any], future: Any) -> Any:
    task = asyncio.ensure_future(future, loop=loop)
    try:
        return _run_again(run, task)
    finally:
        if task.done():  # the node has ended
            loop.run_until_complete = partial(_run_for_a_while, loop, run)
            _end_tasks(loop)


def _run_again(run: Callable[[Any], Any], task: asyncio.Future[Any]) -> Any:
    for _ in range(ENTERED_MOST):
        try:
            return run(task)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            if task.done() or passes(error):  # its own, or Ctrl-C
                raise
            text = "user code stopped the event loop from outside of its calls; it goes on"
            tell(log, logging.ERROR, text, error=error)
    return run(task)


def _run_for_a_while(loop: asyncio.AbstractEventLoop, run: Callable[[Any], Any], future: Any) -> Any:
    """Run until the future has ended, or something stops the loop: this does, when it has taken too long."""
    task = asyncio.ensure_future(future, loop=loop)
    timer = loop.call_later(LEFT_SEC, loop.stop)
    try:
        return run(task)
    except (SystemExit, RuntimeError):
        if task.done():
            raise
        _LEFT.append(task)
    finally:
        timer.cancel()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel all tasks; let those that do not end be nobody's, since whoever closes the loop waits for all of them."""
    for task in (tasks := asyncio.all_tasks(loop)):
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    for task in asyncio.all_tasks(loop):
        tell(log, logging.WARNING, "a task that user code has left does not end; the process ends without it: %r", task)
        _LEFT.append(task)
        asyncio.tasks._unregister_task(task)  # else all_tasks() tells of it again
