"""The watchdog: keeps the lease, and cancels handlers when it is lost or they take too long. It waits for no store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import anyio

from converge.env import Env
from converge.foreign import FORKS, leave_child
from converge.runtime.agents.background import Shared
from converge.runtime.claiming.feed import Feed
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import NOT_RENEWED, Lease

log = logging.getLogger("converge.node")

TICK_GREATEST_SEC = 0.5
"""How often the watchdog looks at the lease: often enough that handlers stop well within the lease's margin."""


RESUMED_SEC = 1.0
"""A loop that was away for so long has answers to read before anybody may say that they have not come."""

TELL_BLOCKED_SEC = 2.0
"""A loop that was blocked for so long did not answer others meanwhile; a busy machine alone rarely does that."""


class Watchdog:
    """One per process, whatever the number of its agents and tasks."""

    def __init__(
        self, handle: StoreHandle, env: Env, lease_sec: float, feeds: Mapping[Any, Feed], shared: Shared
    ) -> None:
        self._shared = shared
        self._handle, self._env, self._lease_sec, self._feeds = handle, env, lease_sec, feeds
        self.is_stopping = False
        self.lease_lost = anyio.Event()
        self.looked = env.monotonic()
        """When it ran last (monotonic seconds): long ago means that the loop is blocked."""
        self.resumed = self.looked
        """When it ran again after the last block: what was asked before may have been answered meanwhile."""

    async def run(self) -> None:
        """Check the lease, handlers and loop at intervals, until cancelled. A child that user code has forked, and that
        runs on in the loop, ends here.
        """
        try:
            await self._watch()
        finally:
            self._handle.end_late_calls(is_last=True)

    async def _watch(self) -> None:
        lost: Lease | None = None
        forks = FORKS.count
        while True:
            if FORKS.count != forks:
                leave_child(None)
            self._shared.put_back()
            self._look_at_loop()
            self._handle.end_late_calls()
            lease = self._handle.lease_opened
            if lease is not None:
                lease.beat()
                if lease is not lost and lease.remaining_sec() <= 0 and not self.is_stopping:
                    lost = lease
                    self._lost(lease)
            await anyio.sleep(self._tick_sec())

    def _look_at_loop(self) -> None:
        now = self._env.monotonic()
        blocked_sec = now - self.looked
        self.looked = now
        if blocked_sec > RESUMED_SEC:
            self.resumed = now
        if blocked_sec > TELL_BLOCKED_SEC:
            log.warning(
                "the event loop runs again; it was blocked for %.1f s; what computes for long belongs into a plain def",
                blocked_sec,
            )

    def _tick_sec(self) -> float:
        """Cancel what has run too long; return when to look again."""
        due = [at for at in (feed.slots.cancel_timed_out() for feed in self._feeds.values()) if at is not None]
        tick_sec = min(TICK_GREATEST_SEC, self._lease_sec / 20)
        return min(tick_sec, max(0.005, min(due) - self._env.monotonic())) if due else tick_sec

    def _lost(self, lease: Lease) -> None:
        why = lease.why_ended or NOT_RENEWED
        log.error("lease %s was lost (%s): handlers are cancelled, what they held goes back", lease.id.hex(), why)
        for feed in self._feeds.values():
            feed.lost()
        self.lease_lost.set()
