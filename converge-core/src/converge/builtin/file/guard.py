"""One guard a process and file, which keeps the database's lock whoever in the process closes the file.

POSIX drops all locks that a process has on a file when any descriptor of it is closed, by whatever code. The next
process that opens the store and leaves then takes itself for its last user and deletes `-wal` and `-shm` under the
handles that are open here: what they commit from then on has no name any more. The guard's locks belong to open file
descriptions (Linux), so that no close elsewhere ends them. Its descriptors are made before the first SQLite handle,
that of `-shm` as soon as SQLite has made it, and closed after the last, and nothing else here opens these files by
itself.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
import zlib
from contextlib import suppress

from converge import forks
from converge.errors import StoreBusy, StoreRefused
from converge.posix import fcntl

_SHARED = (0x4000_0002, 510)
"""First byte and length of the range that SQLite's readers lock; whoever deletes a log locks all of it exclusively."""

_DEAD_MAN = (128, 1)
"""The byte of `-shm` that each process locks; one that finds it unlocked takes itself for the first, and truncates."""

_NAMES = 1 << 60
"""From here on each process locks a byte that says by which name, in which folder, it has the file open: far behind
what a file can hold, and behind what SQLite locks.
"""

_WAL_VERSION = 2
"""What bytes 18 and 19 of a database say that has a write-ahead log."""

_LOCK_SEC = 5.0
_LOCK_PAUSE_SEC = 0.01
"""How long a guard waits for somebody who is just leaving the file as its last user, and how often it looks."""

_TICK_NS = 100_000_000
"""A change time is only relied on when it is older than this: file systems count them in ticks of some milliseconds."""

_OFD_SETLK: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_OFD_GETLK: int | None = getattr(fcntl, "F_OFD_GETLK", None)

_LOCK = "hhqqi"
"""The fields of `struct flock`: kind, whence, start, length, process."""

_File = tuple[int, int]  # device, inode

_GUARDS: dict[_File, Guard] = {}


class Guard:
    """Held by each SQLite connection of this process to one file; made by `acquire`, left by `close`."""

    def __init__(self, path: str, file: _File, descriptor: int) -> None:
        self._path, self._file = path, file
        self._paths = (path, f"{path}-wal", f"{path}-shm")
        self._descriptors = [descriptor]
        self._holders = 1
        self._is_locked = False
        self._files: list[_File] | None = None  # of the three paths, once SQLite has made them
        self._gone = ""
        self._folder = os.path.dirname(path)
        self._unchanged: tuple[int, int] | None = None  # the folder's inode and change time, when all was seen in place
        self._is_inherited = False
        forks.watch(self, Guard._lay_down)

    def _lay_down(self) -> None:
        """Close the files in a forked child; SQLite's own descriptors in it stay as they are for good."""
        self._is_inherited = True
        _GUARDS.pop(self._file, None)
        self._close_files()

    def _close_files(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.pop())

    @classmethod
    def acquire(cls, path: str) -> Guard:
        """Acquire the file's guard, creating an empty file, readable by its owner alone, if there is none.

        Raises:
            StoreRefused: The file cannot be opened for writing, or is open under another name, here or elsewhere.
            StoreBusy: Somebody holds it exclusively.
        """
        try:
            with forks.LOCK:
                guard = cls._find(path)
        except OSError as error:
            text = (
                f"{path} cannot be opened for writing ({error.strerror}); look at its own and its folder's permissions"
            )
            raise StoreRefused(text) from error
        try:
            guard._check_name(path)
            if not guard._is_locked and _has_log(guard._descriptors[0]):
                guard._lock()
        except BaseException:
            guard.close(None)
            raise
        return guard

    @classmethod
    def _find(cls, path: str) -> Guard:
        with suppress(FileNotFoundError):
            guard = _GUARDS.get(_identity(path))
            if guard is not None:
                guard._holders += 1
                return guard
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found = os.fstat(descriptor)
        file = (found.st_dev, found.st_ino)
        guard = _GUARDS.get(file)
        if guard is not None:  # it came to this path since we looked; a close now would drop the locks
            guard._holders += 1
            guard._descriptors.append(descriptor)
        else:
            guard = _GUARDS[file] = cls(path, file, descriptor)
        return guard

    def _check_name(self, path: str) -> None:
        """Refuse a second name of the file, such as a hard link, or a mount of the file without its folder: it would
        have a second log, and what is committed to the first one would be written over.
        """
        if path != self._path:
            raise StoreRefused(
                f"{path} is open in this process as {self._path}; a file with two names would have two logs: use one "
                "of them"
            )
        name = f"{os.stat(self._folder).st_ino}/{os.path.basename(path)}".encode("utf-8", "surrogateescape")
        byte = _NAMES + 1 + zlib.crc32(name)
        _set_lock(self._descriptors[0], fcntl.F_RDLCK, (byte, 1))
        if any(_is_locked(self._descriptors[0], where) for where in ((_NAMES, byte - _NAMES), (byte + 1, 1 << 32))):
            raise StoreRefused(
                f"{path} is open in another process under another name, a hard link or a mount of the file alone; a "
                "file with two names would have two logs: use one of them, and mount folders, not files"
            )
        count = os.fstat(self._descriptors[0]).st_nlink
        if count > 1 and not os.path.exists(self._paths[1]):
            raise StoreRefused(
                f"{path} is one of {count} names (hard links) of a file, and has no log: a process that was killed may "
                "have left what it committed in the log of another name; open the store by the name beside which a "
                "-wal file lies, if there is one, and else remove every name but one"
            )

    def _lock(self) -> None:
        """Lock the range that readers lock; SQLite's own locks in this process come on top."""
        deadline = time.monotonic() + _LOCK_SEC
        while not self._is_locked:
            with forks.LOCK:
                try:
                    _set_lock(self._descriptors[0], fcntl.F_RDLCK, _SHARED)
                    self._is_locked = True
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise StoreBusy(
                            f"{self._path}: another program holds it exclusively; end that program"
                        ) from error
            if not self._is_locked:
                time.sleep(_LOCK_PAUSE_SEC)

    def check_log(self, note: str) -> None:
        """Check that the log beside the file is its own, before SQLite merges the two. Called in the turnstile.

        `note` is what `seal` returned when the log was seen last. The log of a file that was removed goes, as SQLite
        would have it, with its shared memory, which SQLite would take for current while an older handle is open.

        Raises:
            StoreRefused: The file was replaced, by a backup say, and the log of the one before is still there.
        """
        inode, _, log = note.partition(" ")
        try:
            is_other = str(os.stat(self._paths[1]).st_ino) == log and str(self._file[1]) != inode
        except FileNotFoundError:
            return
        if not is_other:
            return
        if os.fstat(self._descriptors[0]).st_size:
            raise StoreRefused(
                f"{self._path} was replaced, and {self._paths[1]} belongs to the file before it; to use the file as it "
                f"is, end what has the store open, then move {self._paths[1]} and {self._paths[2]} away (if the log "
                f"was restored with it, remove {self._path}.lock instead)"
            )
        for path in self._paths[1:]:
            with suppress(FileNotFoundError):
                os.unlink(path)

    def seal(self) -> str:
        """Note which files a connection has found: they stay. Called in the turnstile, after its first transaction.

        Returns which log belongs to which file, for `check_log` of whoever opens it later.

        Raises:
            StoreBusy: Somebody holds the file exclusively.
            OSError: One of them is missing.
        """
        # of a new file it waits until the file has a log, since SQLite needs the file for itself to give it one
        self._lock()
        with forks.LOCK:
            if self._files is None:
                self._descriptors.append(os.open(self._paths[2], os.O_RDONLY | os.O_CLOEXEC))
                _set_lock(self._descriptors[-1], fcntl.F_RDLCK, _DEAD_MAN)
                self._files = [_identity(path) for path in self._paths]
            return f"{self._files[0][1]} {self._files[1][1]}"

    def is_alone(self) -> bool:
        """Return whether nobody else has the file open, nor does this process; False where that cannot be known. Called
        in the turnstile, before SQLite opens it.
        """
        with forks.LOCK:
            return _OFD_GETLK is not None and self._holders == 1 and not _is_locked(self._descriptors[0], _SHARED)

    def gone(self) -> str:
        """Return what is missing or replaced since the guard was sealed, for good; empty while all is as it was.

        Each look gives up the interpreter lock, so as a rule only the folder is looked at: its entries, and so its
        change time, which nobody can set, are as they were.
        """
        if self._gone or self._files is None:
            return self._gone
        now = time.time_ns()
        try:
            found = os.stat(self._folder)
            folder = (found.st_ino, found.st_ctime_ns)
        except OSError:
            folder = None
        if folder is None or folder != self._unchanged:
            self._gone = self._compare(self._files)
            if folder is not None and now - folder[1] > _TICK_NS:
                self._unchanged = folder
        return self._gone

    def _compare(self, files: list[_File]) -> str:
        for path, file in zip(self._paths, files, strict=True):
            try:
                found = _identity(path)
            except OSError as error:
                return f"{path} is missing ({error.strerror})"
            if found != file:
                return f"{path} is another file"
        return ""

    def close(self, connection: sqlite3.Connection | None) -> None:
        """Close a connection, unless it was inherited, and let go. The last one unlocks first, so that SQLite can tidy
        up its log if no other
        process has the file open.
        """
        with forks.LOCK:
            if self._is_inherited:
                return
            self._holders -= 1
            is_last = not self._holders
            if is_last and self._is_locked:
                self._is_locked = False
                with suppress(OSError):  # the descriptor's close, below, does it too
                    _set_lock(self._descriptors[0], fcntl.F_UNLCK, _SHARED)
            try:
                if connection is not None:
                    with suppress(sqlite3.Error):  # of a connection that has met an I/O error
                        connection.close()
            finally:
                if is_last:
                    del _GUARDS[self._file]
                    self._close_files()


def _set_lock(descriptor: int, kind: int, where: tuple[int, int]) -> None:
    """Lock or unlock bytes; a system without such locks still has descriptors that stay open.

    Raises:
        BlockingIOError: Somebody holds them exclusively.
    """
    if _OFD_SETLK is not None:
        fcntl.fcntl(descriptor, _OFD_SETLK, struct.pack(_LOCK, kind, os.SEEK_SET, *where, 0))


def _is_locked(descriptor: int, where: tuple[int, int]) -> bool:
    """Return whether anybody else has locked one of these bytes, in whatever way; False where it cannot be known."""
    if _OFD_GETLK is None:
        return False
    answer = fcntl.fcntl(descriptor, _OFD_GETLK, struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, *where, 0))
    return bool(struct.unpack(_LOCK, answer)[0] != fcntl.F_UNLCK)


def _has_log(descriptor: int) -> bool:
    return os.pread(descriptor, 2, 18) == bytes([_WAL_VERSION] * 2)


def _identity(path: str) -> _File:
    found = os.stat(path)
    return found.st_dev, found.st_ino
