"""Opens a store's file: whose it is, which version its tables have, with which settings it is used."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote

from converge.builtin.file import statements as sql
from converge.codec import FIRST, FORMAT
from converge.errors import SchemaTooNew, StoreRefused
from converge.model.keys import FAMILIES

APPLICATION_ID = 0x43565247
"""What `pragma application_id` says of our files ("CVRG"), so that nobody else's database is ever written to."""

BUSY_MS = 5_000
"""SQLite's own wait for a lock: only programs that do not use the turnstile make it wait at all."""

WAL_BYTES = 67_108_864
"""What the write-ahead log is cut back to after it has grown: a long read elsewhere, a backup say, makes it grow."""


def connect(path: str) -> sqlite3.Connection:
    """Open a connection to a file that is there."""
    # `mode=rw` makes no file: one that was removed while we worked is an error, not an empty store.
    connection = sqlite3.connect(
        f"file:{quote(path)}?mode=rw",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=1_024,
        factory=sql.Connection,
    )
    sql.pass_adapters(connection)
    connection.text_factory = (
        bytes  # values are bytes in the contract; decoding them to text and back would cost a third of a scan
    )
    connection.execute(f"pragma busy_timeout = {BUSY_MS}")
    return connection


def connect_writer(path: str) -> sqlite3.Connection:
    """Open a connection that writes, making the tables if the file is empty; called while holding the turnstile.

    Raises:
        StoreRefused: It is another program's database, or its file system has no shared memory.
        SchemaTooNew: A newer release made it.
    """
    connection = connect(path)
    try:
        is_empty = _check_owner(connection, path)
        # Only now may anything be written: the journal mode is a property of the file.
        (mode,) = connection.execute("pragma journal_mode = wal").fetchone()
        if mode != b"wal":
            raise StoreRefused(
                f"{path}: SQLite cannot use a write-ahead log there ({mode.decode()}); put it on a local disk"
            )
        connection.execute("pragma synchronous = full")  # a commit is on disk when it returns
        if sys.platform == "darwin":
            connection.execute("pragma fullfsync = on")  # its fsync alone leaves data in the disk's cache
        connection.execute(f"pragma journal_size_limit = {WAL_BYTES}")
        if is_empty:
            _create(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def settings(connection: sqlite3.Connection) -> dict[str, str | int]:
    """Return how safely the connection writes, as SQLite itself says."""
    names = ("journal_mode", "synchronous", "user_version")
    (mode,), (synchronous,), (version,) = (connection.execute(f"pragma {name}").fetchone() for name in names)
    return {
        "journal_mode": mode.decode(),
        "synchronous": _SYNCHRONOUS.get(synchronous, str(synchronous)),
        "schema_version": version,
    }


_SYNCHRONOUS = {0: "off", 1: "normal", 2: "full", 3: "extra"}


def _check_owner(connection: sqlite3.Connection, path: str) -> bool:
    """Return whether the file is still empty."""
    (owner,) = connection.execute("pragma application_id").fetchone()
    (objects,) = connection.execute("select count(*) from sqlite_master").fetchone()
    if owner == 0 and objects == 0:
        return True
    if owner != APPLICATION_ID:
        raise StoreRefused(f"{path} is a database of another program; choose another path")
    (version,) = connection.execute("pragma user_version").fetchone()
    if version > FORMAT:
        raise SchemaTooNew(
            f"{path}: its schema has version {version}, this release of converge-core knows {FORMAT}: upgrade it"
        )
    return False


def missing(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """Return what this release makes and the file has not yet, a line each, with the statements that make it."""
    there = {name.decode(): text for name, text in connection.execute("select name, sql from sqlite_master")}
    wanted = {sql.table(family): family for family in FAMILIES.values()}
    found: dict[str, tuple[str, ...]] = {}
    for name, family in wanted.items():
        if name not in there:
            found[f"the table {name}"] = (sql.create_table(family),)
    if sql.NEWEST.encode() not in there.get("converge_tasks", b""):
        found["the view converge_tasks, with its present columns"] = ("drop view if exists converge_tasks", sql.VIEW)
    return found


def raise_schema(connection: sqlite3.Connection, number: int) -> None:
    """Raise the schema number, which releases before this one compare with their own when they open the file."""
    with _begun(connection):
        (version,) = connection.execute("pragma user_version").fetchone()
        if version < number:
            connection.execute(f"pragma user_version = {number:d}")


def add_missing(connection: sqlite3.Connection) -> None:
    """Add the tables of newer families, and renew the view: the release before does not look at them, so its processes
    go on beside.
    """
    if missing(connection):
        with _begun(connection):
            for statements in missing(connection).values():
                for statement in statements:
                    connection.execute(statement)


def _create(connection: sqlite3.Connection) -> None:
    with _begun(connection):
        for statement in sql.create():
            connection.execute(statement)
        connection.execute("insert into meta values ('revision', 0)")
        connection.execute(f"pragma application_id = {APPLICATION_ID}")
        connection.execute(f"pragma user_version = {FIRST}")  # until something newer is used


@contextmanager
def _begun(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("rollback")
        raise
