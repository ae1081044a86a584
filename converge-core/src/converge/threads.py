"""Threads that the node's own calls get whatever else runs in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


async def in_own_thread(function: Callable[..., T], *arguments: object, abandon_on_cancel: bool = False) -> T:
    """Call the function in a thread, at once; return what it returns.

    The limit that an event loop has for its threads is everybody's: if user code held all of them, a node that waits
    for one could neither sign, nor read a file, nor stop.
    """
    return await to_thread.run_sync(
        function, *arguments, abandon_on_cancel=abandon_on_cancel, limiter=CapacityLimiter(1)
    )
