"""The reaper: sweeps the store for all processes at paced intervals; every node has one, and any one suffices."""

from __future__ import annotations

import logging
from math import inf

import anyio

from converge.errors import StoreError
from converge.services.durable.durable import Durable
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import settle_takes

log = logging.getLogger("converge.reaper")

PAUSE_SEC = 0.002
"""Between two pages while there is something to do: others get their turn at the store."""


class Reaper:
    """Runs sweeps until it is cancelled."""

    def __init__(self, handle: StoreHandle, poll_sec: float) -> None:
        self._handle, self._poll_sec = handle, poll_sec
        self.sweep = Durable(handle).sweep()
        self.asked: float | None = None
        """Since when a page has been under way (monotonic seconds): a store that is silent shows here."""

    async def run(self) -> None:
        """Sweep a page; go on at once while there is work, else sleep until the next poll, or the next task is due."""
        while True:
            try:
                self.asked = self._handle.env.monotonic()
                if self._handle.due_at <= self.asked:
                    self._handle.due_at = inf
                if self._handle.unsettled:
                    await settle_takes(self._handle)  # a feed whose slots are busy takes nothing, so it settles nothing
                moved = await self.sweep.paced_page()
                self._handle.outage.works("sweep")
                pause_sec = PAUSE_SEC if moved else await self._pause_sec()
            except StoreError as error:
                self._handle.outage.failed("sweep", error)
                pause_sec = self._poll_sec
            self.asked = None
            await self._sleep(pause_sec)

    async def _sleep(self, pause_sec: float) -> None:
        """Sleep, but no longer than until a task comes due that is put off here meanwhile."""
        handle = self._handle
        with anyio.move_on_after(pause_sec) as scope:
            while True:
                handle.due_came = anyio.Event()
                left_sec = max(PAUSE_SEC, handle.due_at - handle.env.monotonic())
                scope.deadline = min(scope.deadline, anyio.current_time() + left_sec)
                await handle.due_came.wait()

    async def _pause_sec(self) -> float:
        pause_sec = self._poll_sec * self._handle.env.uniform(0.75, 1.0)
        if self.sweep.next_due is None:
            return pause_sec
        return max(PAUSE_SEC, min(pause_sec, (self.sweep.next_due - await self._handle.now()) / 1_000_000))
