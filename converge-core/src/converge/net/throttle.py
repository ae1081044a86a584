"""Limits what strangers can cause: refusals are counted by reason, and log lines are one a minute for each kind and
source, with the number of those left out.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable

EVERY_SEC = 60.0
"""The least time between two lines of one kind about one source."""

SOURCES = 1_000
"""Kinds and sources that are remembered; past that the oldest are forgotten, and may be logged again early."""

ALL_PER_SEC = 5.0
"""Lines a second of all kinds and sources together, on average: sources are cheap to make up."""


class Throttle:
    """Logs what others cause, at a bounded rate.

    Attributes:
        refusals: What was refused, by reason.
    """

    def __init__(self, log: logging.Logger, monotonic: Callable[[], float]) -> None:
        self._log, self._monotonic = log, monotonic
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        self._left, self._at = ALL_PER_SEC * 4, monotonic()
        self.refusals: Counter[str] = Counter()

    def refused(self, reason: str, source: str, text: str, *arguments: object) -> None:
        """Count a refusal, and log it as `warning` does. `reason`: a word of the program's, never a stranger's."""
        self.refusals[reason] += 1
        self.warning(source, text, *arguments)

    def warning(self, source: str, text: str, *arguments: object) -> None:
        """Log the line, unless one of its kind (`text`) about the source was logged within the minute."""
        self._line(logging.WARNING, source, text, *arguments)

    def info(self, source: str, text: str, *arguments: object) -> None:
        """Log what is no fault of this node, at the same rate."""
        self._line(logging.INFO, source, text, *arguments)

    def _line(self, level: int, source: str, text: str, *arguments: object) -> None:
        now, key = self._monotonic(), (text, source)
        at, left_out = self._seen.pop(key, (now - EVERY_SEC, 0))
        is_due = now - at >= EVERY_SEC and self._has_room(now)
        self._seen[key] = (now, 0) if is_due else (at, left_out + 1)
        if len(self._seen) > SOURCES:
            self._seen.popitem(last=False)
        if is_due:
            more = f" (and {left_out:,} more of this kind since)" if left_out else ""
            self._log.log(level, text + "%s", *arguments, more)

    def _has_room(self, now: float) -> bool:
        self._left = min(ALL_PER_SEC * 4, self._left + (now - self._at) * ALL_PER_SEC)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def snake(name: str) -> str:
    """Return the name of a class as a label of a metric: `NetworkMismatch` as `network_mismatch`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
