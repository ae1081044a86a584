"""Calls that no cancellation of the caller breaks off, plain asyncio's included, which passes every shield."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

Running = set["asyncio.Future[Any]"]
"""Calls under way: a loop alone would let them be collected."""


async def completed(call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Make the call to its end, whoever cancels the caller meanwhile; a cancellation is then passed on."""
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return await call()
    task = asyncio.ensure_future(call())
    cancelled: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as error:
                cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result


async def detached(call: Callable[[], Coroutine[Any, Any, T]], running: Running) -> T:
    """Make the call where no cancellation of the caller reaches it; it then goes on for those who share it.

    On trio a shield suffices. Plain asyncio cancels past it (`task.cancel()`, `asyncio.timeout`): there the call is a
    task of its own, which stands in `running` until it has ended.
    """
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return await call()
    task = asyncio.ensure_future(call())
    running.add(task)
    task.add_done_callback(running.discard)
    with anyio.CancelScope(shield=True):
        return await asyncio.shield(task)
    raise AssertionError("a shield without a deadline swallows nothing")
