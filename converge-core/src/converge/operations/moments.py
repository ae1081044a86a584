"""Ages and moments as people type them: `90s`, `15m`, `2h`, `7d`, `2026-01-31`, `2026-01-31T12:00:00+00:00`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from converge.errors import InvalidValue

_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d|w)")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def read_future(flag: str, text: str | None) -> datetime | None:
    """Return a moment so long from now, or the moment itself, in UTC where it names no zone; None for None.

    Raises:
        InvalidValue: It is neither.
    """
    if text is None:
        return None
    expected = "a time from now such as 90s, 15m, 2h or 7d, or a moment such as 2026-01-31T12:00"
    try:
        if found := _AGE.fullmatch(text):
            return datetime.now(UTC) + timedelta(seconds=float(found[1]) * _UNITS[found[2]])
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidValue(flag, text, expected) from None


def read_moment(flag: str, text: str, now: int) -> int:
    """Return store time in microseconds: so long before `now` (from 1970 on), or the moment itself, by default UTC.

    Raises:
        InvalidValue: It is neither.
    """
    if found := _AGE.fullmatch(text):
        return max(0, now - int(float(found[1]) * _UNITS[found[2]] * 1_000_000))
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return max(0, int(moment.timestamp() * 1_000_000))
    except (ValueError, OverflowError):
        raise InvalidValue(
            flag, text, "an age such as 90s, 15m, 2h or 7d, or a moment such as 2026-01-31T12:00"
        ) from None
