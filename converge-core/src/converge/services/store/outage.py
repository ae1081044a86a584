"""An outage of the store, shared by all who call it: a line in the log when it begins, one when it ends, and one if it
turns into what does not pass by itself.
"""

from __future__ import annotations

import logging
import threading

from converge.env import Env
from converge.errors import StoreFull, StoreRefused, StoreReplaced, StoreRolledBack

log = logging.getLogger("converge.store")

LOG_AGAIN_SEC = 10.0
"""A failure so soon after a recovery is the same outage (a full disk still answers reads): told only if it lasts."""

BRIEF_SEC = 1.0
"""An outage that was shorter is told to be over once the store has worked for so long: a server that stops answers on
some connections while it ends the others."""

LASTING = (StoreFull, StoreRefused, StoreReplaced, StoreRolledBack)
"""What lasts until somebody does something about it: told of each outage, whatever it began with."""

BEGINS, ENDS = "the store does not do what it is asked; what needs it waits", "the store works again"
DEAF, HEARS = "the store's wake-ups do not arrive; it is polled until they do", "the store's wake-ups arrive again"


class Outage:
    """Collects how calls of the store go, each caller under a name of its own; from any thread.

    One outage stops claims, sweeps, renewals and discovery at once: each would write a line for each try.
    """

    def __init__(self, env: Env, begins: str = BEGINS, ends: str = ENDS) -> None:
        self._env, self._begins, self._ends = env, begins, ends
        self._lock = threading.Lock()
        self._failing: dict[str, BaseException] = {}
        self._logged_at: float | None = None  # when the log last said that the store is away, or is back
        self._logged_from: float | None = None  # when the outage began whose begin, and not its end, is in the log
        self._over_at: float | None = None  # when that one ended
        self._named = set[type[BaseException]]()  # kinds of error that the log has of it
        self.since: float | None = None
        """When it began (monotonic seconds); None: the store does what it is asked."""
        self.error: BaseException | None = None
        """What was said last."""
        self.dead: StoreReplaced | None = None
        """What ended the handle for good: only opening the store again helps."""

    def failed(self, part: str, error: BaseException) -> None:
        """Report that a call of this part of the process failed."""
        with self._lock:
            now = self._env.monotonic()
            self._failing[part] = self.error = error
            if isinstance(error, StoreReplaced):
                self.dead = error
            if self.since is None:
                self.since = now
            self._over_at = None
            if self._logged_from is not None:
                is_known = type(error) in self._named or not isinstance(error, LASTING)
            else:
                is_known = self._logged_at is not None and now - self._logged_at < LOG_AGAIN_SEC
            if is_known:
                log.debug("%s: %s", part, error)
                return
            if self._logged_from is None:
                self._logged_at, self._logged_from = now, self.since
                self._named.clear()
            self._named.add(type(error))
        log.warning("%s: %s", self._begins, error)

    def works(self, part: str) -> None:
        """Report that a call of this part of the process succeeded."""
        if (lasted_sec := self._end(part)) is not None:
            log.warning("%s, after %.1f s", self._ends, lasted_sec)

    def left(self, part: str) -> None:
        """Report that this part calls no more: it counts as neither failing nor working."""
        self._end(part)

    def _end(self, part: str) -> float | None:
        """Remove the part; return how long the outage lasted if the log is to say now that it is over."""
        if part not in self._failing and self._over_at is None:
            return None
        with self._lock:
            now = self._env.monotonic()
            if self._failing.pop(part, None) is not None and not self._failing:
                self.since = self.error = None
                self._over_at = None if self._logged_from is None else now
            if self._logged_from is None or self._over_at is None:
                return None
            lasted_sec = self._over_at - self._logged_from
            if lasted_sec < BRIEF_SEC and now - self._over_at < BRIEF_SEC:
                return None
            self._logged_at, self._logged_from, self._over_at = now, None, None
            return lasted_sec
