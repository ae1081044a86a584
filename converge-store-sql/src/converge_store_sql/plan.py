"""What one commit or turn asks, sorted by kind of work and by family: the rows that become the arrays of its statement.

A batch's checks fall into two kinds. If the key of a check is deleted by its batch as well, the delete compares the revision itself and thereby
decides the batch: check and delete of one key are one operation, as every finish of a task needs it. One such *deciding* delete is allowed a
batch, for a second one could not be undone if it failed; all other checks lock their rows and are decided before anything is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from converge.contracts.store import ABSENT, LIMITS, Batch, Committed, Conflict, Take
from converge.errors import ValueTooLarge
from converge.model.keys import Family, Key

Row = tuple[Any, ...]


class Work(IntEnum):
    """What a row asks of its family's table, in the order in which a statement does it. A row begins with the parts of its key."""

    SHARE = 0  # (..., revision, number): must be there, and stay so until the end
    LOCK = 1  # (..., revision, number): the same, for a key that this call writes
    ABSENT = 2  # (..., number): must not be there
    DELETE_AT = 3  # (..., revision, batch): delete if at the revision; decides its batch
    INSERT = 4  # (..., batch, value): was absent a moment ago
    PUT = 5  # (..., batch, value)
    DELETE = 6  # (..., batch)


class Shape(NamedTuple):
    """All that the text of a statement depends on; calls of one shape share one prepared statement."""

    work: tuple[tuple[Work, Family], ...]
    has_pairs: bool
    has_windows: bool
    take: TakeShape | None


class TakeShape(NamedTuple):
    """What the text of a take depends on."""

    source: Family
    prefix_length: int
    is_single: bool
    target: Family
    to_length: int
    also: tuple[Family, ...]
    has_checks: bool
    replaces: bool


class Plan:
    """The rows of one call, and what is needed to read its answer."""

    __slots__ = ("_numbers", "batches", "checks", "deciders", "pair_batches", "pair_checks", "rows", "take_checks", "windows")

    def __init__(self, batches: Sequence[Batch], take: Take | None) -> None:
        self.batches = batches
        self.rows: dict[Work, dict[Family, list[Row]]] = {work: defaultdict(list) for work in Work}
        self.checks: list[Key] = []
        self.pair_batches: list[int] = []
        self.pair_checks: list[int] = []
        self.windows: list[tuple[int, int | None, int | None]] = []
        self.deciders: dict[int, Key] = {}
        self._numbers: dict[tuple[Key, int], int] = {}
        for number, batch in enumerate(batches):
            self._add(number, batch)
        self.take_checks = [self._check(Work.SHARE, key, revision) for key, revision in take.checks] if take is not None else []

    def _add(self, number: int, batch: Batch) -> None:
        checks, puts, deletes, window = batch
        decider: Key | None = None
        absent: set[Key] = set()
        decided_at = ABSENT
        if checks:
            deleted, put = set(deletes), {key for key, _ in puts}
            for key, revision in checks:
                if revision == ABSENT:
                    absent.add(key)
                    self._pair(number, self._check(Work.ABSENT, key, revision))
                elif decider is None and key in deleted:
                    decider, decided_at = key, revision
                    self.deciders[number] = key
                else:
                    is_written = key in put or key in deleted
                    self._pair(number, self._check(Work.LOCK if is_written else Work.SHARE, key, revision))
        if window is not None:
            self.windows.append((number, window.at_least, window.at_most))
        self._add_puts(number, puts, absent)
        for key in deletes:
            if key == decider:
                self.rows[Work.DELETE_AT][key[0]].append((*_parts(key), decided_at, number))
            else:
                self.rows[Work.DELETE][key[0]].append((*_parts(key), number))

    def _add_puts(self, number: int, puts: Sequence[tuple[Key, bytes]], absent: set[Key]) -> None:
        rows = self.rows
        for key, value in puts:
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of batch {number} under {key[0]}", len(value), LIMITS.value_bytes)
            if key in absent:
                rows[Work.INSERT][key[0]].append((*_parts(key), number, value))
            else:
                rows[Work.PUT][key[0]].append((*_parts(key), number, value))

    def _check(self, work: Work, key: Key, revision: int) -> int:
        """The number of a check among all of this call; one that several batches share is looked at once."""
        known = self._numbers.get((key, revision))
        if known is not None:
            return known
        number = self._numbers[key, revision] = len(self.checks)
        self.checks.append(key)
        self.rows[work][key[0]].append((*_parts(key), number) if work is Work.ABSENT else (*_parts(key), revision, number))
        return number

    def _pair(self, batch: int, check: int) -> None:
        self.pair_batches.append(batch)
        self.pair_checks.append(check)

    def work(self) -> list[tuple[Work, Family, list[Row]]]:
        """Kinds and families in one order for all callers, the rows of each in key order: who locks in one order cannot deadlock."""
        found = []
        for work, families in self.rows.items():
            for family in sorted(families):
                rows = families[family]
                rows.sort()
                found.append((work, family, rows))
        return found

    def outcomes(self, bad: Sequence[int], late: Sequence[int], missed: Sequence[int], revision: int) -> list[Committed | Conflict]:
        """The answers, from the numbers of failed checks, and of the batches whose window or deciding write failed."""
        if not (bad or late or missed):
            return [Committed(revision)] * len(self.batches)
        failed: dict[int, list[Key]] = defaultdict(list)
        wrong = set(bad)
        for batch, check in zip(self.pair_batches, self.pair_checks, strict=True):
            if check in wrong:
                failed[batch].append(self.checks[check])
        for batch in missed:
            failed[batch].append(self.deciders[batch])
        outside = set(late)
        return [
            Conflict(tuple(failed.get(number, ())), number in outside) if number in failed or number in outside else Committed(revision)
            for number in range(len(self.batches))
        ]


def take_shape(take: Take, *, replaces: bool) -> TakeShape:
    """The shape of a take; `replaces` if the keys that it puts may be there already."""
    first = take.ranges[0].prefix
    return TakeShape(
        source=first[0],
        prefix_length=len(first) - 1,
        is_single=len(take.ranges) == 1,
        target=take.to[0],
        to_length=len(take.to) - 1,
        also=tuple(take.also),
        has_checks=bool(take.checks),
        replaces=replaces,
    )


def _parts(key: Key) -> Row:
    return key[1:] or (0,)
