"""How long the store may take: `call_sec` for each call on it, `timeout=` for all that a call of a manager needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from functools import wraps
from threading import get_ident
from typing import Any, ParamSpec, TypeVar

import anyio

from converge.contracts.store import (
    Batch,
    Channel,
    Committed,
    Conflict,
    Durability,
    Entry,
    Inspection,
    Key,
    Prefix,
    Range,
    Store,
    Take,
    Turned,
)
from converge.errors import ForeignLoop, InvalidValue, OutcomeUnknown, StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_GREATEST_SEC = 1e9


class Limit:
    """The time that one call of a manager may take, all its calls on the store together."""

    __slots__ = ("deadline", "hint", "is_written")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.is_written = False
        """Whether something was sent to the store that may change it."""
        self.hint = "read what has become of it, then repeat it"
        """How to go on where nobody knows whether it was applied."""


LIMIT: ContextVar[Limit | None] = ContextVar("converge_limit", default=None)


def timed(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a method with a parameter `timeout` (seconds; None: only `call_sec` counts, for each call on the store) end
    in time: with `OutcomeUnknown` if something was sent that may have been applied, with `StoreUnavailable` if not.
    """

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        timeout = checked_timeout(kwargs.pop("timeout", None))
        if timeout is None:
            return await method(*args, **kwargs)
        limit = Limit(anyio.current_time() + timeout)
        token = LIMIT.set(limit)
        try:
            with anyio.move_on_at(limit.deadline):
                return await method(*args, **kwargs)
        finally:
            LIMIT.reset(token)
        raise no_answer(timeout, limit)

    return call


def checked_timeout(timeout: object) -> float | None:
    """Return the seconds, if they are any, or None.

    Raises:
        InvalidValue: It is neither.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidValue("timeout", timeout, "seconds, 0 or more")
    return float(min(timeout, TIMEOUT_GREATEST_SEC))  # of a longer one nobody sees the end, and no clock may count it


def is_out_of_time(lasted_sec: float, call_sec: float) -> bool:
    """Return whether a call that has lasted so long is given up: `timeout` has passed or, without one, `call_sec`."""
    limit = LIMIT.get()
    return anyio.current_time() >= limit.deadline if limit is not None else lasted_sec >= call_sec


def no_answer(timeout: float, limit: Limit) -> OutcomeUnknown | StoreUnavailable:
    """Return the error of a call that has used up its time."""
    if limit.is_written:
        return OutcomeUnknown(f"the store did not answer within {timeout:g} s; {limit.hint}")
    return StoreUnavailable(f"the store did not answer within {timeout:g} s; nothing was changed, try again")


class Home:
    """The thread to which a handle and all that stands on it belong."""

    __slots__ = ("_thread",)

    def __init__(self) -> None:
        self._thread = get_ident()

    def check(self) -> None:
        """Refuse a call from another thread, whose event loop would wait for what this one's does.

        Raises:
            ForeignLoop: It is another thread.
        """
        if get_ident() != self._thread:
            raise ForeignLoop


class LimitedStore(Store):
    """A store whose reads end in time. What writes passes through: the coalescer limits it."""

    def __init__(self, inner: Store, call_sec: float) -> None:
        self._inner, self._call_sec, self._home = inner, call_sec, Home()
        self.is_clock_local, self.is_remote = inner.is_clock_local, inner.is_remote
        self.is_immediate = inner.is_immediate

    @property
    def durability(self) -> Durability:  # type: ignore[override]  # the wrapped store decides
        return self._inner.durability

    @property
    def shared(self) -> object | None:
        return self._inner.shared

    @shared.setter
    def shared(self, value: object | None) -> None:
        self._inner.shared = value

    @property
    def clock_ahead_sec(self) -> float:
        return self._inner.clock_ahead_sec

    def get(self, keys: Sequence[Key]) -> Coroutine[Any, Any, Sequence[Entry | None]]:
        return self._ask("get", self._inner.get, keys)

    def scan(self, ranges: Sequence[Range]) -> Coroutine[Any, Any, Sequence[Sequence[Entry]]]:
        return self._ask("scan", self._inner.scan, ranges)

    def count(self, prefixes: Sequence[Prefix]) -> Coroutine[Any, Any, Sequence[int]]:
        return self._ask("count", self._inner.count, prefixes)

    def time(self) -> Coroutine[Any, Any, int]:
        if self.is_clock_local:
            self._home.check()
            return self._inner.time()
        return self._ask("time", self._inner.time)

    def retention_time(self) -> Coroutine[Any, Any, int]:
        return self._ask("time", self._inner.retention_time)

    def facts(self) -> Coroutine[Any, Any, Mapping[str, str | int]]:
        return self._ask("facts", self._inner.facts)

    def inspect(self) -> Coroutine[Any, Any, Inspection | None]:
        return self._ask("inspect", self._inner.inspect)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return await self._inner.commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        return await self._inner.turn(batches, take, wake=wake)

    async def advance(self, revision: int) -> None:
        await self._inner.advance(revision)

    async def note_format(self, number: int) -> None:
        await self._inner.note_format(number)

    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        self._home.check()
        return self._inner.watch(channels)

    def within(self, connection: Any) -> Store:
        return self._inner.within(connection)

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        return self._inner.reopen()

    def _ask(
        self, what: str, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, T]:
        self._home.check()
        if self.is_immediate:
            return call(*args, **kwargs)
        return self._limited(what, call, *args, **kwargs)

    async def _limited(
        self, what: str, call: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with anyio.move_on_after(self._call_sec):
            return await call(*args, **kwargs)
        raise StoreUnavailable(f"{what}: the store did not answer within {self._call_sec:g} s (`call_sec`); try again")
