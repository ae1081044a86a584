"""Store time of a file: the host's boot-time clock plus an offset kept in the file, which a new boot sets anew."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_id() -> str:
    """Return what tells this boot of the host from another; empty where the host does not say, and then its clock is
    the wall clock.
    """
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class FileClock:
    """Microseconds, the same for every process of the host. It stands still for nobody: a suspended host goes on
    counting.
    """

    def __init__(self, offset: int, *, is_wall: bool) -> None:
        self._offset, self._is_wall = offset, is_wall
        self._latest = 0

    @classmethod
    def load(cls, connection: sqlite3.Connection) -> FileClock:
        """Read the file's offset, in a write transaction; after a boot, rebase it so that time goes on and every lease
        of the old boot has passed.
        """
        boot = boot_id()
        if not boot:
            return cls(0, is_wall=True)
        meta = dict(connection.execute("select name, value from meta where name in ('boot', 'offset')").fetchall())
        if meta.get(b"boot") == boot.encode():
            return cls(meta[b"offset"], is_wall=False)
        # Every expiry of the old boot was set by its clock; time after a rebase begins behind the last of them, and not
        # before the wall clock.
        (latest,) = connection.execute("select max(cast(v as integer)) from f_expiry").fetchone()
        now = max(time.time_ns() // 1_000, (latest or 0) + 1)
        offset = now - time.clock_gettime_ns(_CLOCK) // 1_000
        connection.executemany("insert or replace into meta values (?, ?)", [("boot", boot), ("offset", offset)])
        return cls(offset, is_wall=False)

    def now(self) -> int:
        """Return store time; it does not run backwards."""
        if not self._is_wall:
            return time.clock_gettime_ns(_CLOCK) // 1_000 + self._offset
        self._latest = max(self._latest, time.time_ns() // 1_000)
        return self._latest
