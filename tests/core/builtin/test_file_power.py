"""The file store on a host that loses power: what SQLite had not synced is gone, what was acknowledged is there.

A process of the kit writes through a layer below SQLite that notes, before each write, what the file held; a sync of
the file forgets the notes. Once the process was killed, the rest of them is put back: just the synced bytes remain.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import sqlite3
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest

from converge.builtin.file import database, schema
from converge.builtin.file.plugin import FILE
from converge.contracts.store import Store
from converge.plugins.loaded import Loaded
from converge.testing import Bench
from converge.testing._check import card
from converge.testing._check.card import Asked, Card

EVERYTHING = os.environ.get("FULL_TESTS") == "1"
TEST = "test_what_was_acknowledged_survives_a_power_loss"
NOTES = ".unsynced"
OK = 0

Pointer, Int, Long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
Write = ctypes.CFUNCTYPE(Int, Pointer, Pointer, Int, Long)
Truncate = ctypes.CFUNCTYPE(Int, Pointer, Long)
Sync = ctypes.CFUNCTYPE(Int, Pointer, Int)
OpenFile = ctypes.CFUNCTYPE(Int, Pointer, Pointer, Pointer, Int, Pointer)


class Methods(ctypes.Structure):
    """`sqlite3_io_methods`: what SQLite does to one open file."""

    _fields_ = (
        ("version", Int),
        ("close", Pointer),
        ("read", Pointer),
        ("write", Pointer),
        ("truncate", Pointer),
        ("sync", Pointer),
        ("others", Pointer * 13),
    )


class Vfs(ctypes.Structure):
    """The beginning of `sqlite3_vfs`: how SQLite opens files."""

    _fields_ = (
        ("version", Int),
        ("file_bytes", Int),
        ("path_bytes", Int),
        ("next", Pointer),
        ("name", Pointer),
        ("data", Pointer),
        ("open", Pointer),
    )


class Below:
    """What lies between SQLite and the files of this process, once it is installed."""

    def __init__(self) -> None:
        library = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
        library.sqlite3_libversion.restype = ctypes.c_char_p
        assert library.sqlite3_libversion().decode() == sqlite3.sqlite_version, "Python has another SQLite inside"
        library.sqlite3_vfs_find.restype = ctypes.POINTER(Vfs)
        self.vfs = library.sqlite3_vfs_find(None).contents
        self.straight = OpenFile(self.vfs.open)
        self.kept: list[Any] = []  # what C code calls must not be collected
        mine = OpenFile(self.open)
        self.kept.append(mine)
        self.vfs.open = ctypes.cast(mine, Pointer).value

    def open(self, vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        """Open a file; what is done to it is noted from then on."""
        code = self.straight(vfs, name, file, flags, out)
        if code == OK and name:
            place = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
            methods = Methods.from_buffer_copy(ctypes.cast(place[0], ctypes.POINTER(Methods)).contents)
            write, truncate, sync = Write(methods.write), Truncate(methods.truncate), Sync(methods.sync)
            notes = Notes(Path(os.fsdecode(ctypes.string_at(name))))

            def written(file: int, data: int, size: int, offset: int) -> int:
                notes.note(offset, size)
                return int(write(file, data, size, offset))

            def truncated(file: int, size: int) -> int:
                notes.note(size, max(notes.path.stat().st_size - size, 0))
                return int(truncate(file, size))

            def synced(file: int, flags: int) -> int:
                code = int(sync(file, flags))
                notes.forget()
                return code

            mine = Write(written), Truncate(truncated), Sync(synced)
            addresses = (ctypes.cast(one, Pointer).value for one in mine)
            methods.write, methods.truncate, methods.sync = addresses
            self.kept += [mine, methods]
            place[0] = ctypes.addressof(methods)
        return int(code)


class Notes:
    """What a file held before each write since its last sync, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = os.open(f"{path}{NOTES}", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def note(self, offset: int, size: int) -> None:
        with self.path.open("rb") as file:
            file.seek(offset)
            held = file.read(size)
        line = json.dumps([offset, held.hex(), self.path.stat().st_size])
        os.write(self.file, f"{line}\n".encode())

    def forget(self) -> None:
        os.ftruncate(self.file, 0)


def put_back(notes: Path) -> None:
    """Leave the file of these notes as its last sync did."""
    lines = [line for line in notes.read_text().splitlines(keepends=True) if line.endswith("\n")]
    with open(str(notes).removesuffix(NOTES), "r+b") as file:
        for line in reversed(lines):
            offset, held, size = json.loads(line)
            file.seek(offset)
            file.write(bytes.fromhex(held))
            file.truncate(size)
    notes.unlink()


def is_peer() -> bool:
    """Return whether this is a process of the kit's: in the one of the test SQLite stays as it is."""
    spec = sys.modules["__main__"].__spec__
    return spec is not None and spec.name == "converge.testing._processes.peer"


def opened(url: str, options: Any) -> AbstractAsyncContextManager[Store]:
    """Open a file store, in another process on a layer that notes what is not synced."""
    if is_peer():
        BELOW.append(Below())
    return FILE.open(url, options)


def opened_without_sync(url: str, options: Any) -> AbstractAsyncContextManager[Store]:
    """Open a file store that syncs nothing."""
    if is_peer():
        straight = schema.connect_writer

        def connect_writer(path: Any) -> sqlite3.Connection:
            connection = straight(path)
            connection.execute("pragma synchronous = off")
            return connection

        vars(database)["connect_writer"] = connect_writer
    return opened(url, options)


BELOW: list[Below] = []


class PowerBench(Bench):
    """A host whose power can be cut."""

    def url(self) -> str:
        return f"file:{self.fresh() / 'state.db'}"

    def drop_unsynced(self, url: str, options: Any) -> None:
        folder = Path(url.removeprefix("file:")).parent
        noted = list(folder.glob(f"*{NOTES}"))
        assert noted, "SQLite opened no file through the layer"
        for notes in noted:
            put_back(notes)
        for index in folder.glob("*-shm"):
            index.unlink()  # memory of the processes, which are gone


def card_of(open_: Any, monkeypatch: pytest.MonkeyPatch) -> Card:
    """Return the card of a file store that is opened so."""
    backend = attrs.evolve(FILE, open=open_)
    monkeypatch.setattr(card, "bench_of", lambda name, backend, url, folder: PowerBench(backend, url, folder))
    loaded = Loaded(name="file", distribution="", version="", target="", backends={"store": [backend]}, hooks=())
    return card.check(loaded, backend, "", Asked(quick=True, only=TEST), on_test=lambda *_: None)


def test_what_a_file_store_acknowledged_survives_a_power_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    found = card_of(opened, monkeypatch)
    assert found.broken == ()
    assert found.passed == {"S-14": 1}


@pytest.mark.skipif(not EVERYTHING, reason="with FULL_TESTS=1 only, for its length")
def test_one_that_does_not_sync_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (broken,) = card_of(opened_without_sync, monkeypatch).broken
    assert "acknowledged commits are lost with the host's power" in broken.said, broken.report
