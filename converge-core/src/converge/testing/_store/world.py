"""Handles on one store in two threads, called from a test that runs in neither: what random histories are played on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from types import TracebackType
from typing import TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis.errors import HypothesisException

from converge.contracts.store import Store
from converge.testing._store.base import Opening

T = TypeVar("T")

HANDLES = 3
"""The first two share a thread and its event loop, the third has its own."""


class World:
    """One store, opened, with `HANDLES` handles; each may be closed and opened again."""

    def __init__(self, opening: Opening, loop: str) -> None:
        self.opening, self.loop = opening, loop
        self.salt = 0
        self.broken: Exception | None = None
        """What failed first, in any history."""
        self.stack = ExitStack()
        self.portals: list[BlockingPortal] = []
        self.stores: list[Store] = []
        self.opened: list[AbstractContextManager[Store]] = []

    def __enter__(self) -> World:
        with ExitStack() as stack:
            here, there = (stack.enter_context(start_blocking_portal(self.loop)) for _ in range(2))
            self.portals = [here, here, there]
            stack.callback(self._close)
            self._open()
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def next_salt(self) -> int:
        """Return a number that no other history on this store has: it is part of each of its keys."""
        self.salt += 1
        return self.salt

    def note(self, error: BaseException | None) -> None:
        """Keep what ended a history: Hypothesis plays it again, and says only that it then went on otherwise."""
        if self.broken is None and isinstance(error, Exception) and not isinstance(error, HypothesisException):
            self.broken = error

    def call(self, handle: int, work: Callable[[Store], Awaitable[T]]) -> T:
        """Await a call of one handle, in its thread."""
        return self.portals[handle].call(work, self.stores[handle])

    def at_once(self, works: list[Callable[[Store], Awaitable[T]]]) -> list[T]:
        """Await one call of each handle, all begun before any is waited for."""
        futures = [self.portals[number].start_task_soon(work, self.stores[number]) for number, work in enumerate(works)]
        return [future.result(60) for future in futures]

    def reopen(self, handle: int) -> None:
        """Close a handle, not the first one, and open it again."""
        self.opened[handle].__exit__(None, None, None)
        self.opened[handle], self.stores[handle] = self._enter(handle, self.stores[0].reopen())

    def restart(self) -> None:
        """Close all handles, then open the store again."""
        self._close()
        self._open()

    def _open(self) -> None:
        first, store = self._enter(0, self.opening())
        self.opened, self.stores = [first], [store]
        for handle in range(1, HANDLES):
            opened, other = self._enter(handle, store.reopen())
            self.opened.append(opened)
            self.stores.append(other)

    def _enter(
        self, handle: int, entered: AbstractAsyncContextManager[Store]
    ) -> tuple[AbstractContextManager[Store], Store]:
        wrapped: AbstractContextManager[Store] = self.portals[handle].wrap_async_context_manager(entered)
        return wrapped, wrapped.__enter__()

    def _close(self) -> None:
        while self.opened:
            self.opened.pop().__exit__(None, None, None)
