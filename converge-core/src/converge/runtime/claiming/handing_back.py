"""Claims that go back before anything of them has begun."""

from __future__ import annotations

from collections.abc import Callable, Collection

from converge.machines.events import HandedBack, Released
from converge.model.place import Found
from converge.runtime.claiming.ahead import ClaimsAhead
from converge.runtime.claiming.finishing import Finishing
from converge.runtime.claiming.slots import Slots


class HandBack:
    """Gives back what a feed has claimed. `on_released` is called where that should go out soon."""

    def __init__(self, slots: Slots, ahead: ClaimsAhead, finishing: Finishing, on_released: Callable[[], None]) -> None:
        self._slots, self._ahead, self._finishing, self._on_released = slots, ahead, finishing, on_released

    def release(self, claims: list[Found], why: str) -> None:
        """Release claims for a reason, which their history says."""
        self._ahead.left(claims)
        self._finishing.waiting += [(found, Released("", why)) for found in claims]
        self._on_released()

    def release_excess(self, allowed: int, why: str) -> None:
        """Release claims beyond those allowed: an agent has left since the take, and others may be busy for long."""
        if (excess := self._slots.busy - allowed) > 0:
            self.release(self._slots.take_back(excess), why)

    def undo(self, claims: list[Found]) -> None:
        """Give up claims as if they had never been made."""
        self._ahead.left(claims)
        self._finishing.waiting += [(found, HandedBack()) for found in claims]

    def undo_paused(self, paused: Collection[str]) -> None:
        """Give up what is queued of pools that were seen to be paused."""
        if paused and self._slots.queued:
            self.undo(self._slots.drop_where(lambda found: found.spec.pool in paused))
