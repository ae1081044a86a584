"""When a feed takes, and how much: small takes that double, so that work spreads over idle processes; on stores of
another process a batch ahead, so that neither side waits for the other.

A feed that was idle asks for one task. While its takes come back full it asks for twice as many, each time after one of
its claims has ended or after a pause, and wakes another process for what it leaves behind. Once it asks for all of its
free slots it is *steady*, and asks for whatever is free. In simulations growing takes alone spread nothing on quick
stores; with the pause, two idle processes shared four tasks in every round, and a lone process of 100 slots was full
after 13 to 29 ms.

A steady feed whose handlers are quick may hold one batch more than it has slots: the store works on the next turn while
Python runs the handlers of this one. What has not begun after a moment goes back, so no claim waits here for long while
another process is free.
"""

from __future__ import annotations

from math import inf

PAUSE_SEC = 0.002
"""How long a rising feed leaves work to others before its next take, at least, unless one of its claims ends sooner."""

PAUSE_TAKES, PAUSE_GREATEST_SEC = 3, 0.05
"""On a slow store the pause is as long as so many takes last, within this: a process that was woken needs two calls."""

DOZE_SEC = 0.02
"""A feed that found nothing for less than this goes on at its pace: it is about to be as busy as it was."""

QUICK_SEC, QUICK_BATCHES = 0.005, 3
"""Batches in a row that must each have ended so soon before one is claimed ahead."""

LATE_SEC = 0.02
"""After how long a claim goes back for which no slot came free."""

REST_LEAST_SEC, REST_GREATEST_SEC = 1.0, 30.0
"""For how long nothing is claimed ahead after such a claim; doubled each time that it happens again."""


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

    def wanted(self, free: int, now: float, ahead: int = 0) -> int:
        """Return how many tasks a take that leaves now asks for, those ahead included; 0: none yet."""
        if self._idle_since is not None:
            self._wake_up(now)
        if self.is_steady:
            return max(0, free + ahead)
        if free <= 0 or self._is_out or now < self.due:
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
        """Note that a take is under way; a rising feed has one at a time."""
        self._is_out, self._left_at = True, now

    def came_back(self, asked: int, taken: int, now: float) -> None:
        """Note that a take was answered, or failed, which took nothing."""
        self._is_out = False
        if not self.is_steady and taken and taken >= asked:
            pause_sec = min(max(PAUSE_SEC, PAUSE_TAKES * (now - self._left_at)), PAUSE_GREATEST_SEC)
            self._next, self.due = 2 * asked, now + pause_sec

    def claim_ended(self) -> None:
        """Note that one of the feed's claims has ended: its work is quick, and it need not pause."""
        self.due = -inf

    def found_nothing(self, now: float) -> None:
        """Note that nothing is known to be ready."""
        if self._idle_since is None:
            self._idle_since = now


class Ahead:
    """Whether a feed may hold one batch more than it has slots. Moments are in monotonic seconds; a batch is named by
    the nonce that its claims share.
    """

    __slots__ = ("_ended_at", "_given", "_left", "_quick", "_rest_sec", "_rests_until", "is_on")

    def __init__(self) -> None:
        self._given: dict[bytes, float] = {}
        self._left: dict[bytes, int] = {}
        self.is_on = False
        """Whether a batch may be claimed ahead now."""
        self._quick = 0
        self._ended_at = -inf
        self._rest_sec, self._rests_until = REST_LEAST_SEC, -inf

    def given(self, nonce: bytes, count: int, now: float) -> None:
        """Note that a batch of so many claims is here."""
        self._given[nonce], self._left[nonce] = now, count
        self._decide(now)

    def has_ended(self, nonce: bytes) -> bool:
        """Count the end of one of a batch's claims; return whether it was the last: then call `batch_ended`."""
        left = self._left[nonce] = self._left[nonce] - 1
        return not left

    def batch_ended(self, nonce: bytes, now: float) -> None:
        """Note that the last claim of a batch has ended. Its time begins when that of the batch before it has ended."""
        del self._left[nonce]
        began, self._ended_at = max(self._given.pop(nonce), self._ended_at), now
        is_quick = now - began <= (LATE_SEC if self.is_on else QUICK_SEC)
        self._quick = self._quick + 1 if is_quick and now >= self._rests_until else 0
        self._decide(now)

    def _decide(self, now: float) -> None:
        """Hold nothing ahead while any claim takes longer than one may wait: the next may, too."""
        oldest = next(iter(self._given.values()), now)
        self.is_on = self._quick >= QUICK_BATCHES and now - oldest <= LATE_SEC

    def late_at(self, nonce: bytes) -> float:
        """Return when what has not begun of a batch is to go back."""
        return self._given[nonce] + LATE_SEC

    def went_back(self, now: float) -> None:
        """Note that claims went back that no slot came free for: the handlers are not as quick as they were."""
        if now - self._rests_until > REST_GREATEST_SEC:
            self._rest_sec = REST_LEAST_SEC
        self.is_on, self._quick, self._rests_until = False, 0, now + self._rest_sec
        self._rest_sec = min(2 * self._rest_sec, REST_GREATEST_SEC)
