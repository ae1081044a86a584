"""Whether the network that is written to has all that this handle was told is written.

A backup that is put back, and a replica that takes over without the last writes, begin another history under the same
epoch. Others may have passed the revision that we saw before we write again, so that looking at revisions alone would
miss it. So each write leaves a witness in the same transaction, a row of this handle's with the revision, and replaces
that of a write before: which is there, unless that write is lost. Writes at the same time have a row each. Any of them
may be the one that is lost, so each write also looks at the rows that no other one is replacing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import anyio

from converge.errors import NotApplied, StoreError, StoreRefused, StoreRolledBack
from converge_store_sql._errors import LOST
from converge_store_sql.mysql.connect import Connections
from converge_store_sql.mysql.plan import Missed
from converge_store_sql.mysql.texts import hexed, listed

TRUSTED_SEC = 86_400.0
"""A witness that was not replaced for so long is begun anew."""

KEPT_SEC, OLD_ROWS = 7 * 86_400, 250
"""Witnesses that were not replaced for so long are removed by who opens the network, so many at a time."""

CLOSE_SEC = 0.5
"""How long removing its own witnesses may hold up a handle that is closed."""


class Witness:
    """One row: that of one write at a time."""

    def __init__(self, table: str) -> None:
        self._table, self._id = table, hexed(secrets.token_bytes(16))
        self.revision: int = 0
        """At which it stands; 0 if that is not known."""
        self.written_at: float = 0.0

        self.others: Sequence[Witness] = ()
        """Those of the writes that had ended when it was lent; they show these or later ones."""

    @property
    def is_trusted(self) -> bool:
        """Whether it must be there."""
        return bool(self.revision) and 0 <= time.time() - self.written_at < TRUSTED_SEC

    def statements(self) -> list[str]:
        """Return the statements that replace it; the last one answers the revision, and whether it and the others stood
        as they must.
        """
        others = [f"(id = {one._id} and r >= {one.revision})" for one in self.others if one.is_trusted]
        found = f"select count(*) from {self._table} where {' or '.join(others)}"
        stand = f" and ({found}) = {len(others)}" if others else ""
        if self.is_trusted:
            return [
                f"update {self._table} set r = last_insert_id(), at = unix_timestamp() where id = {self._id} and r = "
                f"{self.revision}",
                f"select last_insert_id(), row_count() = 1{stand}",
            ]
        return [
            f"insert into {self._table} values ({self._id}, last_insert_id(), unix_timestamp()) on duplicate key "
            "update r = last_insert_id(), at = unix_timestamp()",
            f"select last_insert_id(), 1{stand}",
        ]

    def removal(self) -> str:
        """Return the statement that takes it away."""
        return f"delete from {self._table} where id = {self._id}"


class Lineage:
    """The witnesses of one handle: as many as there were ever writes at the same time."""

    def __init__(self, network: str) -> None:
        self._network, self._table = network, f"{network}_witness"
        self._free: list[Witness] = []
        self._lost = 0

    @contextmanager
    def witness(self) -> Iterator[Witness]:
        """Lend the witness of the last write to the next one, which notes with `wrote` that it was committed."""
        free = self._free
        witness = free.pop() if free else Witness(self._table)
        witness.others = tuple(free)
        try:
            yield witness
        except BaseException as error:
            if not isinstance(error, NotApplied | Missed):
                witness.revision = 0
            raise
        finally:
            free.append(witness)

    def wrote(self, witness: Witness, revision: int, found: int) -> None:
        """Note a write that was committed, and whether it found its witness."""
        if not found:
            self._lost = max(self._lost, witness.revision, *(one.revision for one in witness.others))
        witness.revision, witness.written_at = revision if found else 0, time.time()

    def check(self, where: object) -> None:
        """Raise once if a witness was gone.

        Raises:
            StoreRolledBack: What it stood for is lost.
        """
        if self._lost:
            # Those that are lent now, of writes from before, are not used again: they would tell of the same loss.
            seen, self._lost, self._free = self._lost, 0, []
            raise StoreRolledBack(LOST.format(network=self._network, where=where, seen=seen))

    async def forget_old(self, connections: Connections) -> None:
        """Remove the witnesses of handles that ended without a word. They are looked for without a lock, since that of
        a write that is under way may last; a user who may only read leaves them.

        Raises:
            StoreError: It was not answered.
        """
        old = f"select id from {self._table} where at < unix_timestamp() - {KEPT_SEC} limit {OLD_ROWS}"
        found = [id_ for (id_,) in await connections.read(old)]
        if found:
            with suppress(StoreRefused):
                await connections.run([f"delete from {self._table} where id in {listed(found)}"], writes=True)

    async def close(self, connections: Connections) -> None:
        """Remove the witnesses of this handle, if the server is there."""
        if self._free:
            with suppress(StoreError), anyio.move_on_after(CLOSE_SEC, shield=True):
                await connections.run([witness.removal() for witness in self._free], writes=True)
