"""Waiting for terminal tasks: one watch per opened store, whatever the number of waiters."""

from __future__ import annotations

import logging

import anyio

from converge.codec import decode
from converge.contracts.store import LIMITS, Entry
from converge.errors import NoSuchTask, StoreError
from converge.ids import id_text
from converge.machines.task import is_terminal
from converge.model.keys import STATE, TASK
from converge.model.task import Spec, State
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import parts

log = logging.getLogger("converge.results")

SOON_SEC, SLOWER = 0.02, 1.5
"""The first pause of one who waits for another process's task, and how much longer each later one is."""


class _Waiter:
    __slots__ = ("event", "is_over")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.is_over = False


class Results:
    """Tells waiters when their tasks are terminal. One of them leads: it watches for all until it leaves."""

    def __init__(self, handle: StoreHandle, poll_sec: float) -> None:
        self._handle = handle
        self._poll_sec = poll_sec
        self._origin = f'"{handle.origin}"'.encode()
        self._waiting: dict[bytes, list[_Waiter]] = {}
        self._has_leader = False
        self._woken = anyio.Event()
        self._pause_sec = poll_sec

    async def wait(self, id_: bytes) -> None:
        """Return when the task is terminal, or gone.

        Raises:
            NoSuchTask: There is none.
        """
        waiter = _Waiter()
        self._waiting.setdefault(id_, []).append(waiter)
        try:
            if await self._is_over(id_):
                return
            while not waiter.is_over:
                if self._has_leader:
                    await waiter.event.wait()
                    waiter.event = anyio.Event()
                else:
                    await self._lead(waiter)
        finally:
            self._waiting[id_].remove(waiter)
            if not self._waiting[id_]:
                del self._waiting[id_]
            if not self._has_leader:
                self._hand_over()  # this one may have been told to lead, and leaves before it did

    async def _is_over(self, id_: bytes) -> bool:
        spec, state = await self._handle.reads.few(TASK(id_), STATE(id_))
        if spec is None:
            raise NoSuchTask(id_text(id_))
        decode(spec.value, Spec, id_text(id_))  # of a task that cannot be read there is nothing to wait for
        if self._origin not in spec.value:
            # Another process submitted it, and is the one that is told: looking soon, then less and less often, costs
            # little and finds out as soon as it matters to one who has waited for so long already.
            self._pause_sec = min(SOON_SEC, self._poll_sec)
            self._woken.set()
        return state is not None and is_terminal(decode(state.value, State, id_text(id_)))

    async def _lead(self, waiter: _Waiter) -> None:
        self._has_leader = True
        try:
            async with anyio.create_task_group() as group:
                channels, part = [self._handle.origin], "results"
                group.start_soon(self._handle.watch_always, channels, part, lambda: self._woken.set(), self._poll_sec)
                while not waiter.is_over:
                    with anyio.move_on_after(self._pause_sec):
                        await self._woken.wait()
                    self._woken = anyio.Event()
                    self._pause_sec = min(self._poll_sec, self._pause_sec * SLOWER)
                    await self._look_if_possible()
                group.cancel_scope.cancel()
        finally:
            self._has_leader = False
            self._handle.outage.left("results")

    def _hand_over(self) -> None:
        """Make another waiter the leader; `wait` calls this again if that one leaves instead."""
        waiters = (waiter for waiters in self._waiting.values() for waiter in waiters if not waiter.is_over)
        if (heir := next(waiters, None)) is not None:
            heir.event.set()

    async def _look_if_possible(self) -> None:
        """Look for ended tasks; while the store is away, waiters go on waiting until their own timeouts."""
        try:
            await self._look()
            self._handle.outage.works("results")
        except StoreError as error:
            self._handle.outage.failed("results", error)

    async def _look(self) -> None:
        ids = list(self._waiting)
        for some in parts(ids, LIMITS.keys // 2):
            states = await self._handle.store.get([STATE(id_) for id_ in some])
            for id_, entry in zip(some, states, strict=True):
                if entry is not None and _is_over(entry, id_):
                    self._tell(id_)
            # Retention removes state and task together; whoever still waits then is told, and finds it gone.
            missing = [id_ for id_, entry in zip(some, states, strict=True) if entry is None]
            if missing:
                for id_, task in zip(
                    missing, await self._handle.store.get([TASK(id_) for id_ in missing]), strict=True
                ):
                    if task is None:
                        self._tell(id_)

    def _tell(self, id_: bytes) -> None:
        for waiter in self._waiting.get(id_, ()):
            waiter.is_over = True
            waiter.event.set()


def _is_over(entry: Entry, id_: bytes) -> bool:
    """Return whether the wait is over; also for a record that cannot be read, which concerns its waiters alone."""
    try:
        return is_terminal(decode(entry.value, State, id_text(id_)))
    except StoreError:
        return True
