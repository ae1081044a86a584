"""SQLite's errors as the contract's, in one place."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from converge.errors import OutcomeUnknown, StoreBusy, StoreFull, StoreRefused, StoreUnavailable

_FULL = {sqlite3.SQLITE_FULL}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_REFUSED = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH}
_FOREIGN = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}


def is_full(error: sqlite3.Error) -> bool:
    """Return whether the error says that the disk is full."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _FULL


class Broken(Exception):
    """The connection must not be used again; `cause` is the contract's error to raise."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate SQLite's errors into the contract's."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = None if code is None else code & 0xFF
        if primary in _FULL:
            raise StoreFull(f"{what}: the disk is full; nothing was written, make room") from error
        if primary in _BUSY:
            raise StoreBusy(f"{what}: another program holds a lock on it; nothing was written") from error
        if primary in _FOREIGN:
            raise StoreRefused(f"{what}: it is not a SQLite database, or it is damaged ({error})") from error
        if primary in _REFUSED:
            raise StoreRefused(
                f"{what}: it cannot be opened or written ({error}); look at its folder's and its own permissions"
            ) from error
        if primary == sqlite3.SQLITE_IOERR:
            # After a failed fsync nobody knows what is on disk; the connection is thrown away, never used again.
            raise Broken(OutcomeUnknown(f"{what}: an I/O error ({error}); what the call did is not known")) from error
        raise StoreUnavailable(f"{what}: {error}") from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = (
                f"{what}: {error.filename or 'it'} cannot be made or opened ({error.strerror}); look at its folder's "
                "and its own permissions"
            )
            raise StoreUnavailable(text) from error
        raise StoreUnavailable(f"{what}: {error}") from error
