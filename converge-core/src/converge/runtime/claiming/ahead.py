"""Claims beyond the slots of a feed: made while handlers are quick, handed back if no slot comes free for them.

Only on stores of another process: a batch in hand lets the store work while Python runs the handlers of this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from converge.env import Env
from converge.machines.pace import LATE_SEC, Ahead
from converge.model.place import Found
from converge.runtime.claiming.slots import Slots


class ClaimsAhead:
    """The claims that a feed holds beyond its slots."""

    def __init__(self, env: Env, slots: Slots, *, is_remote: bool) -> None:
        self._env, self._slots = env, slots
        self._ahead = Ahead()
        self.is_remote = is_remote
        """Whether the store is another process: else nothing is ever claimed ahead."""
        self.is_barred = False
        """Whether an agent of the feed rests, or is on trial: then nothing is claimed ahead."""
        self.late_at = inf
        """When to ask what is `late` (monotonic seconds)."""

    @property
    def is_on(self) -> bool:
        """Whether a batch may be claimed ahead."""
        return self._ahead.is_on and not self.is_barred

    @property
    def most(self) -> int:
        """How many claims may be here, slots and queue together; what was asked for ahead may arrive later."""
        return len(self._slots.slots) * (2 if self.is_remote else 1)

    def given(self, claims: list[Found]) -> None:
        """Note that these claims of one take are here now."""
        if self.is_remote:
            self._ahead.given(_batch(claims[0]), len(claims), self._env.monotonic())

    def expect_late(self) -> None:
        """Set `late_at` by what waits beyond the slots."""
        if self.is_remote:
            self.late_at = min((self._ahead.late_at(_batch(found)) for found in self._beyond()), default=inf)

    def left(self, claims: Iterable[Found]) -> None:
        """Note that these claims have ended, or are about to go back: they are in no slot or queue here any more."""
        if self.is_remote:
            for found in claims:
                if self._ahead.has_ended(batch := _batch(found)):
                    self._ahead.batch_ended(batch, self._env.monotonic())

    def late(self) -> list[Found]:
        """Return the claims that no slot came free for in time, and claim nothing ahead for a while if there are any;
        they are not in the queue any more.
        """
        now = self._env.monotonic()
        if now - self.late_at > LATE_SEC / 2:  # not the handlers were slow, but this process was away
            self.late_at = now + LATE_SEC
            return []
        ids = {found.id for found in self._beyond() if self._ahead.late_at(_batch(found)) <= now}
        if ids:
            self._ahead.went_back(now)
        late = self._slots.drop(ids)
        self.expect_late()
        return late

    def _beyond(self) -> Iterable[Found]:
        return self._slots.waiting(-self._slots.free)


def _batch(found: Found) -> bytes:
    """Return the nonce of the take, which a claim keeps; it has another token once its task is called off."""
    return found.place[1]  # type: ignore[misc]  # it is claimed: a Held, read by its index for speed
