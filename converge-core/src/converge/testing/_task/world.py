"""Processes that share a store, in two threads, called from a test that runs in neither: what random histories of tasks
are played on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import TypeVar

from converge.contracts.store import Batch, Committed, Store
from converge.model.keys import EXPIRY
from converge.testing._store.base import Opening
from converge.testing._store.world import HANDLES, World
from converge.testing._task.apart import PoolsApart
from converge.testing._task.base import Process, wait_until_store_time

T = TypeVar("T")
Work = Callable[[Process], Awaitable[T]]

LEASE_SEC = 60.0
"""No machine is so slow that a process loses it by accident: who is to die shortens it."""
LAST_LEASE_SEC = 0.02  # short: it is to end
ANSWER_SEC = 60.0


class TaskWorld(World):
    """A process on each handle; the first one lives as long as the world."""

    def __init__(self, opening: Opening, loop: str) -> None:
        super().__init__(checked(opening), loop)
        self.processes: list[Process] = []
        self.numbers = count()
        self.names: list[int] = []
        """A number for the process that each handle has now; no two processes have the same."""

    def ask(self, handle: int, work: Work[T]) -> T:
        """Await a call of one process, in its thread."""
        return self.portals[handle].call(work, self.processes[handle])

    def ask_at_once(self, asks: Sequence[tuple[int, Work[T]]]) -> list[T]:
        """Await calls of several processes, all begun before any is waited for."""
        futures = [self.portals[handle].start_task_soon(work, self.processes[handle]) for handle, work in asks]
        return [future.result(ANSWER_SEC) for future in futures]

    def replace(self, handle: int) -> None:
        """Put a new process in the place of one that has died: nothing of the old one is closed but its connection."""
        self.reopen(handle)
        self.processes[handle], self.names[handle] = self._start(handle), next(self.numbers)

    def _start(self, handle: int) -> Process:
        return self.portals[handle].call(Process, self.stores[handle], LEASE_SEC)

    def _open(self) -> None:
        super()._open()
        self.processes = [self._start(handle) for handle in range(HANDLES)]
        self.names = [next(self.numbers) for _ in self.processes]

    def _close(self) -> None:
        for handle, process in enumerate(self.processes):
            self.portals[handle].call(process.handle.close)
        self.processes = []
        super()._close()


async def die(process: Process) -> bytes:
    """Die as a process does whose last renewal was a very short one; return the id of its lease, whose time has passed.

    The process itself, if it is asked again, believes that it has its lease still: so does one that was paused.
    """
    lease = await process.handle.lease()
    lease.abandon()
    key = EXPIRY(lease.id)
    for _ in range(10):
        (entry,) = await process.store.get([key])
        assert entry is not None, "nobody else ends a lease that has a minute"
        until = await process.store.time() + int(LAST_LEASE_SEC * 1_000_000)
        (outcome,) = await process.store.commit([Batch([(key, entry.revision)], [(key, str(until).encode())])])
        if isinstance(outcome, Committed):
            await wait_until_store_time(process.store, until + 2)
            return lease.id
    raise AssertionError("an abandoned lease is renewed over and over")


def checked(opening: Opening) -> Opening:
    """Open stores with an eye on the rules that their caller, core, must keep to."""

    @asynccontextmanager
    async def open_store() -> AsyncIterator[Store]:
        opened: AbstractAsyncContextManager[Store] = opening()
        async with opened as store:
            yield PoolsApart(store)

    return open_store


__all__ = ["HANDLES", "LEASE_SEC", "TaskWorld", "Work", "checked", "die"]
