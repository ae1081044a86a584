"""Blocking calls in the event loop's thread: found when they are made, however short they are on the author's machine.
Python's audit events tell of some; of a sleep they do only from 3.13 on, so `time.sleep` is replaced. Of a disk they
tell nothing: a profile of the thread shows transactions of SQLite, and syncs of files.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, SupportsIndex

from converge.testing.clauses import expect

_STDLIB = sysconfig.get_path("stdlib")
_DEPTH = 30
"""How many frames are looked through for the one that is no part of Python."""


def _blocks_to_connect(sock: Any, _address: Any) -> bool:
    return bool(sock.gettimeout() != 0)


def _blocks_to_lock(_file: Any, operation: int, *_: Any) -> bool:
    return not operation & (fcntl.LOCK_NB | fcntl.LOCK_UN)


_WAITS: Mapping[str, Callable[..., bool]] = {
    "socket.connect": _blocks_to_connect,
    "fcntl.flock": _blocks_to_lock,
    "fcntl.lockf": _blocks_to_lock,
}
"""By the name of an audit event, whether the call waits."""

_OF_SYSTEM = frozenset(("fsync", "fdatasync", "sync", "waitpid", "wait", "wait3", "wait4", "system"))

_seen: list[list[str]] = []
"""What is watched for now; an audit hook cannot be taken away, so it is added once, and looks here."""
_hooks: list[Callable[[str, tuple[Any, ...]], None]] = []


def _audit(event: str, values: tuple[Any, ...]) -> None:
    if _seen and event in _WAITS and _WAITS[event](*values):
        _note(event)


def _on_call(_frame: object, event: str, call: Any) -> None:
    if not _seen or event not in ("c_call", "c_return"):
        return
    owner, name = getattr(call, "__self__", None), call.__name__
    if isinstance(owner, sqlite3.Connection | sqlite3.Cursor):
        if _writes(owner if isinstance(owner, sqlite3.Connection) else owner.connection):
            _note(f"sqlite3.{name} in a transaction")
    elif event == "c_call" and call.__module__ == "posix" and name in _OF_SYSTEM:
        _note(f"os.{name}")


def _writes(connection: sqlite3.Connection) -> bool:
    """Return whether the connection holds what others wait for: who reads outside of a transaction waits for nobody."""
    try:
        return connection.in_transaction
    except sqlite3.Error:
        return False  # it is closed


def _note(call: str) -> None:
    if not _is_in_loop():
        return
    frames = [one for one in traceback.extract_stack(limit=_DEPTH) if not one.filename.startswith(_STDLIB)]
    caller = next((one for one in reversed(frames) if one.filename != __file__), None)
    if caller is not None:
        _seen[-1].append(f"`{call}` at {caller.filename}:{caller.lineno} in {caller.name}")


def _is_in_loop() -> bool:
    trio = sys.modules.get("trio")
    return asyncio._get_running_loop() is not None or (trio is not None and trio.lowlevel.in_trio_run())


def expect_no_waiting(clause: str, seen: list[str]) -> None:
    """Fail the test, naming the clause and each line, if something waited."""
    said = "; ".join(sorted(set(seen)))
    expect(clause, not seen, f"the thread of the event loop waits, and everything else on it: {said}")


@contextmanager
def blocking_calls() -> Iterator[list[str]]:
    """Yield the calls that keep the event loop of the block waiting: a sleep, a lock, a connect of a blocking socket, a
    sync of a file, a transaction of SQLite; each with the line that made it.
    """
    if not _hooks:
        _hooks.append(_audit)
        sys.addaudithook(_audit)
    straight, watcher = time.sleep, sys.getprofile()

    def sleep(seconds: float | SupportsIndex) -> None:
        _note("time.sleep")
        straight(seconds)

    _seen.append([])
    time.sleep = sleep
    sys.setprofile(_on_call)
    try:
        yield _seen[-1]
    finally:
        sys.setprofile(watcher)
        time.sleep = straight
        _seen.pop()
