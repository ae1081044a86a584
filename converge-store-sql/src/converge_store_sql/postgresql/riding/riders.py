"""Wakes that wait for a transaction of a caller's: told once it has committed, forgotten where it was rolled back.

Nobody says when that is, so the server is asked, soon at first and then less often; one question serves them all.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

LEAST_SEC, GREATEST_SEC = 0.005, 0.25
"""Between two questions: a quarter of the age of the youngest transaction, within these."""

KEPT_SEC = 600.0
"""After how long a transaction is no longer waited for: its tasks are found by those who look for themselves."""

STATUS = """select x::text, pg_xact_status(x::text::xid8) from unnest($1::text[]) u(x)"""


class Riders:
    """What to wake once which transaction has committed; belongs to one thread."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, set[str]]] = {}

    def add(self, xid: int, channels: Collection[str]) -> None:
        """Wake these once the transaction has committed."""
        self._waiting.setdefault(xid, (time.monotonic(), set()))[1].update(channels)

    @property
    def pause_sec(self) -> float | None:
        """How long to wait before the next question; None: there is nothing to ask."""
        if not self._waiting:
            return None
        youngest = time.monotonic() - max(began for began, _ in self._waiting.values())
        return min(GREATEST_SEC, max(LEAST_SEC, youngest / 4))

    @property
    def question(self) -> tuple[str, Sequence[Any]]:
        """The statement that asks, and its arguments."""
        return STATUS, [[str(xid) for xid in self._waiting]]

    def heed(self, rows: Sequence[Sequence[Any]]) -> set[str]:
        """Return the channels to wake, by what the server answered."""
        found: set[str] = set()
        for xid, status in rows:
            began, channels = self._waiting[int(xid)]
            if status == "committed":
                found |= channels
            if status != "in progress" or time.monotonic() - began > KEPT_SEC:
                del self._waiting[int(xid)]
        return found
