"""Waits of many callers: what wakes one of them, and one task that ends them all at their deadlines.

A cancel scope for each message would cost more than all else that its sender does.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol

import anyio

GRAIN_SEC = 1 / 64
"""How late a deadline may be noticed; those of one grain are kept together."""


class Waiter(Awaitable[Any], Protocol):
    """What one caller awaits, until another one sets its result."""

    def done(self) -> bool: ...

    def set_result(self, result: None) -> None: ...


class _Waiter:
    """For event loops that have no futures."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, result: None) -> None:
        self._event.set()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()


def waiters() -> Callable[[], Waiter]:
    """Return what makes waiters on the running event loop: on asyncio its futures, of a quarter of an event's cost."""
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return asyncio.get_running_loop().create_future
    return _Waiter


class Expires(Protocol):
    """What has a deadline."""

    def expire(self) -> None:
        """Note that the deadline has come."""

    def give_up(self) -> None:
        """Note that nothing watches the deadline any more."""


class Deadlines:
    """Ends waits at their deadlines.

    Its task begins with the first wait, and ends when nobody has waited for as long as the last deadline was away.
    """

    def __init__(self, monotonic: Callable[[], float], errand: Callable[..., object]) -> None:
        """`errand`: starts the task."""
        self._monotonic, self._errand = monotonic, errand
        self._grains: dict[int, dict[Expires, None]] = {}
        self._order: list[int] = []
        self._sooner: anyio.Event | None = None  # what the task sleeps by
        self._is_running = False

    def add(self, one: Expires, until: float) -> int:
        """Note a deadline; return its grain, for `discard`."""
        number = int(until / GRAIN_SEC) + 1
        grain = self._grains.get(number)
        if grain is None:
            grain = self._grains[number] = {}
            heapq.heappush(self._order, number)
            if not self._is_running:
                self._is_running = True
                self._errand(self._run)
            elif self._sooner is not None and self._order[0] == number:
                self._sooner.set()
        grain[one] = None
        return number

    def discard(self, one: Expires, number: int) -> None:
        """Forget a deadline: its wait has ended."""
        grain = self._grains.get(number)
        if grain is not None:
            grain.pop(one, None)

    async def _run(self) -> None:
        try:
            while self._order:
                rest_sec = self._order[0] * GRAIN_SEC - self._monotonic()
                if rest_sec > 0:
                    self._sooner = anyio.Event()
                    with anyio.move_on_after(rest_sec):
                        await self._sooner.wait()
                    continue
                for one in self._grains.pop(heapq.heappop(self._order)):
                    one.expire()
        finally:
            self._is_running = False
            left = [one for grain in self._grains.values() for one in grain]
            self._grains.clear()
            self._order.clear()
            for one in left:  # the node ends
                one.give_up()
