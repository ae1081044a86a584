"""How many claims a feed may ask for: two turns in flight share the room of its slots, and of one batch ahead."""

from __future__ import annotations

from converge.machines.pace import Pace
from converge.runtime.claiming.ahead import ClaimsAhead
from converge.runtime.claiming.slots import Slots


class Budget:
    """The room of one feed, and what its takes under way have of it."""

    def __init__(self, slots: Slots, ahead: ClaimsAhead) -> None:
        self._slots, self._ahead = slots, ahead
        self.pace = Pace()
        self.asked = 0
        """How many tasks the takes under way may bring."""

    @property
    def _batch_ahead(self) -> int:
        """How many claims may be here beyond the slots: one batch, or none."""
        return len(self._slots.slots) if self._ahead.is_on and self.pace.is_steady else 0

    @property
    def room(self) -> int:
        """How many claims may be asked for."""
        return self._slots.free - self.asked + self._batch_ahead

    @property
    def is_used_up(self) -> bool:
        """Whether a take that brought all it asked for may have left something behind: the feed takes no more now."""
        return not self.pace.is_steady or self._slots.free <= self.asked

    def is_worth_a_turn(self) -> bool:
        """Let half of the slots come free first while claims here still wait for their workers: a turn of one task
        costs as much as one of ten. With a batch ahead, let a whole one end.
        """
        slots = self._slots
        if not slots.queued:
            return True
        room = slots.free - self.asked
        return room >= 0 and (2 * room >= len(slots.slots) or self._batch_ahead > 0)

    def limit(self, now: float) -> int:
        """Return how many tasks a take that leaves now asks for; 0: none yet."""
        limit = self.pace.wanted(self._slots.free - self.asked, now, self._batch_ahead)
        # Both batches in one take would leave one side idle while the other works.
        return min(limit, len(self._slots.slots))
