"""One connection to the file: batches and takes as one transaction each. Synchronous; `worker.py` runs it in a thread."""

from __future__ import annotations

import heapq
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from converge.builtin.file import statements as sql
from converge.builtin.file._errors import translated
from converge.builtin.file.clock import FileClock
from converge.builtin.file.turnstile import Turnstile
from converge.contracts.store import ABSENT, Batch, Committed, Conflict, Entry, Key, Prefix, Range, Rest, Take, Taken, Turned, Window
from converge.errors import SchemaTooNew, StoreRefused
from converge.model.keys import NAME, Family

BUSY_MS = 5_000
"""SQLite's own wait for a lock: only programs that do not use the turnstile make it wait at all."""


class _Missed(Exception):
    """A check that the quick way relied on did not hold: the slow way finds out whose."""


def connect(path: str) -> sqlite3.Connection:
    """Open the file with full durability: a commit is on disk when it returns."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    connection.text_factory = bytes  # values are bytes in the contract; decoding them to text and back would cost a third of a scan
    connection.execute(f"pragma busy_timeout = {BUSY_MS}")
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    return connection


class Database:
    """A writing connection with its place in the turnstile."""

    def __init__(self, path: str) -> None:
        with translated(path):
            self._connection = connect(path)
            self._turnstile = Turnstile(path)
            self.clock = self._prepare(path)

    def _prepare(self, path: str) -> FileClock:
        with self._turnstile.turn(), _transaction(self._connection):
            row = self._connection.execute("select count(*) from sqlite_master where name = 'meta'").fetchone()
            tables = self._connection.execute("select count(*) from sqlite_master where type = 'table'").fetchone()
            if not row[0] and tables[0]:
                raise StoreRefused(f"{path} is a database of another program; choose another path")
            if not row[0]:
                for statement in sql.create():
                    self._connection.execute(statement)
                self._connection.executemany("insert into meta values (?, ?)", [("schema", sql.SCHEMA), ("revision", 0)])
            (schema,) = self._connection.execute("select value from meta where name = 'schema'").fetchone() or (None,)
            if schema is None or schema > sql.SCHEMA:
                raise SchemaTooNew(f"{path}: its tables have version {schema}, this release knows {sql.SCHEMA}; upgrade it")
            return FileClock.load(self._connection)

    def close(self) -> None:
        """Close the connection and the locks."""
        self._connection.close()
        self._turnstile.close()

    def turn(self, batches: Sequence[Batch], take: Take | None, may_begin: Callable[[], bool]) -> Turned | None:
        """Apply the batches, then the take, in one transaction; None if the caller gave up while this waited for its turn."""
        with translated("the store's file"), self._turnstile.turn():
            if not may_begin():
                return None
            try:
                with _transaction(self._connection):
                    return self._turn(batches, take, self._quickly)
            except _Missed:
                with _transaction(self._connection):
                    return self._turn(batches, take, self._slowly)

    def _turn(self, batches: Sequence[Batch], take: Take | None, apply: Callable[[Sequence[Batch], int], list[Committed | Conflict]]) -> Turned:
        outcomes = apply(batches, self._next_revision()) if batches else []
        return Turned(outcomes, None if take is None else self._take(take))

    def _next_revision(self) -> int:
        (revision,) = self._connection.execute("update meta set value = value + 1 where name = 'revision' returning value").fetchone()
        return int(revision)

    def _quickly(self, batches: Sequence[Batch], revision: int) -> list[Committed | Conflict]:
        """Apply all as one set, betting that every check holds: a few statements a family, whatever the number of batches."""
        plan = _Plan(revision)
        for batch in batches:
            if batch.window is not None and not self._is_inside(batch.window):
                raise _Missed
            plan.add(batch)
        plan.run(self._connection)
        return [Committed(revision)] * len(batches)

    def _slowly(self, batches: Sequence[Batch], revision: int) -> list[Committed | Conflict]:
        outcomes: list[Committed | Conflict] = []
        for batch in batches:
            failed = tuple(key for key, expected in batch.checks if self._revision(key) != expected)
            is_out = batch.window is not None and not self._is_inside(batch.window)
            if failed or is_out:
                outcomes.append(Conflict(failed, is_out))
                continue
            for key in batch.deletes:
                self._connection.execute(sql.delete(key[0]), _row(key))
            for key, value in batch.puts:
                self._connection.execute(sql.put(key[0]), (*_row(key), value.decode(), revision))
            outcomes.append(Committed(revision))
        return outcomes

    def _revision(self, key: Key) -> int:
        row = self._connection.execute(sql.revision(key[0]), _row(key)).fetchone()
        return ABSENT if row is None else int(row[0])

    def _is_inside(self, window: Window) -> bool:
        now = self.clock.now()
        return (window.at_least is None or now >= window.at_least) and (window.at_most is None or now <= window.at_most)

    def _take(self, take: Take) -> Taken | Conflict:
        failed = tuple(key for key, expected in take.checks if self._revision(key) != expected)
        if failed:
            return Conflict(failed)
        rests, prefixes, heads = self._choose(take)
        now = self.clock.now()
        if not rests:
            return Taken(0, (), (), heads, now)
        family, to, revision = take.ranges[0].prefix[0], take.to[0], self._next_revision()
        self._connection.executemany(sql.delete(family), [prefix[1:] + rest for prefix, rest in zip(prefixes, rests, strict=True)])
        start, value = take.to[1:], str(now)
        self._connection.executemany(sql.put(to), [(*start, *rest, *take.tail, value, revision) for rest in rests])
        return Taken(revision, rests, [self._also(take.also, rest[-1]) for rest in rests], heads, now)

    def _choose(self, take: Take) -> tuple[list[Rest], list[Prefix], list[Rest | None]]:
        """Merge the ranges' cursors, which read no further than they are asked."""
        cursors = [self._rests(range_) for range_ in take.ranges]
        heap = [(rest, number) for number, cursor in enumerate(cursors) if (rest := next(cursor, None)) is not None]
        heapq.heapify(heap)
        rests: list[Rest] = []
        prefixes: list[Prefix] = []
        while heap and len(rests) < take.limit:
            rest, number = heap[0]
            rests.append(rest)
            prefixes.append(take.ranges[number].prefix)
            following = next(cursors[number], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following, number))
        heads: list[Rest | None] = [None] * len(cursors)
        for rest, number in heap:
            heads[number] = rest
        return rests, prefixes, heads

    def _rests(self, range_: Range) -> Iterator[Rest]:
        prefix, after = range_.prefix, range_.after
        statement = sql.heads(prefix[0], len(prefix) - 1, after is not None)
        return iter(self._connection.execute(statement, prefix[1:] + (after or ())))

    def _also(self, families: Sequence[Family], id_: bytes) -> list[bytes | None]:
        rows = [self._connection.execute(sql.get(family), (id_,)).fetchone() for family in families]
        return [None if row is None else row[0] for row in rows]


class Reader:
    """A reading connection: in WAL mode it waits for no writer, so it is used where it is called."""

    def __init__(self, path: str) -> None:
        with translated(path):
            self._connection = connect(path)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, keys: Sequence[Key]) -> list[Entry | None]:
        """Value and revision of each key, all from one snapshot."""
        with self._snapshot(len(keys)):
            found: list[Entry | None] = []
            for key in keys:
                row = self._connection.execute(sql.get(key[0]), _row(key)).fetchone()
                found.append(None if row is None else Entry(key, row[0], row[1]))
            return found

    def scan(self, ranges: Sequence[Range]) -> list[list[Entry]]:
        """The entries of each range, all from one snapshot."""
        with self._snapshot(len(ranges)):
            return [self._scan(range_) for range_ in ranges]

    def _scan(self, range_: Range) -> list[Entry]:
        family, prefix = range_.prefix[0], range_.prefix[1:]
        statement = sql.scan(family, len(prefix), range_.after is not None)
        rows = self._connection.execute(statement, prefix + (range_.after or ()))
        decode = _decoder(family)
        return [Entry((family, *decode(row[:-2])), row[-2], row[-1]) for row in islice(rows, range_.limit)]

    def count(self, prefix: Prefix) -> int:
        """How many keys are under a prefix."""
        with translated("the store's file"):
            (total,) = self._connection.execute(sql.count(prefix[0], len(prefix) - 1), prefix[1:]).fetchone()
            return int(total)

    @contextmanager
    def _snapshot(self, statements: int) -> Iterator[None]:
        """Several statements see what one moment saw, so that no reader meets half a batch; one statement does so by itself."""
        with translated("the store's file"):
            if statements < 2:
                yield
                return
            self._connection.execute("begin")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("rollback")

    def data_version(self) -> int:
        """A number that changes when another connection commits."""
        with translated("the store's file"):
            (version,) = self._connection.execute("pragma data_version").fetchone()
            return int(version)


class _Plan:
    """The statements of a call, gathered by what they do, to be run a set at a time."""

    def __init__(self, revision: int) -> None:
        self._revision = revision
        self._checks: dict[Key, int] = {}
        self._delete_at: defaultdict[Family, list[tuple[Any, ...]]] = defaultdict(list)
        self._delete: defaultdict[Family, list[tuple[Any, ...]]] = defaultdict(list)
        self._put_absent: defaultdict[Family, list[tuple[Any, ...]]] = defaultdict(list)
        self._put: defaultdict[Family, list[tuple[Any, ...]]] = defaultdict(list)

    def add(self, batch: Batch) -> None:
        """Add a batch; a check of a key that the batch itself deletes, or puts where nothing is, costs no statement of its own."""
        checks = dict(batch.checks)
        for key in batch.deletes:
            expected = checks.pop(key, None)
            if expected is None:
                self._delete[key[0]].append(_row(key))
            else:
                self._delete_at[key[0]].append((*_row(key), expected))
        revision = self._revision
        for key, value in batch.puts:
            row = (*_row(key), value.decode(), revision)
            if checks.get(key) == ABSENT:
                del checks[key]
                self._put_absent[key[0]].append(row)
            else:
                self._put[key[0]].append(row)
        for key, expected in checks.items():
            if self._checks.setdefault(key, expected) != expected:
                raise _Missed  # two batches expect one key at two revisions: one of them fails

    def run(self, connection: sqlite3.Connection) -> None:
        """Run it.

        Raises:
            _Missed: A check did not hold.
        """
        for key, expected in self._checks.items():
            row = connection.execute(sql.revision(key[0]), _row(key)).fetchone()
            if (ABSENT if row is None else row[0]) != expected:
                raise _Missed
        for family, rows in self._delete_at.items():
            if connection.executemany(sql.delete_at(family), rows).rowcount != len(rows):
                raise _Missed
        for family, rows in self._delete.items():
            connection.executemany(sql.delete(family), rows)
        for family, rows in self._put_absent.items():
            try:
                connection.executemany(sql.put_absent(family), rows)
            except sqlite3.IntegrityError as error:
                raise _Missed from error
        for family, rows in self._put.items():
            connection.executemany(sql.put(family), rows)


class _transaction:
    """`begin immediate` ... `commit`, or `rollback` if anything is raised or nothing was changed: an empty take writes nothing to the disk.

    A class, since a generator costs more than the statements of a small call.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("begin immediate")
        self._changes = self._connection.total_changes

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None and self._connection.total_changes != self._changes:
            self._connection.execute("commit")
        elif self._connection.in_transaction:
            self._connection.execute("rollback")


def _row(key: Key) -> tuple[Any, ...]:
    return key[1:] or (0,)


def _decoder(family: Family) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Names come back as bytes, since the connection gives text as bytes."""
    if not family.parts:
        return lambda row: ()
    at = [index for index, part in enumerate(family.parts.values()) if part is NAME]
    if not at:
        return lambda row: row
    return lambda row: tuple(value.decode() if index in at else value for index, value in enumerate(row))
