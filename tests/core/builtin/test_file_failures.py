"""What a caller of the file store is told when the file, its disk or its lock fails, and that the store works again
afterwards.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from converge.builtin.file import database, reader, schema
from converge.builtin.file.options import FileOptions
from converge.builtin.file.reader import Reader
from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Committed, Store
from converge.errors import NotApplied, OutcomeUnknown, StoreBusy, StoreFull, StoreUnavailable
from converge.model.keys import POOL, TASK

LARGE = b'"' + b"x" * 500_000 + b'"'


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system has no thread left for the file store."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "converge-file":
            raise RuntimeError("can't start new thread")
        start(self)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


async def put(store: Store, *names: str, value: bytes = b"{}") -> None:
    (outcome,) = await store.commit([Batch(puts=[(POOL(name), value) for name in names])])
    assert type(outcome) is Committed


async def there(store: Store, *names: str) -> list[bool]:
    return [entry is not None for entry in await store.get([POOL(name) for name in names])]


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold a lock file, as a process that was stopped in its turn does."""
    descriptor = os.open(lock, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file of this process grows beyond the limit: what SQLite writes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_store_says_so_and_keeps_what_it_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = []

    def connect_writer(path: str) -> sqlite3.Connection:
        connections.append(schema.connect_writer(path))
        return connections[-1]

    monkeypatch.setattr(database, "connect_writer", connect_writer)
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        connections[0].execute("pragma max_page_count = 60")  # SQLite says of its own limit what it says of a full disk
        with pytest.raises(StoreFull, match="disk is full"):
            await put(store, "second", "third", value=LARGE)
        assert await there(store, "first", "second", "third") == [True, False, False]
        connections[0].execute("pragma max_page_count = 1000000")
        await put(store, "second", "third", value=LARGE)
        assert await there(store, "first", "second", "third") == [True, True, True]


async def test_after_an_io_error_the_outcome_is_unknown_and_the_next_call_is_served(path: Path) -> None:
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        with file_size_limit(300_000), pytest.raises(OutcomeUnknown, match="I/O error"):
            await put(store, "second", "third", value=LARGE)
        assert len(set(await there(store, "second", "third"))) == 1, "half a batch was written"
        await put(store, "fourth", value=LARGE)
        assert await there(store, "first", "fourth") == [True, True]


async def test_a_read_that_meets_an_io_error_is_unavailable_and_the_next_one_is_served(path: Path) -> None:
    class Failing:
        def execute(self, *_: object) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
            raise error

        def close(self) -> None:
            pass

    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        reader = store._reader
        assert type(reader) is Reader
        reader._connection.close()
        reader._connection = Failing()  # type: ignore[assignment]  # what a broken disk makes of it
        with pytest.raises(StoreUnavailable, match="could not be read"):
            await there(store, "first", "second")
        assert await there(store, "first", "second") == [True, False]


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_CANTOPEN])
async def test_reads_are_served_again_though_the_file_could_not_be_opened_anew_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> NoReturn:
        error = sqlite3.OperationalError("as the system says")
        error.sqlite_errorcode = code
        raise error

    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        with monkeypatch.context() as patch:
            patch.setattr(store._reader, "_is_broken", True)  # by an I/O error
            patch.setattr("converge.builtin.file.reader.connect", fail)
            for _ in range(2):
                with pytest.raises(NotApplied, match="as the system says"):
                    await there(store, "first")
        store._reader._is_broken = True
        assert await there(store, "first", "second") == [True, False]


async def test_where_no_thread_can_be_started_nothing_was_written_and_the_next_call_is_served(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_threads(monkeypatch), pytest.raises(StoreUnavailable, match="new thread"):
        async with FileStore.open(f"file:{path}"):
            raise AssertionError("it cannot write")
    async with FileStore.open(f"file:{path}") as store:
        store._worker._busy_sec = 0.1
        with locked(Path(f"{path}.lock")), pytest.raises(StoreBusy):
            await put(store, "first")  # its thread is left behind
        with no_threads(monkeypatch):
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="new thread"):
                    await put(store, "first")
        store._worker._busy_sec = 30.0
        await put(store, "second")
        assert await there(store, "first", "second") == [False, True]


async def test_a_connection_that_cannot_be_closed_either_keeps_no_caller_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = database.Database.close

    def failing(self: database.Database) -> NoReturn:
        close(self)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with FileStore.open(f"file:{path}") as store:
        with monkeypatch.context() as patch, file_size_limit(300_000):
            patch.setattr(database.Database, "close", failing)
            with anyio.fail_after(30), pytest.raises(OutcomeUnknown, match="I/O error"):
                await put(store, "first", "second", value=LARGE)
        await put(store, "third")


async def test_a_commit_stands_though_nobody_can_tell_how_much_room_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> NoReturn:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(database, "ROOM_LOOK_SEC", -1.0)
    async with FileStore.open(f"file:{path}") as store:
        monkeypatch.setattr(database, "keep_reserve", fail)
        await put(store, "first")
        assert await there(store, "first") == [True]


@pytest.mark.parametrize("lock", ["lock", "turn"])
async def test_a_turn_that_does_not_come_is_busy_and_wrote_nothing(path: Path, lock: str) -> None:
    async with FileStore.open(f"file:{path}") as store:
        store._worker._busy_sec = 0.2  # once it is open: a busy machine takes longer for that
        with locked(path.with_name(f"state.db.{lock}")):
            began = time.monotonic()
            with pytest.raises(StoreBusy, match="raise busy_sec"):
                await put(store, "first")
            with pytest.raises(StoreBusy):
                await put(store, "second")
            assert time.monotonic() - began < 9.0
            assert await there(store, "first") == [False], "a read waited for a writer, or saw what was not written"
        is_busy = True
        with anyio.fail_after(30):
            while is_busy:  # on a busy machine a fresh thread takes longer than busy_sec to open the file
                try:
                    await put(store, "third")
                    is_busy = False
                except StoreBusy:
                    assert await there(store, "third") == [False]
        assert await there(store, "first", "second", "third") == [False, False, True]


async def test_opening_a_file_whose_lock_is_held_is_busy_and_blocks_no_one(path: Path) -> None:
    async with FileStore.open(f"file:{path}"):
        pass
    is_opened = False

    async def open_later() -> None:
        nonlocal is_opened
        async with FileStore.open(f"file:{path}", FileOptions(busy_sec=30)):
            is_opened = True

    with locked(path.with_name("state.db.lock")), pytest.raises(StoreBusy):
        async with FileStore.open(f"file:{path}", FileOptions(busy_sec=0.5)):
            raise AssertionError("it was opened")
    async with anyio.create_task_group() as tasks:
        with locked(path.with_name("state.db.lock")):
            tasks.start_soon(open_later)
            for _ in range(20):  # the event loop goes on: else the lock would outlast the opening's patience
                await anyio.sleep(0.01)
            assert not is_opened
    assert is_opened


async def test_a_lock_of_a_program_that_knows_no_turnstile_is_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "BUSY_MS", 100)
    async with FileStore.open(f"file:{path}") as store:
        shell = sqlite3.connect(path, isolation_level=None)
        shell.execute("begin immediate")
        with pytest.raises(StoreBusy, match="another program holds a lock"):
            await put(store, "first")
        shell.execute("rollback")
        shell.close()
        await put(store, "second")
        assert await there(store, "first", "second") == [False, True]


@pytest.mark.parametrize("what", ["removed", "replaced"])
async def test_a_file_that_was_taken_away_takes_no_more_writes(path: Path, what: str) -> None:
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        os.unlink(path)
        if what == "replaced":
            async with FileStore.open(f"file:{path}") as other:
                await put(other, "first")
        with pytest.raises(NotApplied):
            await put(store, "second")


async def test_a_caller_that_left_early_leaves_a_whole_commit_or_none(path: Path) -> None:
    keys = [TASK(bytes([number]) * 16) for number in range(200)]
    async with FileStore.open(f"file:{path}") as store:
        with locked(path.with_name("state.db.lock")), anyio.move_on_after(0.05) as scope:
            await store.commit([Batch(puts=[(key, b"{}") for key in keys])])
        assert scope.cancelled_caught
        await put(store, "after")  # behind the one that was left
        assert len({entry is not None for entry in await store.get(keys)}) == 1


def opened_files() -> list[str]:
    return [os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.exists()]


async def test_a_connection_that_cannot_be_set_up_is_closed_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileStore.open(f"file:{path}"):
        pass
    monkeypatch.setattr(reader, "CACHE_KIB", "no number")
    with pytest.raises(StoreUnavailable) as told:
        Reader(str(path))
    assert str(path) not in opened_files(), f"whoever keeps the error keeps the connection: {told.value}"
