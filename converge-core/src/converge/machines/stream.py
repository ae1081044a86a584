"""De-duplication of messages: what the receiver remembers of each sender.

Of each pair of sender and recipient it remembers the highest sequence that it took. That is enough to take each message
once and in order, because a sender repeats a message with the same sequence until it is settled, and each message names
the one before it that is still under way (`after`): a later one is taken only when that one was. So of the messages
that their sender still waits for, exactly those up to the highest were taken.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

SENDERS = 10_000
"""Senders remembered at a time; past that new ones are refused, and no old one is forgotten early."""

PAIRS = 100_000
"""Pairs of sender and recipient remembered at a time: a sender may write to many agents of a process. About 20 MB."""

WINDOW_SEC = 120.0
"""How long a sender is remembered after its last message: no message may be retried for longer."""


class Pair(NamedTuple):
    """Sender, its lease, and the recipient; or what stands for all of a node."""

    sender: str
    lease: str
    to: str


class Seen(Enum):
    """How the receiver classifies a message."""

    NEW = "new"
    REPEATED = "repeated"  # taken before, if its sender still waits for it
    EARLY = "early"  # one before it is under way, and has not come
    REFUSED = "refused"  # no room to remember its sender


class _Sender:
    __slots__ = ("at", "highest")

    def __init__(self) -> None:
        self.at = 0.0
        self.highest: dict[str, int] = {}


class Streams:
    """The highest sequence taken of each pair."""

    def __init__(self, senders: int = SENDERS, pairs: int = PAIRS, window_sec: float = WINDOW_SEC) -> None:
        self._most_senders, self._most_pairs, self._window_sec = senders, pairs, window_sec
        self._senders: OrderedDict[tuple[str, str], _Sender] = OrderedDict()  # the longest untouched first
        self._pairs = 0

    def see(
        self, pair: Pair, sequence: int, after: int, now: float, is_stranger: Callable[[], bool] = lambda: False
    ) -> Seen:
        """Classify the message; nothing is remembered until `accept`. Strangers have half of the room."""
        sender = self._senders.get(pair[:2])
        highest = 0 if sender is None else sender.highest.get(pair.to, 0)
        if sequence <= highest:
            return Seen.REPEATED
        if after > highest:
            return Seen.EARLY
        if highest == 0 and not self._has_room(sender is None, now, is_stranger):
            return Seen.REFUSED
        return Seen.NEW

    def accept(self, pair: Pair, sequence: int, now: float) -> None:
        """Remember that the message was accepted."""
        sender = self._senders.get(pair[:2])
        if sender is None:
            sender = self._senders[pair[:2]] = _Sender()
        if pair.to not in sender.highest:
            self._pairs += 1
        sender.highest[pair.to], sender.at = sequence, now
        self._senders.move_to_end(pair[:2])

    def _has_room(self, is_new_sender: bool, now: float, is_stranger: Callable[[], bool]) -> bool:
        while self._senders:
            key, oldest = next(iter(self._senders.items()))
            if now - oldest.at < self._window_sec:
                break
            del self._senders[key]
            self._pairs -= len(oldest.highest)
        if self._pairs * 2 < self._most_pairs and len(self._senders) * 2 < self._most_senders:
            return True
        is_room = self._pairs < self._most_pairs and not (is_new_sender and len(self._senders) >= self._most_senders)
        return is_room and not is_stranger()
