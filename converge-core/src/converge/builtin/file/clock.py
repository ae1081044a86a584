"""Store time of a file: the host's boot-time clock and what the file adds to it, to follow the wall clock.

What is added stands in the file alone. It is read in each write transaction and changed there, so all processes see one
clock. Forward it follows the wall clock at once, and every lease is re-dated by the same step. It never runs backwards
while the file is open anywhere: it stands still for `STILL_SEC` at most, then runs on, ahead of the wall clock.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

import attrs

log = logging.getLogger("converge.store")

STILL_SEC = 15.0
"""How long store time stands still at most after the wall clock was set back: a lease, as it is by default."""

STEP_SEC = 1.0
"""A correction of the wall clock that is smaller is left alone."""

RETENTION_PACE = STILL_SEC / 60
"""After a step forward retention follows by so much more than time passes: a lease a minute. Somebody may notice that
the step was wrong before everything that is kept has gone."""

RETENTION_WAIT_SEC = 7 * 86_400.0
"""And for so long at most: a clock that was decades behind at a boot must not keep everything for ever."""

READ = "select value from meta where name = 'clock'"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_id() -> str:
    """Return what tells this boot of the host from another; empty where the host does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def boot_time() -> int:
    """Return microseconds since the boot; they count while the host is suspended."""
    return time.clock_gettime_ns(_CLOCK) // 1_000


def wall_time() -> int:
    """Return microseconds of UTC, as the host believes."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) // 1_000


@attrs.frozen
class Added:
    """What a file adds to the boot-time clock, all in microseconds.

    Attributes:
        offset: The difference itself.
        still: Store time is at least this: it stands still while the sum is below.
        ahead: How far store time is knowingly ahead of the wall clock.
        step: By how much it was moved forward, as far as retention has not followed.
        stepped_at: When, on the boot-time clock.
    """

    offset: int = 0
    still: int = 0
    ahead: int = 0
    step: int = 0
    stepped_at: int = 0

    @classmethod
    def parse(cls, text: bytes) -> Added:
        """Read what `text` has written."""
        return cls(*map(int, text.split()))

    def text(self) -> str:
        """Return it as the file keeps it."""
        return " ".join(map(str, attrs.astuple(self)))

    def now(self) -> int:
        """Return store time."""
        return max(self.still, boot_time() + self.offset)

    def retention_lag(self) -> int:
        """Return how far behind store time retention is."""
        passed = boot_time() - self.stepped_at
        return max(0, self.step - int(passed * RETENTION_PACE)) if passed < RETENTION_WAIT_SEC * 1_000_000 else 0

    def corrected(self) -> Added | None:
        """Return what is to be added from now on, if the wall clock was corrected."""
        raw = boot_time() + self.offset
        ahead = raw - wall_time()
        step = int(STEP_SEC * 1_000_000)
        if ahead < -step:
            return attrs.evolve(
                self, offset=self.offset - ahead, ahead=0, step=self.retention_lag() - ahead, stepped_at=boot_time()
            )
        if ahead > self.ahead + step:
            still = min(ahead - self.ahead, int(STILL_SEC * 1_000_000))
            return attrs.evolve(
                self, offset=self.offset - still, still=max(self.still, raw), ahead=max(0, ahead - still)
            )
        if ahead < self.ahead - step:
            return attrs.evolve(self, ahead=max(0, ahead))
        return None


class FileClock:
    """The clock as one writing connection has read it last; `read` and `follow` are called in a write transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._text = b""
        self._added = Added()

    def now(self) -> int:
        """Return store time."""
        return self._added.now()

    def load(self, *, is_alone: bool) -> None:
        """Read what the file adds. After a boot time goes on from the wall clock, or behind every lease of that boot.
        Who has the file open alone sets time back to a wall clock that was set back.
        """
        meta = dict(
            self._connection.execute("select name, value from meta where name in ('boot', 'offset')").fetchall()
        )
        row = self._connection.execute(READ).fetchone()
        if row is not None and meta.get(b"boot") == boot_id().encode():
            if is_alone:
                self._set_back(Added.parse(row[0]))
            self.read(self._text or row[0])
            return
        if row is None and b"offset" in meta and meta.get(b"boot") == boot_id().encode():  # of a release before
            self._write(Added(offset=meta[b"offset"]))
            return
        (latest,) = self._connection.execute("select max(cast(v as integer)) from f_expiry").fetchone()
        now = max(wall_time(), (latest or 0) + 1)
        self._connection.execute("insert or replace into meta values ('boot', ?)", [boot_id()])
        self._write(Added(offset=now - boot_time(), ahead=max(0, now - wall_time())))

    def _set_back(self, added: Added) -> None:
        """Set store time back to the wall clock: nobody else has the file open to see it, and every lease has ended."""
        by = added.now() - wall_time()
        if by > STEP_SEC * 1_000_000:
            log.warning(
                "store time was %.0f s ahead of the wall clock, and is set back: no other process has the store open",
                by / 1e6,
            )
            self._write(Added(offset=wall_time() - boot_time()))
            self._connection.execute("update f_expiry set v = '1' where cast(v as integer) > ?", [self._added.now()])

    def read(self, text: bytes) -> None:
        """Take over what the file says now, and correct it if the wall clock was corrected."""
        if text != self._text:
            self._text, self._added = text, Added.parse(text)
        corrected = self._added.corrected()
        if corrected is not None:
            self._follow(corrected)

    def _follow(self, corrected: Added) -> None:
        before, self._added = self._added, corrected
        step = corrected.offset - before.offset
        if step > 0:
            self._connection.execute("update f_expiry set v = cast(cast(v as integer) + ? as text)", [step])
            log.warning(
                "the wall clock is %.0f s ahead of store time, which follows; leases are not affected", step / 1e6
            )
        elif step < 0:
            text = "the wall clock was set back: store time stands still for %.0f s, and is then %.0f s ahead of it"
            log.warning(text, -step / 1e6, corrected.ahead / 1e6)
        else:
            log.warning("store time is %.0f s ahead of the wall clock now", corrected.ahead / 1e6)
        self._write(corrected)

    def _write(self, added: Added) -> None:
        self._added = added
        self._text = added.text().encode()
        rows = [("clock", added.text()), ("offset", added.offset)]  # the second for releases before this
        self._connection.executemany("insert or replace into meta values (?, ?)", rows)
