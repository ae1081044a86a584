"""Threads that the node's own calls get whatever else runs in threads."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from converge.foreign import Raised, as_exception, boxed_in_thread, passes

T = TypeVar("T")


class NoThread(OSError):
    """The system lets this process start no further thread: nothing was called."""


async def in_own_thread(function: Callable[..., T], *arguments: object, abandon_on_cancel: bool = False) -> T:
    """Call the function in a thread, at once; return what it returns.

    The limit that an event loop has for its threads is everybody's: if user code held all of them, a node that waits
    for one could neither sign, nor read a file, nor stop.

    Raises:
        NoThread: None can be started.
    """
    is_begun = False

    def call() -> T:
        nonlocal is_begun
        is_begun = True
        return function(*arguments)

    try:
        return await to_thread.run_sync(call, abandon_on_cancel=abandon_on_cancel, limiter=CapacityLimiter(1))
    except RuntimeError as error:
        if is_begun:
            raise
        raise NoThread(errno.EAGAIN, str(error)) from error


async def called_in_own_thread(function: Callable[..., Any], *arguments: object) -> Any:
    """Call plain user code in a thread, in the middle of other user code; return or raise as it does. What it raises is
    no Ctrl-C, which no thread gets.
    """
    (result,) = await in_own_thread(boxed_in_thread, function, *arguments, abandon_on_cancel=True)
    if type(result) is Raised:
        raise as_exception(result) if passes(result.error) else result.error
    return result
