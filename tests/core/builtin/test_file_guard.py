"""What else a process does with a store's files takes nothing from its handles: they keep their locks, and say so when
a file goes.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from converge.builtin.file.database import Database
from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Committed, Store
from converge.errors import OutcomeUnknown, StoreRefused, StoreReplaced
from converge.model.keys import POOL

VISIT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
print(*(row[0] for row in connection.execute("select id from f_pool order by id")))
connection.close()
"""

OPEN = """
import sys
import anyio
from converge.builtin.file.store import FileStore
from converge.errors import StoreRefused

async def main():
    try:
        async with FileStore.open(f"file:{sys.argv[1]}"):
            print("opened")
    except StoreRefused as error:
        print(error)

anyio.run(main)
"""

KILLED = """
import os, signal, sys
import anyio
from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch
from converge.model.keys import POOL

async def main():
    async with FileStore.open(f"file:{sys.argv[1]}") as store:
        await store.commit([Batch(puts=[(POOL(name), b"{}") for name in ("first", "second")])])
        os.link(*sys.argv[1:])
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""

LOCK = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, int(sys.argv[3]), int(sys.argv[2]))
        print("locked")
    except BlockingIOError:
        print("refused")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


async def put(store: Store, *names: str) -> None:
    (outcome,) = await store.commit([Batch(puts=[(POOL(name), b"{}") for name in names])])
    assert type(outcome) is Committed


async def elsewhere(program: str, *words: object) -> list[str]:
    """Run a program in another process; return the words that it says."""
    command = [sys.executable, "-c", program, *map(str, words)]
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    )
    return done.stdout.split()


async def open_again(path: Path) -> None:
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "again")


async def open_by_another_name(path: Path) -> None:
    other = path.with_name("link.db")
    other.symlink_to(path)
    async with FileStore.open(f"file:{other}") as store:
        await put(store, "again")


async def look_with_sqlite(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("select * from f_pool").fetchall()
    connection.close()


def read_bytes(suffix: str) -> Callable[[Path], Awaitable[None]]:
    async def read(path: Path) -> None:
        path.with_name(path.name + suffix).read_bytes()

    return read


MEDDLING = {
    "open again": open_again,
    "open by another name": open_by_another_name,
    "sqlite3": look_with_sqlite,
    "read": read_bytes(""),
    "read the log": read_bytes("-wal"),
    "read the shared memory": read_bytes("-shm"),
}


@pytest.mark.parametrize("meddle", MEDDLING.values(), ids=MEDDLING.keys())
async def test_what_the_process_does_with_the_files_and_a_visitor_that_leaves_lose_nothing(
    path: Path, meddle: Callable[[Path], Awaitable[None]]
) -> None:
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "before")
        log = os.stat(f"{path}-wal").st_ino
        await meddle(path)
        assert "before" in await elsewhere(VISIT, path)  # and leaves: the last user, were it not for the guard
        assert os.stat(f"{path}-wal").st_ino == log, "the visitor took the log away"
        await put(store, "after")
        assert {"before", "after"} <= set(await elsewhere(VISIT, path))
    assert {"before", "after"} <= set(await elsewhere(VISIT, path))


async def test_no_process_takes_itself_for_the_first_at_the_shared_memory_once_it_was_read_here(path: Path) -> None:
    dead_man = (f"{path}-shm", 128, 1)
    async with FileStore.open(f"file:{path}") as store, FileStore.open(f"file:{path}") as other:
        await put(store, "first")
        await read_bytes("-shm")(path)
        assert await elsewhere(LOCK, *dead_man) == ["refused"], "another process would truncate it under open readers"
        await put(other, "second")


async def test_the_last_handle_leaves_one_file_that_others_may_lock_and_no_descriptor(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with FileStore.open(f"file:{path}") as store:
        async with store.reopen() as other:
            await put(other, "first")
        await put(store, "second")
        assert await elsewhere(LOCK, path, 0x4000_0002, 510) == ["refused"]
    # the event loop may keep some of its own
    assert len(os.listdir("/proc/self/fd")) <= before + 3, "descriptors are left open"
    assert {name for name in os.listdir(path.parent) if name.startswith("state.db-")} == set(), (
        "the log was not tidied up"
    )
    assert await elsewhere(LOCK, path, 0x4000_0002, 510) == ["locked"]
    assert await elsewhere(VISIT, path) == ["first", "second"]


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_file_that_is_missing_before_a_write_refuses_it_for_good(path: Path, suffix: str) -> None:
    gone, kept = f"{path}{suffix}", f"{path}{suffix}.kept"
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        os.rename(gone, kept)
        with pytest.raises(StoreReplaced, match=r"is missing.*nothing was written: close the store"):
            await put(store, "second")
        os.rename(kept, gone)
        with pytest.raises(StoreReplaced, match="is missing"):  # what another process did meanwhile is not known
            await put(store, "third")
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "fourth")
    assert await elsewhere(VISIT, path) == ["first", "fourth"]


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
async def test_a_file_that_goes_during_a_write_leaves_its_outcome_unknown(
    path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    written = Database._transact

    def unlinked(self: Database, *call: object) -> object:
        turned = written(self, *call)  # type: ignore[arg-type]
        os.unlink(f"{path}{suffix}")
        return turned

    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        monkeypatch.setattr(Database, "_transact", unlinked)
        with pytest.raises(OutcomeUnknown, match=r"is missing.*may be lost"):
            await put(store, "second")
        monkeypatch.undo()
        with pytest.raises(StoreReplaced, match="is missing"):
            await put(store, "third")


async def test_a_second_name_of_a_file_that_is_open_is_refused(path: Path) -> None:
    async with FileStore.open(f"file:{path}") as store:
        os.link(path, path.with_name("second.db"))
        with pytest.raises(StoreRefused, match=r"second\.db is open in this process as .*state\.db"):
            async with FileStore.open(f"file:{path.with_name('second.db')}"):
                raise AssertionError("it was opened")
        await put(store, "first")


async def test_a_second_name_of_a_file_that_is_open_elsewhere_is_refused(path: Path) -> None:
    """Each name would have a log of its own: what one process commits, the other would write over."""
    second = path.with_name("second.db")
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "first")
        os.link(path, second)
        assert "is open in another process under another name" in " ".join(await elsewhere(OPEN, second))
        assert await elsewhere(OPEN, path) == ["opened"], "the name that is in use serves all"
        await put(store, "second")
    assert "has no log" in " ".join(await elsewhere(OPEN, second)), "nobody knows what another name has"
    os.unlink(path)
    assert await elsewhere(VISIT, second) == ["first", "second"]


async def test_a_second_name_of_a_file_whose_process_was_killed_is_refused(path: Path) -> None:
    """The log lies beside the first name, with all that the process had committed."""
    second = path.with_name("second.db")
    with pytest.raises(subprocess.CalledProcessError):
        await elsewhere(KILLED, path, second)
    assert path.with_name(f"{path.name}-wal").stat().st_size, "the log was tidied up"
    assert "is one of 2 names" in " ".join(await elsewhere(OPEN, second))
    assert await elsewhere(VISIT, path) == ["first", "second"], "its own name has the log"


async def test_the_log_of_a_file_that_was_replaced_is_never_written_into_the_new_one(path: Path) -> None:
    backup = path.with_name("backup.db")
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "kept")
        source, copy = sqlite3.connect(path), sqlite3.connect(backup)
        source.backup(copy)
        source.close()
        copy.close()
        await put(store, "later")
        os.replace(backup, path)
        for _ in range(2):
            with pytest.raises(
                StoreRefused,
                match=r"was replaced, and .*state\.db-wal belongs to the file before "
                r"it.* move .*-wal and .*-shm "
                r"away",
            ):
                async with FileStore.open(f"file:{path}"):
                    raise AssertionError("it was opened")
        with pytest.raises(StoreReplaced, match="is another file"):
            await put(store, "last")
    for suffix in ("-wal", "-shm"):
        os.unlink(f"{path}{suffix}")
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "new")
    assert await elsewhere(VISIT, path) == ["kept", "new"]


async def test_a_store_that_was_moved_with_its_log_is_opened(path: Path) -> None:
    moved = path.with_name("moved.db")
    async with FileStore.open(f"file:{path}") as store:
        await put(store, "kept")
        for suffix in ("", "-wal", ".lock"):
            await anyio.Path(f"{moved}{suffix}").write_bytes(await anyio.Path(f"{path}{suffix}").read_bytes())
    async with FileStore.open(f"file:{moved}") as store:
        await put(store, "new")
    assert await elsewhere(VISIT, moved) == ["kept", "new"]
