"""What a call writes, gathered into few statements before its turn comes: under the lock it would hold up everybody."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from converge.builtin.file import statements as sql
from converge.contracts.store import ABSENT, Batch, Key
from converge.model.keys import Family

_ONLY = sql.row(("",))
"""The row of the family without parts."""

_Rows = Mapping[Family, list[tuple[Any, ...]]]


class Missed(Exception):
    """A check that the quick way relied on did not hold: the slow way finds out whose."""


class _Step(NamedTuple):
    """One statement with its values, of which each `width`-th is the revision; nobody knows that before the turn."""

    text: str
    values: list[Any]
    width: int

    def run(self, connection: sqlite3.Connection, revision: int) -> None:
        self.values[self.width - 1 :: self.width] = [revision] * (len(self.values) // self.width)
        connection.execute(self.text, self.values)


class Plan:
    """The statements of a call, gathered by what they do: few of them, whatever the number of batches."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        """Gather the batches.

        Raises:
            Missed: Two of them expect one key at two revisions: one of them fails.
        """
        self._checks: dict[Key, int] = {}
        self._known: set[int] = set()  # checks that are in there, by identity: most of a call's batches share theirs
        self._delete_at: _Rows = defaultdict(list)
        self._delete: _Rows = defaultdict(list)
        absent: _Rows = defaultdict(list)
        put: _Rows = defaultdict(list)
        for batch in batches:
            self._add(batch, absent, put)
        self._put_absent, self._put = list(_steps(sql.put_absent, absent)), list(_steps(sql.put, put))

    def _add(self, batch: Batch, absent: _Rows, put: _Rows) -> None:
        """Add a batch; a check of a key that it deletes, or puts where nothing is, costs no statement of its own."""
        known = self._known
        checks = {check[0]: check for check in batch.checks if id(check) not in known}
        for key in batch.deletes:
            check = checks.pop(key, None)
            if check is None:
                self._delete[key[0]].append(key[1:] or _ONLY)
            else:
                self._delete_at[key[0]].append((*(key[1:] or _ONLY), check[1]))
        for key, value in batch.puts:
            row = (*(key[1:] or _ONLY), value.decode(), None)
            if key in checks and checks[key][1] == ABSENT:
                del checks[key]
                absent[key[0]].append(row)
            else:
                put[key[0]].append(row)
        for key, check in checks.items():
            if self._checks.setdefault(key, check[1]) != check[1]:
                raise Missed
            known.add(id(check))

    def run(self, connection: sqlite3.Connection, revision: int) -> None:
        """Write it all at this revision.

        Raises:
            Missed: A check did not hold.
        """
        for key, expected in self._checks.items():
            row = connection.execute(sql.revision(key[0]), sql.row(key)).fetchone()
            if (ABSENT if row is None else row[0]) != expected:
                raise Missed
        for family, rows in self._delete_at.items():
            if _delete_many(connection, sql.delete_at, family, rows) != len(rows):
                raise Missed
        for family, rows in self._delete.items():
            _delete_many(connection, sql.delete, family, rows)
        try:
            for step in self._put_absent:
                step.run(connection, revision)
        except sqlite3.IntegrityError as error:
            raise Missed from error
        for step in self._put:
            step.run(connection, revision)


def run_many(
    connection: sqlite3.Connection,
    statement: Callable[[Family, int], str],
    family: Family,
    rows: Sequence[tuple[Any, ...]],
) -> int:
    """Run a statement over rows, many at a time; return how many rows it has changed."""
    return sum(
        connection.execute(statement(family, len(some)), list(chain.from_iterable(some))).rowcount
        for some in _pages(rows)
    )


def _pages(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    at = 0
    for size in sql.SIZES:
        while len(rows) - at >= size:
            yield rows[at : at + size]
            at += size


def _steps(statement: Callable[[Family, int], str], rows_of: _Rows) -> Iterator[_Step]:
    for family, rows in rows_of.items():
        for some in _pages(rows):
            yield _Step(statement(family, len(some)), list(chain.from_iterable(some)), len(some[0]))


def _delete_many(
    connection: sqlite3.Connection,
    statement: Callable[[Family, int], str],
    family: Family,
    rows: Sequence[tuple[Any, ...]],
) -> int:
    if not sql.finds_many(family):
        return connection.executemany(statement(family, 1), rows).rowcount
    return run_many(connection, statement, family, rows)
