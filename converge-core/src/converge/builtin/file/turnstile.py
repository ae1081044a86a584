"""The turnstile: writers of a file go in the order in which they come; SQLite's busy handler lets a lone one starve."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from converge import forks
from converge.posix import fcntl

_NOTE_BYTES = 200


class Turnstile:
    """Two lock files: one is held while waiting at the head of the queue, the other while writing.

    Each connection has descriptors of its own. The kernel queues those who wait in order, but knows no timeout: whoever
    calls `turn` does so in a thread that it can leave waiting.
    """

    def __init__(self, path: str) -> None:
        with forks.LOCK:
            self._turn = os.open(f"{path}.turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except BaseException:
                os.close(self._turn)
                raise
            # A lock belongs to parent and child together: a child lets go of it, and never unlocks it.
            forks.watch(self, Turnstile.close)
        self._is_open = True

    def close(self) -> None:
        """Close the descriptors."""
        if not self._is_open:
            return
        self._is_open = False
        os.close(self._turn)
        os.close(self._lock)

    @property
    def note(self) -> str:
        """The note that its last writer left for whoever opens the file next; read and written in a turn."""
        return os.pread(self._lock, _NOTE_BYTES, 0).decode(errors="replace")

    @note.setter
    def note(self, text: str) -> None:
        os.pwrite(self._lock, text.encode(), 0)
        os.ftruncate(self._lock, len(text.encode()))

    @contextmanager
    def turn(self, *, is_urgent: bool = False) -> Iterator[None]:
        """Wait for this writer's turn, and hold it. An urgent one goes behind the head of the queue."""
        if is_urgent:
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        else:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            finally:
                fcntl.flock(self._turn, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
