"""A connection that reads: in WAL mode it waits for no writer, so it is used where it is called."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

from converge import forks
from converge.builtin.file import statements as sql
from converge.builtin.file._errors import Broken, translated
from converge.builtin.file.clock import READ as READ_CLOCK
from converge.builtin.file.clock import Added
from converge.builtin.file.guard import Guard
from converge.builtin.file.schema import connect
from converge.contracts.store import Entry, Key, Prefix, Range
from converge.errors import StoreReplaced, StoreUnavailable
from converge.model.keys import NAME, Family

CACHE_KIB = 512
"""Pages that a reader keeps: the next commit makes them worthless, so that more would help only an idle process."""

P = ParamSpec("P")
T = TypeVar("T")


def _again(read: Callable[Concatenate[Reader, P], T]) -> Callable[Concatenate[Reader, P], T]:
    """Read once more where an adapter has come meanwhile, so that what was asked for was another value."""

    @wraps(read)
    def call(self: Reader, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(self, *args, **kwargs)
        except StoreUnavailable:
            if not sql.is_adapted(self._connection):
                raise
        return read(self, *args, **kwargs)

    return call


class Reader:
    """Reads committed data; a connection that has met an I/O error is replaced."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._in_use = threading.RLock()
        forks.hold(self, self._in_use)
        self._is_broken = False
        self._guard = Guard.acquire(path)
        try:
            self._connection = self._connect()
        except BaseException:
            self._guard.close(None)
            raise

    def _connect(self) -> sqlite3.Connection:
        try:
            with translated(self._path):
                connection = connect(self._path)
                try:
                    connection.execute("pragma query_only = on")
                    connection.execute(f"pragma cache_size = -{CACHE_KIB}")
                except BaseException:
                    connection.close()
                    raise
                return connection
        except Broken as broken:
            raise StoreUnavailable(f"{self._path}: it could not be opened ({broken.__cause__}); try again") from broken

    def close(self) -> None:
        """Close the connection."""
        self._guard.close(self._connection)

    @_again
    def get(self, keys: Sequence[Key]) -> list[Entry | None]:
        """Return value and revision of each key, all from one snapshot."""
        with self._snapshot(len(keys)):
            found: list[Entry | None] = []
            for key in keys:
                row = self._connection.execute(sql.get(key[0]), sql.row(key)).fetchone()
                found.append(None if row is None else Entry(key, row[0], row[1]))
            return found

    @_again
    def scan(self, ranges: Sequence[Range]) -> list[list[Entry]]:
        """Return the entries of each range, all from one snapshot."""
        with self._snapshot(len(ranges)):
            return [self._scan(range_) for range_ in ranges]

    def _scan(self, range_: Range) -> list[Entry]:
        family, prefix = range_.prefix[0], range_.prefix[1:]
        statement = sql.scan(family, len(prefix), range_.after is not None)
        rows = self._connection.execute(statement, prefix + (range_.after or ()))
        decode = decoder(family)
        return [Entry((family, *decode(row[:-2])), row[-2], row[-1]) for row in islice(rows, range_.limit)]

    @_again
    def count(self, prefixes: Sequence[Prefix]) -> list[int]:
        """Return how many keys are under each prefix, all from one snapshot."""
        with self._snapshot(len(prefixes)):
            run = self._connection.execute
            return [int(run(sql.count(prefix[0], len(prefix) - 1), prefix[1:]).fetchone()[0]) for prefix in prefixes]

    @_again
    def data_version(self) -> int:
        """Return a number that changes when another connection commits, including this handle's own writer."""
        with self._snapshot(1):
            (version,) = self._connection.execute("pragma data_version").fetchone()
            return int(version)

    @_again
    def clock(self) -> Added:
        """Return what the file adds to the boot-time clock now."""
        with self._snapshot(1):
            (text,) = self._connection.execute(READ_CLOCK).fetchone()
        return Added.parse(text)

    @contextmanager
    def _snapshot(self, statements: int) -> Iterator[None]:
        """Let several statements see one moment, so that no reader meets half a batch; one does so by itself."""
        if self._is_broken:
            self._connection = self._connect()
            self._is_broken = False
        try:
            with translated(self._path), self._in_use:
                sql.pass_adapters(self._connection)
                if statements < 2:
                    yield
                    sql.check_bound(self._connection)
                else:
                    self._connection.execute("begin")
                    try:
                        yield
                        sql.check_bound(self._connection)
                    finally:
                        with suppress(sqlite3.Error):  # of a connection that has just failed
                            self._connection.execute("rollback")
        except Broken as broken:
            self._is_broken = True
            with suppress(sqlite3.Error):
                self._connection.close()
            self._check_files()
            raise StoreUnavailable(
                f"{self._path}: it could not be read ({broken.__cause__}); the next read opens another connection"
            ) from broken
        self._check_files()

    def _check_files(self) -> None:
        if gone := self._guard.gone():
            raise StoreReplaced(
                f"{gone} since it was opened; what was read may be old: close the store and open it again"
            )


def decoder(family: Family, *, skip: int = 0) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return what makes a row's columns, from part number `skip` on, a key's parts: names come as bytes, since the
    connection gives text as bytes.
    """
    if not family.parts:
        return lambda row: ()
    at = [index for index, part in enumerate(tuple(family.parts.values())[skip:]) if part is NAME]
    if not at:
        return lambda row: row
    return lambda row: tuple(value.decode() if index in at else value for index, value in enumerate(row))
