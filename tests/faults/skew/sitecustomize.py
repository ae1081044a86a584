"""Sets the wall clock of a Python process off by SKEW_SEC, as on a host whose clock is wrong; Python imports this by
itself where it finds it.
"""

from __future__ import annotations

import datetime
import os
import time

_SKEW_SEC = float(os.environ["SKEW_SEC"])
_time, _time_ns, _gettime, _gettime_ns = time.time, time.time_ns, time.clock_gettime, time.clock_gettime_ns


class _Skewed(datetime.datetime):
    """What `now` says here."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]  # the plain class is what programs expect
        return datetime.datetime.fromtimestamp(time.time(), tz)


time.time = lambda: _time() + _SKEW_SEC
time.time_ns = lambda: _time_ns() + int(_SKEW_SEC * 1e9)
if os.environ.get("SKEW_KERNEL"):  # also what the kernel says, which is one clock for all processes of a host
    time.clock_gettime = lambda clock: _gettime(clock) + (_SKEW_SEC if clock == time.CLOCK_REALTIME else 0)
    time.clock_gettime_ns = lambda clock: (
        _gettime_ns(clock) + (int(_SKEW_SEC * 1e9) if clock == time.CLOCK_REALTIME else 0)
    )
datetime.datetime = _Skewed  # type: ignore[misc]  # for every module that is imported from here on
