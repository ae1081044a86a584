"""De-duplication of messages: what the receiver remembers of each pair of sender and recipient.

A sender has one message to a recipient under way at a time, and repeats it with the same sequence until it is settled; so remembering the last one
of a pair is enough to take each message once, and in order.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import NamedTuple

PAIRS = 10_000
"""Pairs remembered at a time; past that new senders are refused, and no old one is forgotten early."""

WINDOW_SEC = 120.0
"""How long a pair is remembered after its last message: no message may be retried for longer."""


class Pair(NamedTuple):
    """Sender, its lease, recipient."""

    sender: str
    lease: str
    to: str


class Seen(Enum):
    """What a message is to its receiver."""

    NEW = "new"
    REPEATED = "repeated"
    OLD = "old"  # settled before a later one
    REFUSED = "refused"  # no room to remember its sender


class _Last:
    __slots__ = ("at", "id", "sequence")

    def __init__(self, sequence: int, id_: str, at: float) -> None:
        self.sequence, self.id, self.at = sequence, id_, at


class Streams:
    """The last message taken of each pair."""

    def __init__(self, pairs: int = PAIRS, window_sec: float = WINDOW_SEC) -> None:
        self._greatest, self._window_sec = pairs, window_sec
        self._last: OrderedDict[Pair, _Last] = OrderedDict()  # the longest untouched first

    def see(self, pair: Pair, sequence: int, id_: str, now: float) -> Seen:
        """Say what the message is; nothing is remembered until `take`."""
        last = self._last.get(pair)
        if last is None:
            self._forget(now)
            return Seen.NEW if len(self._last) < self._greatest else Seen.REFUSED
        if sequence > last.sequence:
            return Seen.NEW
        return Seen.REPEATED if sequence == last.sequence and id_ == last.id else Seen.OLD

    def take(self, pair: Pair, sequence: int, id_: str, now: float) -> None:
        """Remember that the message was taken."""
        self._last[pair] = _Last(sequence, id_, now)
        self._last.move_to_end(pair)

    def _forget(self, now: float) -> None:
        while self._last:
            pair, last = next(iter(self._last.items()))
            if now - last.at < self._window_sec:
                return
            del self._last[pair]
