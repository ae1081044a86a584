"""What one commit or turn asks, sorted by kind of work and by family: the rows that become the arrays of its statement.

A batch's checks fall into two kinds. If the key of a check is deleted by its batch as well, the delete compares the
revision itself and thereby decides the batch: check and delete of one key are one operation, as every finish of a task
needs it. One such
*deciding* delete is allowed a batch, for a second one could not be undone if it failed; all other checks lock their
rows and are decided before anything is written.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from converge.contracts.store import ABSENT, LIMITS, Batch, Committed, Conflict, Take
from converge.errors import ValueTooLarge
from converge.model.keys import FAMILIES, Family, Key
from converge_store_sql.postgresql.literals import literal
from converge_store_sql.postgresql.tables import SHARED

Row = tuple[Any, ...]
Outcome = Committed | Conflict


class Work(IntEnum):
    """What a row asks of its family's table, in the order in which a statement does it. A row begins with the parts of
    its key.
    """

    SHARE = 0  # (..., revision, check): must be there, and stay so until the end
    LOCK = 1  # (..., revision, check): the same, for a key that this call writes
    ABSENT = 2  # (..., check): must not be there
    DELETE_AT = 3  # (..., revision, batch): delete if at the revision; decides its batch
    INSERT = 4  # (..., code, value): put, if it is absent; the code holds the number of the batch and that of the put
    PUT = 5  # (..., batch, value)
    DELETE = 6  # (..., batch)


CODE_BITS = 11
"""Bits of a code that hold the number of a put within its batch: as many as `LIMITS.batch_ops` needs."""


GATES = 64
"""Gates of a network: few enough that a call never fills the server's table of locks, many enough that a writer holds
up few others.
"""

FEW = 16
"""Up to so many keys a list is searched faster than a set is made."""


class Part(NamedTuple):
    """One kind of work on one family."""

    work: Work
    family: Family
    has_values: bool


class Shape(NamedTuple):
    """All that the text of a statement depends on; calls of one shape share one prepared statement."""

    parts: tuple[Part, ...]
    has_gates: bool
    has_runs: bool
    has_windows: bool
    take: TakeShape | None
    replaces: bool
    """Whether keys that are as a rule new, those that a take puts among them, may be there already."""


# An enumeration's member is looked up and hashed in Python; these run once or more for every task.
_DELETE_AT, _INSERT, _PUT, _DELETE = (int(work) for work in (Work.DELETE_AT, Work.INSERT, Work.PUT, Work.DELETE))
_VALUED = (Work.INSERT, Work.PUT)


class TakeShape(NamedTuple):
    """What the text of a take depends on."""

    source: Family
    prefix_length: int
    is_single: bool
    target: Family
    to_length: int
    also: tuple[Family, ...]
    has_checks: bool


class Plan:
    """The rows of one call, and what is needed to read its answer."""

    __slots__ = ("_latest", "_numbers", "batches", "checks", "deciders", "rows", "runs", "take_checks", "windows")

    def __init__(self, batches: Sequence[Batch], take: Take | None) -> None:
        self.batches: Sequence[Batch] = batches
        self.rows: list[dict[Family, list[Row]]] = [defaultdict(list) for _ in Work]
        self.checks: list[Key] = []
        self.runs: list[list[int]] = []  # first batch, last batch, check: what most batches of a call share is one run
        self._latest: dict[int, list[int]] = {}
        self.windows: list[tuple[int, int | None, int | None]] = []
        self.deciders: dict[int, Key] = {}
        self._numbers: dict[tuple[Key, int], int] = {}
        for number, batch in enumerate(batches):
            self._add(number, batch)
        self.take_checks: list[int] = (
            [self._check(Work.SHARE, key, revision) for key, revision in take.checks] if take is not None else []
        )

    def _add(self, number: int, batch: Batch) -> None:
        checks, puts, deletes, window = batch
        absent: list[Key] = []
        decider: Key | None = None
        gone = deletes if len(deletes) < FEW else frozenset(deletes)
        for key, revision in checks:
            if revision == ABSENT:
                absent.append(key)
            elif decider is None and key in gone:
                decider = self.deciders[number] = key
                self.rows[_DELETE_AT][key[0]].append((*key[1:], revision, number))
            else:
                work = Work.LOCK if key in gone or key in {put for put, _ in puts} else Work.SHARE
                self._pair(number, self._check(work, key, revision))
        if window is not None:
            self.windows.append((number, window.at_least, window.at_most))
        self._add_puts(number, puts, absent)
        for key in deletes:
            if key != decider:
                self.rows[_DELETE][key[0]].append((*key[1:], number))

    def _add_puts(self, number: int, puts: Sequence[tuple[Key, bytes]], absent: Sequence[Key]) -> None:
        unplaced = set(absent)
        for at, (key, value) in enumerate(puts):
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of batch {number} under {key[0]}", len(value), LIMITS.value_bytes)
            if unplaced and key in unplaced:
                unplaced.discard(key)
                self.rows[_INSERT][key[0]].append((*key[1:], number << CODE_BITS | at, value))
            else:
                self.rows[_PUT][key[0]].append((*key[1:], number, value))
        for key in (
            unplaced
        ):  # without a put of the key this is decided by what is there at this moment, and nothing keeps it so
            self._pair(number, self._check(Work.ABSENT, key, ABSENT))

    def _check(self, work: Work, key: Key, revision: int) -> int:
        """Return the number of a check among all of this call; one that several batches share is looked at once."""
        known = self._numbers.get((key, revision))
        if known is not None:
            return known
        number = self._numbers[key, revision] = len(self.checks)
        self.checks.append(key)
        self.rows[work][key[0]].append((*key[1:], number) if work is Work.ABSENT else (*key[1:], revision, number))
        return number

    def _pair(self, batch: int, check: int) -> None:
        run = self._latest.get(check)
        if run is not None and run[1] >= batch - 1:
            run[1] = batch
        else:
            run = self._latest[check] = [batch, batch, check]
            self.runs.append(run)

    def work(self) -> list[tuple[Part, list[Any]]]:
        """Return kinds and families in one order for all callers, with their arguments, in key order: who locks in one
        order cannot deadlock.
        """
        found = []
        for work, families in zip(Work, self.rows, strict=True):
            for family in sorted(families):
                rows = families[family]
                rows.sort()
                columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
                # Most families that every task passes hold no values, and an empty array costs as much as a full one.
                values = [columns.pop()] if work in _VALUED else []
                has_values = bool(values) and any(values[0])
                kinds = [*family.parts.values(), *[None] * (len(columns) - family.arity)]
                arguments: list[Any] = [] if family.parts else [literal(None, [0] * len(rows))]
                arguments += map(literal, kinds, columns)
                found.append((Part(work, family, has_values), arguments + values if has_values else arguments))
        return found

    def gates(self) -> list[tuple[int, bool]]:
        """Return the gates that this call passes, in one order for all callers, and whether alone: who writes a key
        that others check waits for them there, and those who come later wait behind it.
        """
        found: dict[int, bool] = {}
        for work in (Work.SHARE, Work.LOCK, Work.DELETE_AT, Work.PUT, Work.DELETE):
            for family in SHARED.intersection(self.rows[work]):
                arity = len(FAMILIES[family].parts)
                for row in self.rows[work][FAMILIES[family]]:
                    gate = zlib.crc32(repr((family, *row[:arity])).encode()) % GATES
                    found[gate] = found.get(gate, False) or work is not Work.SHARE
        return sorted(found.items())

    def outcomes(
        self, bad: Sequence[int], late: Sequence[int], there: Sequence[int], missed: Sequence[int], revision: int
    ) -> list[Outcome]:
        """Return the answers.

        Args:
            bad: Numbers of the checks that failed.
            late: Batches whose window failed.
            there: Codes of the puts whose key was not absent.
            missed: Batches whose deciding delete found nothing.
            revision: Of all that was written.
        """
        if not (bad or late or there or missed):
            return [Committed(revision)] * len(self.batches)
        failed: dict[int, list[Key]] = defaultdict(list)
        wrong = set(bad)
        for first, last, check in self.runs:
            if check in wrong:
                for batch in range(first, last + 1):
                    failed[batch].append(self.checks[check])
        for code in there:
            batch = code >> CODE_BITS
            failed[batch].append(self.batches[batch].puts[code & (1 << CODE_BITS) - 1][0])
        for batch in missed:
            failed[batch].append(self.deciders[batch])
        outside = set(late)
        return [
            Conflict(tuple(failed.get(number, ())), number in outside)
            if number in failed or number in outside
            else Committed(revision)
            for number in range(len(self.batches))
        ]


def take_shape(take: Take) -> TakeShape:
    """Return the shape of a take."""
    first = take.ranges[0].prefix
    return TakeShape(
        source=first[0],
        prefix_length=len(first) - 1,
        is_single=len(take.ranges) == 1,
        target=take.to[0],
        to_length=len(take.to) - 1,
        also=tuple(take.also),
        has_checks=bool(take.checks),
    )
