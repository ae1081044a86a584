"""The store's history as this process saw it: its epoch, and revisions that only grow (G15)."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Check, Committed, Conflict, Taken

ROLLED_BACK = (
    "the store's history is not the one that this process saw: it was flushed, restored or replaced; "
    "find out what became of its data, then run `converge store accept`: this process goes on then"
)


class History:
    """What every write of the process is compared with, those of its lease's thread included.

    Loop and thread share it without a lock: at worst `greatest` falls back to another revision that was seen.
    """

    __slots__ = ("epoch", "greatest", "is_rolled_back")

    def __init__(self, epoch: Check) -> None:
        self.epoch = epoch
        """The check that every batch and take carries."""
        self.greatest = epoch[1]
        """The greatest revision that was seen."""
        self.is_rolled_back = False
        """Whether the store's history was found to be another one."""

    def begin_anew(self, revision: int) -> None:
        """Go on with a history that an operator has accepted, whose epoch stands at that revision."""
        self.epoch, self.greatest, self.is_rolled_back = (self.epoch[0], revision), revision, False

    def remember(self, revision: int) -> None:
        """Note a revision that was seen before this process began: what the store gives now must be above."""
        self.greatest = max(self.greatest, revision)

    def check(self, answers: Iterable[object], floor: int) -> None:
        """Detect another history: another epoch, or a revision not above `floor`, the greatest before the call."""
        key, last = self.epoch[0], None
        for answer in answers:
            if answer is last:
                continue  # a store may give one answer to many batches
            last = answer
            if isinstance(answer, Conflict):
                if key in answer.keys:
                    self.is_rolled_back = True
            elif isinstance(answer, Committed) or (isinstance(answer, Taken) and answer.rests):
                revision = answer.revision
                if revision <= floor:
                    self.is_rolled_back = True
                elif revision > self.greatest:
                    self.greatest = revision
