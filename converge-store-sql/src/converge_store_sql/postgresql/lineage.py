"""Whether the network that is written to has all that this handle was told is written.

A backup that is put back, and a standby that takes over without the last writes, begin another history under the same
epoch. Others may have passed the revision that we saw before we write again, so that looking at revisions alone would
miss it; a sequence also goes on up to 32 revisions above the last that was given. So each write tells where it was
done: which rows these are, and where in the server's log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from converge.contracts.store import Batch, Committed, Conflict
from converge.model.keys import EPOCH, ID, Key
from converge_store_sql.postgresql.tables import SYNTHETIC, table

WITNESSES = 8
"""How many keys of the last write are remembered: of those some stay as they were written, such as a task's record."""

LOG = "pg_current_wal_insert_lsn(), pg_last_wal_replay_lsn()"
_NO_LOG = "null::pg_lsn, null::pg_lsn"


class Told(NamedTuple):
    """Where a write was done, as the columns of `columns` answer it."""

    rows: str | None
    """The epoch's revision, then what tells its row from one that was put there again; none if there is no epoch."""
    log: int | None
    """Where the server's log stood before the transaction's end was logged."""
    began: int | None
    """Where the log stood when the server had recovered or was promoted; none if it did neither since it started."""


def columns(network: str, *, has_log: bool) -> str:
    """Return the columns that a write answers besides its own; a service may have no `LOG`."""
    rows = f"concat_ws(' ', e.revision, e.tableoid, e.xmin) from {table(network, EPOCH)} e"
    return f"(select {rows} where e.{SYNTHETIC} = 0), {LOG if has_log else _NO_LOG}"


class Lineage:
    """What one handle saw of a network's history."""

    def __init__(self) -> None:
        self.revision: int = 0
        """The greatest that was given to this handle."""
        self.keys: Sequence[Key] = ()
        """Some of what was written at it."""
        self.log: int = 0
        """Where the log stood then, at least."""
        self._rows, self._began = "", 0

    def is_doubtful(self, told: Told, log: int) -> bool:
        """Return whether this may be another history than that of the last write.

        Args:
            told: What a write has answered.
            log: What `log` was before it was sent.
        """
        rows, stood, began = told
        if rows and rows != self._rows and rows.partition(" ")[0] == self._rows.partition(" ")[0]:
            return True  # the same epoch in another row; one that an operator has accepted has another revision
        if stood is not None and stood < log:
            return True
        # What ends after `log` was recovered only if the server's history goes on from beyond.
        return began is not None and began != self._began and began <= self.log

    def is_confirmed(self, batches: Sequence[Batch], outcomes: Sequence[Committed | Conflict]) -> bool:
        """Return whether these found something of the last write as it was: they may have replaced it since."""
        return any(
            type(outcome) is Committed
            and any(revision == self.revision and key in self.keys for key, revision in batch[0])
            for batch, outcome in zip(batches, outcomes, strict=True)
        )

    def met(self, told: Told) -> None:
        """Note the history that is there now."""
        self._rows, self._began = told.rows or self._rows, told.began or 0

    def wrote(self, batches: Sequence[Batch], outcomes: Sequence[Committed | Conflict], told: Told) -> None:
        """Note what was acknowledged."""
        for batch, outcome in zip(reversed(batches), reversed(outcomes), strict=True):
            if type(outcome) is Committed and batch[1]:
                if outcome.revision > self.revision:
                    keys = [key for key, _ in batch[1][:WITNESSES]]
                    # Others may draw that revision again, and write it under a name that they share with us.
                    self.keys = [key for key in keys if ID in key[0].parts.values()] or keys
                    self.revision, self.log = outcome.revision, told.log or 0
                return
