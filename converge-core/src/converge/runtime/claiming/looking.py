"""When a feed reads its pools and lanes again: each poll interval, after a wake-up, and where its takes say that they
have changed.
"""

from __future__ import annotations

import anyio

from converge.env import Env
from converge.errors import NoSuchPool, SchemaTooNew, TornRecord
from converge.runtime.claiming.lane_watch import LaneWatch
from converge.services.tasks.claim import Claims

JITTER = 0.25
"""The part of the poll interval by which each wait differs from it."""

REFUSALS = 3
"""Takes in a row that may be refused, though what they check was read again, before the next one waits."""

REST_GREATEST_SEC = 2.0
"""The longest wait after a take that was refused once more."""


class Looking:
    """What a feed knows of its pools and lanes, and whether it is fresh. A wake-up is first taken for what is known:
    the take itself looks.
    """

    def __init__(self, claims: Claims, watch: LaneWatch, env: Env, poll_sec: float) -> None:
        self._claims, self._watch, self._env, self._poll_sec = claims, watch, env, poll_sec
        self.is_wanted = True
        """Whether something has changed since, or may have."""
        self._is_assuming = False
        self._refusals = 0  # takes in a row whose checks failed
        self._due = self._poll_due = 0.0

    def is_due(self, now: float) -> bool:
        """Return whether to look before the next take."""
        return self.is_wanted or now >= self._due

    @property
    def hears(self) -> bool:
        """Whether the store's wake-ups are listened for."""
        return self._watch.hears

    def hear(self) -> None:
        """Listen for wake-ups of the lanes that are known."""
        self._watch.watch(self._claims.channels)

    def stop_hearing(self) -> None:
        """Stop listening while nothing can be taken; then all is read again at once, whatever is known."""
        self._watch.leave()
        self.is_wanted, self._due = True, 0.0

    async def leave_sleepers(self) -> None:
        """Hear of nothing before others are woken: a wake-up that comes back here would be lost to them."""
        if self._watch.hears:
            self.stop_hearing()
        await self._watch.left()

    def waited(self) -> None:
        """Note that nobody has woken this process within a poll interval: it looks, unless it has meanwhile."""
        if anyio.current_time() >= self._poll_due:
            self.is_wanted = True

    async def look(self) -> bool:
        """Assume that what is known first is ready, after a wake-up; else, each poll interval or if that was wrong,
        read pools and lanes again. Return whether they were read.

        Raises:
            StoreError, InputError: They could not be read.
        """
        self.is_wanted = False
        now = self._env.monotonic()
        if now < self._due and not self._is_assuming and self._claims.assume_ready():
            self._is_assuming = True
            return False
        self._is_assuming = False
        self._due = now + self._poll_sec
        self._poll_due = anyio.current_time() + (1 - JITTER) * self._poll_sec
        try:
            await self._claims.look()
        except (TornRecord, SchemaTooNew, NoSuchPool):
            return False  # it was logged; there is nothing to claim from a pool that cannot be read
        return True

    def found(self, is_any: bool) -> bool:
        """Note whether a take took anything; return whether it was an assumption that was wrong: look."""
        is_wrong = self._is_assuming and not is_any
        if is_any:
            self._is_assuming = False
        elif is_wrong:
            self.is_wanted = True  # the wake-up was for a lane that is not known yet
        return is_wrong

    def accepted(self) -> None:
        """Note that the checks of a take held."""
        self._refusals = 0

    async def pause(self) -> None:
        """Wait after a take whose checks failed, if what was read again explains nothing, or moves all the time."""
        self._refusals += 1
        if self._refusals > REFUSALS:
            await anyio.sleep(min(REST_GREATEST_SEC, 0.001 * 2 ** min(self._refusals - REFUSALS, 11)))
