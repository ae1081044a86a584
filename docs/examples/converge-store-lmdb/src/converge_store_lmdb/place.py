"""A place: an LMDB file, opened once in each process, with its clock and its one sequence of revisions."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from converge.errors import NoSuchStore, OutcomeUnknown, StoreFull, StoreUnavailable
from converge_store_lmdb.options import LmdbOptions

T = TypeVar("T")
U64 = struct.Struct(">Q")
REVISION, CLOCK = b"\0revision", b"\0clock"  # keys of Converge begin with another byte
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def since_boot_us() -> int:
    """Return microseconds since the host was started: one clock for all of its processes, which nobody can set."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


class Place:
    """The file, and what all handles of a process share of it. LMDB must not open a file twice in one process."""

    def __init__(self, folder: Path, options: LmdbOptions) -> None:
        size = options.size_mb * 1_000_000
        try:
            self.env: Any = lmdb.open(str(folder), map_size=size, sync=options.sync, max_readers=1_024)
        except lmdb.Error as error:
            raise StoreUnavailable(f"lmdb:{folder} cannot be opened: {error}") from error
        self.handles = 0
        self.offset_us = self.write(self._read_clock)

    def _read_clock(self, txn: Any) -> int:
        """Return what is added to the time since boot: written by the first process after each boot, never changed
        until the next, so that all read one clock (S-8). It never begins before what the file has seen already.
        """
        boot = BOOT_ID.read_bytes().strip()
        kept = txn.get(CLOCK)
        if kept is not None and kept[16:] == boot:
            return int(U64.unpack_from(kept)[0]) - 2**63
        seen = U64.unpack_from(kept, 8)[0] if kept is not None else 0
        offset = max(time.time_ns() // 1_000, seen) - since_boot_us()
        txn.put(CLOCK, U64.pack(offset + 2**63) + U64.pack(seen) + boot)
        return offset

    def now(self) -> int:
        """Return store time in microseconds."""
        return since_boot_us() + self.offset_us

    def next_revision(self, txn: Any) -> int:
        """Return the next of the one sequence of this file (S-6), and note the time, for the clock after a boot."""
        revision = int(U64.unpack(txn.get(REVISION) or bytes(8))[0]) + 1
        txn.put(REVISION, U64.pack(revision))
        kept = txn.get(CLOCK)
        txn.put(CLOCK, kept[:8] + U64.pack(self.now()) + kept[16:])
        return revision

    def read(self, work: Callable[[Any], T]) -> T:
        """Do some work in a read transaction."""
        try:
            with self.env.begin() as txn:
                return work(txn)
        except lmdb.Error as error:
            raise StoreUnavailable(f"LMDB cannot read: {error}") from error

    def write(self, work: Callable[[Any], T]) -> T:
        """Do some work in a write transaction, whole or not at all; LMDB lets one process write at a time."""
        try:
            txn = self.env.begin(write=True)
        except lmdb.Error as error:
            raise StoreUnavailable(f"LMDB cannot begin to write: {error}") from error
        try:
            done = work(txn)
        except BaseException as error:
            txn.abort()
            if isinstance(error, lmdb.MapFullError):
                raise StoreFull("the LMDB file has reached its size; raise size_mb for every process") from error
            if isinstance(error, lmdb.Error):
                raise StoreUnavailable(f"LMDB cannot write: {error}") from error
            raise
        try:
            txn.commit()
        except lmdb.Error as error:  # it may have failed after the last page was written
            raise OutcomeUnknown(f"LMDB could not end a commit: {error}") from error
        return done


class Places:
    """The places that this process has open, by their real paths."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Path, Place] = {}

    @contextmanager
    def opened(self, path: str, options: LmdbOptions) -> Iterator[Place]:
        """Share the place at a path; it is closed with its last handle.

        Raises:
            NoSuchStore: There is none, and `must_exist` asks for one; nothing is made (S-20).
            StoreUnavailable: LMDB cannot open it.
        """
        folder = Path(path).resolve()
        with self._lock:
            if options.must_exist and not (folder / "data.mdb").exists():
                raise NoSuchStore(f"there is no store at lmdb:{path}; check the path")
            if folder not in self._open:
                folder.mkdir(parents=True, exist_ok=True)
                self._open[folder] = Place(folder, options)
            place = self._open[folder]
            place.handles += 1
        try:
            yield place
        finally:
            with self._lock:
                place.handles -= 1
                if not place.handles:
                    del self._open[folder]
                    place.env.close()


PLACES = Places()
