"""The health of a node: whether it is live and ready, and if not, why. Read from any thread, even while the event loop
is blocked.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from converge.env import Env
from converge.runtime.agents.ailments import Ailment, Code, Source
from converge.runtime.probes.answer import Health, Reason
from converge.runtime.reaper import Reaper
from converge.runtime.watchdog import Watchdog
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import NOT_RENEWED

BLOCKED_SEC = 1.0
"""A loop that has not run for so long is blocked: its watchdog wants to run twice a second."""

SILENT_SEC = 1.5
"""A call of the store that takes so long counts as an outage: within 3 s of one the node is to be not ready."""

LATE = 2 / 3
"""The part of a lease after which its renewal is late: it is due after a third, and is tried twice by then."""

NOTED = frozenset((Code.AGENT_RESTS,))
"""What is shown of a node that is ready all the same."""


class Vitals:
    """Where a node's health is read from. Nothing runs for it: all is looked at when somebody asks."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._began = env.monotonic()
        self._loop = threading.get_ident()
        self._stopping: float | None = None
        self._stopped: float | None = None
        self._told: dict[str, float] = {}
        """Since when problems last that show by another sign from one moment to the next, as first told."""
        self._parts: tuple[StoreHandle, Watchdog, Reaper, float] | None = None
        self.sources: list[Source] = []
        """Parts of the node that say for themselves what ails them."""
        self.starting = ""
        """What else is to start before the node is ready, such as the agents of `converge run`; empty: nothing."""

    def started(self, handle: StoreHandle, watchdog: Watchdog, reaper: Reaper, stall_sec: float) -> None:
        """Mark the node as running, on the thread that calls this."""
        self._loop = threading.get_ident()
        watchdog.looked = self._env.monotonic()  # it has not had its first turn, and a start may take long
        self._parts = handle, watchdog, reaper, stall_sec

    def stopping(self) -> None:
        """Mark the node as stopping."""
        self._stopping = self._env.monotonic()

    def stopped(self) -> None:
        """Mark the node as stopped."""
        self._stopped = self._env.monotonic()

    def read(self) -> Health:
        """Return the health as it is now."""
        now = self._env.monotonic()
        wall = datetime.now(UTC)
        found = [
            Reason(code=str(one.code), text=one.text, since=wall - timedelta(seconds=max(0.0, now - one.since)))
            for one in self._ailments(now)
        ]
        reasons = tuple(one for one in found if one.code not in NOTED)
        return Health(
            is_live=self._stopped is None and not self._needs_restart(now),
            is_ready=not reasons,
            reasons=reasons,
            notes=tuple(one for one in found if one.code in NOTED),
        )

    def _needs_restart(self, now: float) -> bool:
        if self._parts is None:
            return False
        handle, watchdog, _, stall_sec = self._parts
        return handle.dead is not None or now - watchdog.looked > stall_sec

    def _ailments(self, now: float) -> Iterable[Ailment]:
        if self._stopped is not None:
            yield Ailment(Code.STOPPED, "the node has stopped", self._stopped)
            return
        if self._parts is None:
            yield Ailment(Code.STARTING, "the node has not started", self._began)
            return
        handle, watchdog, reaper, _ = self._parts
        if self.starting:
            yield Ailment(Code.STARTING, self.starting, self._began)
        if self._stopping is not None:
            yield Ailment(Code.STOPPING, "the node is stopping: it claims no more tasks", self._stopping)
        yield from self._of_loop(now, watchdog)
        yield from _of_lease(now, handle)
        lasting = (*_of_store(now, handle, reaper, watchdog), *_of_clock(now, handle))
        self._told = {one.code: min(one.since, self._told.get(one.code, one.since)) for one in lasting}
        yield from (one._replace(since=self._told[one.code]) for one in lasting)
        if (deaf_since := handle.watch_outage.since) is not None:
            yield Ailment(Code.WATCH_DEAF, "the store's wake-ups do not arrive; work is found by polling", deaf_since)
        for source in tuple(self.sources):
            yield from source()

    def _of_loop(self, now: float, watchdog: Watchdog) -> Iterable[Ailment]:
        blocked_sec = now - watchdog.looked
        if blocked_sec > BLOCKED_SEC:
            yield Ailment(
                Code.LOOP_BLOCKED,
                f"the event loop has been blocked for {blocked_sec:.1f} s, {where(self._loop)}",
                watchdog.looked,
            )


def where(thread: int) -> str:
    """Return a short description of a thread's current line."""
    frame = sys._current_frames().get(thread)
    if frame is None or thread == threading.get_ident():
        return "and runs again"
    return f"at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _of_lease(now: float, handle: StoreHandle) -> Iterable[Ailment]:
    lease = handle.lost or handle.lease_opened
    if lease is None:
        return
    lease_sec, remaining_sec = lease.settings.lease_sec, lease.remaining_sec()
    if remaining_sec <= 0:
        yield Ailment(Code.LEASE_LOST, f"the lease was lost: {lease.why_ended or NOT_RENEWED}", lease.deadline)
    elif now > (late := lease.deadline - lease_sec * (0.9 - LATE)):
        yield Ailment(Code.RENEWAL_LATE, f"the lease was not renewed for {lease_sec * 0.9 - remaining_sec:.1f} s", late)


def _of_store(now: float, handle: StoreHandle, reaper: Reaper, watchdog: Watchdog) -> Iterable[Ailment]:
    since, error = handle.outage.since, handle.outage.error
    if handle.dead is not None:
        yield Ailment(Code.STORE_AWAY, f"the store was taken away, restart: {handle.dead}", since or now)
        return
    if since is not None:
        yield Ailment(Code.STORE_AWAY, f"the store does not do what it is asked: {error}", since)
        return
    # A page of the sweep is many calls: while writes are answered it is only long.
    page = None if (asked := reaper.asked) is None else max(asked, handle.answered_at)
    silent = min((one for one in (page, handle.asked_since) if one is not None), default=None)
    if silent is None or now - watchdog.looked > BLOCKED_SEC:
        return  # nothing is asked, or nobody can read the answer
    silent_sec = now - max(silent, watchdog.resumed)
    if silent_sec > SILENT_SEC:
        yield Ailment(Code.STORE_AWAY, f"the store has not answered for {silent_sec:.1f} s", silent)


def _of_clock(now: float, handle: StoreHandle) -> Iterable[Ailment]:
    if (ahead_sec := handle.store.clock_ahead_sec) > 0:
        text = f"the wall clock was set back: store time is {ahead_sec:.0f} s ahead of it"
        yield Ailment(Code.CLOCK_AHEAD, text, now)
