"""A folder of key files that no other user can read or change: others are refused."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from converge.errors import KeyFileRefused
from converge.posix import fcntl

FILE_BYTES = 65_536
"""The longest file that is read: a key with its succession has some kilobytes."""

TRIES, PAUSE_SEC = 100, 0.02
"""How long another process may hold the lock of a name that is written now and then: it writes a few bytes under it."""

_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW


class KeyFolder:
    """An open folder; names in it are opened relative to it, so that nobody can replace it meanwhile."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @classmethod
    def open(cls, path: Path, *, is_made: bool = True) -> KeyFolder:
        """Open the folder, made with mode 0700 if it is not there and `is_made`.

        Raises:
            KeyFileRefused: It is a symlink or no folder, another user can read or change it, or it cannot be opened.
        """
        path = path.absolute()
        if is_made:
            with contextlib.suppress(FileExistsError):
                try:
                    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    path.mkdir(mode=0o700)
                except FileExistsError:
                    raise
                except OSError as error:
                    raise KeyFileRefused(
                        path, f"it cannot be made: {error.strerror}", "name a folder that this user may write to"
                    ) from error
        _check_above(path)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _OPEN)
        except OSError as error:
            raise KeyFileRefused(path, *_why(error, "folder")) from error
        try:
            _check(path, os.fstat(handle), "0700")
        except KeyFileRefused:
            os.close(handle)
            raise
        return cls(path, handle)

    def close(self) -> None:
        """Close the folder; locks stay with their holders."""
        os.close(self._handle)

    def names(self) -> list[str]:
        """Return the names in it, in order."""
        return sorted(os.listdir(self._handle))

    def read(self, name: str) -> bytes | None:
        """Return what the file holds; None if there is none.

        Raises:
            KeyFileRefused: It is a symlink or no file, another user can read it or owns it, or it is too long.
        """
        path = self.path / name
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | _OPEN, dir_fd=self._handle)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyFileRefused(path, *_why(error, "file")) from error
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise KeyFileRefused(path, "it is not a plain file", "remove it")
            _check(path, found, "0600")
            data = b""
            while len(data) <= FILE_BYTES and (part := os.read(handle, FILE_BYTES + 1 - len(data))):
                data += part
        finally:
            os.close(handle)
        if len(data) > FILE_BYTES:
            raise KeyFileRefused(path, f"it has more than {FILE_BYTES} bytes, so it is not Converge's", "remove it")
        return data

    def write(self, name: str, data: bytes, *, is_last: bool = True) -> None:
        """Put a file there, whole or not at all; it survives a power cut once this returns. Hold its lock.

        `is_last`: False leaves the last step to `sync`, for many at once; until then the file may be gone after a
            power cut, but never torn.

        Raises:
            KeyFileRefused: It could not be written.
        """
        new = f"{name}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=self._handle)  # of a process that died while it wrote
            handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=self._handle)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            os.rename(new, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)
            if is_last:
                self.sync()
        except OSError as error:
            raise KeyFileRefused(self.path / name, *_why(error, "file")) from error

    def sync(self) -> None:
        """Flush what was written, so that it survives a power cut."""
        os.fsync(self._handle)

    def lock(self, name: str) -> int | None:
        """Lock the name for this process, until the descriptor is closed or the process dies; None if it is locked.

        Raises:
            KeyFileRefused: The lock's file is not ours alone, or there are no descriptors left.
        """
        path = self.path / f"{name}.lock"
        try:
            handle = os.open(path.name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | _OPEN, 0o600, dir_fd=self._handle)
        except OSError as error:
            raise KeyFileRefused(path, *_why(error, "file")) from error
        try:
            _check(path, os.fstat(handle), "0600")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise KeyFileRefused(path, *_why(error, "file")) from error
        except KeyFileRefused:
            os.close(handle)
            raise
        return handle


@contextlib.contextmanager
def locked(folder: KeyFolder, name: str) -> Iterator[None]:
    """Hold the lock of a name that is written now and then; wait for another process that has it.

    Raises:
        KeyFileRefused: Somebody has it for much longer than a write takes.
    """
    for _ in range(TRIES):
        lock = folder.lock(name)
        if lock is not None:
            try:
                yield
            finally:
                os.close(lock)
            return
        time.sleep(PAUSE_SEC)
    raise KeyFileRefused(folder.path / f"{name}.lock", "another process holds it", "find out which (fuser), and end it")


def _check_above(path: Path) -> None:
    """Refuse a folder that another user could replace: whoever may write to a folder may rename what is in it."""
    parent = path.parent.resolve()
    for above in (parent, *parent.parents):
        try:
            found = above.stat()
        except OSError as error:
            raise KeyFileRefused(above, *_why(error, "folder")) from error
        # A sticky bit (as /tmp has) keeps others from renaming, but not from being there first; it will do further up.
        if found.st_mode & stat.S_IWOTH and not (found.st_mode & stat.S_ISVTX and above != parent):
            raise KeyFileRefused(
                above, f"every user can write to it, and {path} is in it", "choose a folder elsewhere, or chmod o-w it"
            )
        if found.st_uid not in (0, os.geteuid()):
            raise KeyFileRefused(
                above,
                f"it belongs to user {found.st_uid}, and {path} is in it",
                "choose a folder of this user's or of root's",
            )


def _check(path: Path, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise KeyFileRefused(
            path,
            f"it belongs to user {found.st_uid}, this process is user {os.geteuid()}",
            "chown it, or name another identity_dir",
        )
    if found.st_mode & 0o077:
        has = stat.S_IMODE(found.st_mode)
        raise KeyFileRefused(
            path,
            f"its mode is {has:04o}, so other users of this machine can use it",
            f"chmod {mode} it, and rotate keys that were seen",
        )


def _why(error: OSError, kind: str) -> tuple[str, str]:
    """Return why, and the way out."""
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return "it is a symlink, which could lead anywhere", f"put a {kind} there"
    if error.errno == errno.ENOENT:
        return "it does not exist", "check the spelling; `converge identity new` creates a folder and a key"
    if error.errno == errno.ENOTDIR:
        return "it is no folder, or a symlink", "put a folder there"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            f"no file can be opened ({error.strerror}): each kept key has one open",
            "raise the limit (ulimit -n), or run fewer agents",
        )
    return f"it cannot be used: {error.strerror}", f"look at the {kind}'s owner and mode"
