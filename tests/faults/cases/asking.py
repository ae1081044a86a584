"""How a caller goes on who must know what became of a call that may be repeated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

import anyio

from converge.errors import StoreError

T = TypeVar("T")


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the store answers. It may be away, or another process stopped while it wrote to a file."""
    with anyio.fail_after(60):
        for number in count():
            try:
                return await call()
            except StoreError:
                await anyio.sleep(min(0.01 * number, 0.1))  # until it is back
    raise AssertionError("it never answered")
