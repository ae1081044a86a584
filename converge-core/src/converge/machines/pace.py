"""When a feed takes, and how much: small takes that double, so that work spreads over idle processes.

A feed that was idle asks for one task. While its takes come back full it asks for twice as many, each time after one of
its claims has ended or after a pause, and wakes another process for what it leaves behind. Once it asks for all of its
free slots it is *steady*, and asks for whatever is free. In simulations growing takes alone spread nothing on quick
stores; with the pause, two idle processes shared four tasks in every round, and a lone process of 100 slots was full
after 13 to 29 ms.
"""

from __future__ import annotations

from math import inf

PAUSE_SEC = 0.002
"""How long a rising feed leaves work to others before its next take, at least, unless one of its claims ends sooner."""

PAUSE_TAKES, PAUSE_GREATEST_SEC = 3, 0.05
"""On a slow store the pause is as long as so many takes last, within this: the process that was woken needs its wake-up
and its own take.
"""

DOZE_SEC = 0.02
"""A feed that found nothing for less than this goes on at its pace: it is about to be as busy as it was."""


class Pace:
    """The pace of one feed. Moments are in monotonic seconds."""

    __slots__ = ("_idle_since", "_is_out", "_left_at", "_next", "due", "is_steady")

    def __init__(self) -> None:
        self.is_steady = False
        self.due = -inf
        """When a rising feed may take next, if none of its claims ends before."""
        self._next = 1
        self._is_out = False
        self._left_at = 0.0
        self._idle_since: float | None = None

    def wanted(self, free: int, now: float) -> int:
        """Return how many tasks a take that leaves now asks for; 0: none yet."""
        if self._idle_since is not None:
            self._wake_up(now)
        if self.is_steady or free <= 0:
            return max(0, free)
        if self._is_out or now < self.due:
            return 0
        if self._next >= free:
            self.is_steady = True
            return free
        return self._next

    def _wake_up(self, now: float) -> None:
        is_rested = self._idle_since is not None and now - self._idle_since >= DOZE_SEC
        self._idle_since = None
        if is_rested:
            self.is_steady, self._next, self.due = False, 1, -inf

    def left(self, now: float) -> None:
        """A take is under way; a rising feed has one at a time."""
        self._is_out, self._left_at = True, now

    def came_back(self, asked: int, taken: int, now: float) -> None:
        """A take was answered, or failed, which took nothing."""
        self._is_out = False
        if not self.is_steady and taken and taken >= asked:
            pause_sec = min(max(PAUSE_SEC, PAUSE_TAKES * (now - self._left_at)), PAUSE_GREATEST_SEC)
            self._next, self.due = 2 * asked, now + pause_sec

    def claim_ended(self) -> None:
        """One of the feed's claims has ended, so its work is quick: it need not pause."""
        self.due = -inf

    def found_nothing(self, now: float) -> None:
        """Nothing is known to be ready."""
        if self._idle_since is None:
            self._idle_since = now
