"""The event loop of a process that is a node and nothing else: it goes on when user code stops it."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from converge.foreign import tell

log = logging.getLogger("converge.node")

ENTERED_MOST = 1_000
"""How often a loop is entered again at most: user code that stops it without end must not keep the process for ever."""


def loop_factory() -> asyncio.AbstractEventLoop:
    """Return the fastest event loop that is installed. It is entered again after a `stop()`, or a SystemExit, that
    comes from a task which user code has started beside its calls.
    """
    module = "uvloop" if importlib.util.find_spec("uvloop") is not None else "asyncio"
    loop: Any = importlib.import_module(module).new_event_loop()
    loop.run_until_complete = partial(_run_until_complete, loop, loop.run_until_complete)
    return loop  # type: ignore[no-any-return]  # it is given a method


def _run_until_complete(loop: asyncio.AbstractEventLoop, run: Callable[[Any], Any], future: Any) -> Any:
    task = asyncio.ensure_future(future, loop=loop)
    for _ in range(ENTERED_MOST):
        try:
            return run(task)
        except (SystemExit, RuntimeError) as error:
            if task.done():  # its own
                raise
            text = "user code stopped the event loop from outside of its calls; it goes on"
            tell(log, logging.ERROR, text, error=error)
    return run(task)
