"""What one commit or turn asks of MariaDB or MySQL, as lists of statements.

First as a bet that every check holds: all in one trip, where statements count what they found, and a *guard* fails on
purpose (a key that is there already) if one did not find what it must. Then nothing was written, and the call is run
again *carefully*: it locks and reads what is checked, decides here, and writes what is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from converge.contracts.store import ABSENT, LIMITS, Batch, Check, Committed, Conflict, Take
from converge.errors import InvalidValue, ValueTooLarge
from converge.model.keys import LANE, Family, Key, check_key, pack
from converge_store_sql.mysql.texts import NOW, hexed, listed, pages, source, table

_ByFamily = dict[Family, dict[int, list[bytes]]]
"""Packed keys by family and by the revision at which they must be."""


class Missed(Exception):
    """The bet cannot even be written down: two batches expect one key at two revisions, say."""


class Plan:
    """The statements of one call; made once, asked for each try."""

    def __init__(self, network: str, batches: Sequence[Batch], take: Take | None) -> None:
        self._network = network
        self.batches: Sequence[Batch] = batches
        self.take: Take | None = take
        _check(batches)

    def bet(self) -> list[str]:
        """Return the statements that apply all batches, or fail; then the revision can be selected.

        Raises:
            Missed: It cannot be done this way.
        """
        sorted_ = _Sorted(self.batches, self.take)
        statements, conditions = ["start transaction"], list[str]()
        for is_written, found in ((False, sorted_.shared), (True, sorted_.locked)):
            for where, family, count in _conditions(found):
                name, lock = f"@c{len(conditions)}", _lock(family, is_written=is_written)
                statements.append(
                    f"select count(*) into {name} from {source(self._network, family)} where {where} {lock}"
                )
                conditions.append(f"{name} <> {count}")
        for family in sorted(sorted_.deleted_at):
            at = {key: revision for revision, some in sorted_.deleted_at[family].items() for key in some}
            for keys in pages(sorted(at)):
                name = f"@c{len(conditions)}"
                text = delete(self._network, family, keys, [at[key] for key in keys])
                statements += [text, f"set {name} = row_count()"]
                conditions.append(f"{name} <> {len(keys)}")
        conditions += self._windows(statements)
        if conditions:
            text = f"insert into {self._network}_guard select 0 from dual where {' or '.join(conditions)}"
            statements.append(text)
        return statements + self._writes(sorted_)

    def look(self) -> list[str]:
        """Return the statements that lock and read what is checked; the last one answers store time."""
        written = {key for batch in self.batches for key in (*batch.deletes, *(key for key, _ in batch.puts))}
        keys: dict[tuple[Family, str], dict[bytes, None]] = defaultdict(dict)
        for key, revision in self._all_checks():
            lock = _lock(key[0], is_written=key in written, is_absent=revision == ABSENT)
            keys[key[0], lock][pack(key)] = None
        statements, families = ["start transaction"], self._families()
        for family, lock in sorted(keys):
            name = source(self._network, family)
            for some in pages(sorted(keys[family, lock])):
                number = families.index(family)
                statements.append(f"select {number}, k, r from {name} where k in {listed(some)} {lock}")
        return [*statements, f"select {NOW}"]

    def revisions(self, answers: Sequence[Sequence[Sequence[Any]]]) -> Mapping[tuple[str, bytes], int]:
        """Return what `look` found, by family and packed key."""
        families = self._families()
        return {(families[row[0]], row[1]): row[2] for rows in answers for row in rows}

    def decide(self, found: Mapping[tuple[str, bytes], int], now: int) -> list[Conflict | None]:
        """Return which batches fail, and by what."""
        outcomes: list[Conflict | None] = []
        for batch in self.batches:
            failed = self.failed(batch.checks, found)
            window = batch.window
            is_out = window is not None and not (
                (window.at_least is None or now >= window.at_least)
                and (window.at_most is None or now <= window.at_most)
            )
            outcomes.append(Conflict(failed, is_out) if failed or is_out else None)
        return outcomes

    @staticmethod
    def failed(checks: Sequence[Check], found: Mapping[tuple[str, bytes], int]) -> tuple[Key, ...]:
        """Return the keys whose checks do not hold."""
        return tuple(key for key, expected in checks if found.get((key[0], pack(key)), ABSENT) != expected)

    def write(self, outcomes: Sequence[Conflict | None]) -> list[str]:
        """Return the statements that write the batches that did not fail, whose rows are locked."""
        left = [batch._replace(checks=()) for batch, failed in zip(self.batches, outcomes, strict=True) if not failed]
        absent = {
            key
            for batch, failed in zip(self.batches, outcomes, strict=True)
            if not failed
            for key, expected in batch.checks
            if expected == ABSENT
        }
        return self._writes(_Sorted(left, None, absent)) if left else []

    @staticmethod
    def outcomes(failed: Sequence[Conflict | None], revision: int) -> list[Committed | Conflict]:
        """Return the answers to the batches."""
        return [conflict or Committed(revision) for conflict in failed]

    def _families(self) -> list[Family]:
        return sorted({key[0] for key, _ in self._all_checks()})

    def _all_checks(self) -> Iterable[Check]:
        for batch in self.batches:
            yield from batch.checks
        if self.take is not None:
            yield from self.take.checks

    def _windows(self, statements: list[str]) -> list[str]:
        windows = {batch.window for batch in self.batches if batch.window is not None}
        if windows:
            statements.append(f"set @now = {NOW}")  # after all that waits for a lock
        terms = [f"@now < {window.at_least}" for window in windows if window.at_least is not None]
        return terms + [f"@now > {window.at_most}" for window in windows if window.at_most is not None]

    def _writes(self, sorted_: _Sorted) -> list[str]:
        statements = []
        for family in sorted(sorted_.deleted):
            for some in pages(sorted(sorted_.deleted[family])):
                statements.append(delete(self._network, family, some))
        statements += draw(self._network)
        for family in sorted(sorted_.absent):
            statements += insert(self._network, family, sorted_.absent[family])
        for family in sorted(sorted_.put):
            statements += upsert(self._network, family, sorted_.put[family])
        return statements


def _lock(family: Family, *, is_written: bool, is_absent: bool = False) -> str:
    """Return the clause that locks what is checked. A lane that a long transaction relies on is held by it: who would
    close it finds it changed, and does not wait, since all who submit to the lane would wait behind; who would open it
    sees it without a lock, and of several the key lets one.
    """
    if not is_written:
        return "lock in share mode"
    if family == LANE and is_absent:
        return ""
    return "for update skip locked" if family == LANE else "for update"


def delete(network: str, family: Family, keys: Sequence[bytes], revisions: Sequence[int] | None = None) -> str:
    """Return the statement that deletes rows by key, each at its revision if these are given.

    A list after `in`, and every hint, leave the planner free to read, and so to lock, all of a small table; joined to
    the keys each row is one look-up.
    """
    if revisions is None:
        rows, match = [f"select {hexed(key)} k" for key in keys], ""
    else:
        rows = [f"select {hexed(key)} k, {revision} r" for key, revision in zip(keys, revisions, strict=True)]
        match = " and t.r = q.r"
    wanted = " union all ".join(rows)
    return f"delete t from ({wanted}) q straight_join {table(network, family)} t on t.k = q.k{match}"


def draw(network: str) -> list[str]:
    """Return the statements that draw a revision, `last_insert_id()`. The counter is never set back, not by a
    rollback and not by a restart, and belongs to the same transaction's log, so it is as durable as what it numbers.
    """
    return [
        f"insert into {network}_revision values (null)",
        f"delete from {network}_revision where id = last_insert_id()",
    ]


_BYTES = 1_000_000
"""So much text one statement inserts, unless a single row has more."""


def insert(network: str, family: Family, rows: Mapping[bytes, bytes], more: str = "") -> list[str]:
    """Return the statements that insert rows; the key of one that is there makes them fail."""
    found, some, size = [], list[str](), 0
    for key in sorted(rows):
        row = f"({hexed(key)},{hexed(rows[key])},last_insert_id())"
        if some and size + len(row) > _BYTES:
            found.append(some)
            some, size = [], 0
        some.append(row)
        size += len(row)
    found.append(some)
    return [f"insert into {table(network, family)} values {','.join(some)}{more}" for some in found]


def upsert(network: str, family: Family, rows: Mapping[bytes, bytes]) -> list[str]:
    """Return the statements that put rows, whether they are there or not. What was put at a greater revision since
    this one was drawn stays: this call came before."""
    newer = " on duplicate key update v = if(r < values(r), values(v), v), r = greatest(r, values(r))"
    return insert(network, family, rows, newer)


class _Sorted:
    """The operations of batches by what is to be done, by family."""

    def __init__(self, batches: Sequence[Batch], take: Take | None, absent: Iterable[Key] = ()) -> None:
        self.shared: _ByFamily = defaultdict(lambda: defaultdict(list))
        self.locked: _ByFamily = defaultdict(lambda: defaultdict(list))
        self.deleted_at: _ByFamily = defaultdict(lambda: defaultdict(list))
        self.deleted: dict[Family, list[bytes]] = defaultdict(list)
        self.absent: dict[Family, dict[bytes, bytes]] = defaultdict(dict)
        self.put: dict[Family, dict[bytes, bytes]] = defaultdict(dict)
        self._seen: dict[Key, int] = {}
        self._known_absent = set(absent)
        for batch in batches:
            self._add(batch)
        for key, revision in take.checks if take is not None else ():
            self._check(self.shared, key, revision)

    def _add(self, batch: Batch) -> None:
        checks = dict(batch.checks)
        if len(checks) != len(batch.checks) and len(set(batch.checks)) != len(checks):
            raise Missed
        for key in batch.deletes:
            revision = checks.pop(key, None)
            if revision is None:
                self.deleted[key[0]].append(pack(key))
            elif key[0] == LANE:
                raise Missed  # a delete would wait for who relies on the lane
            else:
                self._check(self.deleted_at, key, revision)
        for key, value in batch.puts:
            revision = checks.pop(key, None)
            is_new = revision == ABSENT or key in self._known_absent
            (self.absent if is_new else self.put)[key[0]][pack(key)] = value
            if revision:
                self._check(self.locked, key, revision)
        for key, revision in checks.items():
            self._check(self.shared, key, revision)

    def _check(self, kind: _ByFamily, key: Key, revision: int) -> None:
        seen = self._seen.setdefault(key, revision)
        if seen != revision or revision == ABSENT:
            raise Missed
        packed = pack(key)
        some = kind[key[0]][revision]
        if kind is not self.shared or packed not in some:
            some.append(packed)


def _conditions(found: _ByFamily) -> Iterable[tuple[str, Family, int]]:
    """Return for each list of keys its condition, its family, and how many rows it must find."""
    for family in sorted(found):
        alone = list[tuple[bytes, int]]()
        for revision, keys in found[family].items():
            if len(keys) == 1:
                alone.append((keys[0], revision))
                continue
            for some in pages(sorted(keys)):
                yield f"k in {listed(some)} and r = {revision}", family, len(some)
        for at in range(0, len(alone), 100):
            some_alone = sorted(alone[at : at + 100])
            keys_in = f"k in {listed(key for key, _ in some_alone)}"
            each = " or ".join(f"(k = {hexed(key)} and r = {revision})" for key, revision in some_alone)
            yield f"{keys_in} and ({each})", family, len(some_alone)


def _check(batches: Sequence[Batch]) -> None:
    for batch in batches:
        for key, value in batch.puts:
            check_key(key)
            if len(value) > LIMITS.value_bytes:
                raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
        for key in batch.deletes:
            check_key(key)
        for key, revision in batch.checks:
            check_key(key)
            if type(revision) is not int:
                raise InvalidValue("revision", revision, "an integer")
