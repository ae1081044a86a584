"""What the file store tells `converge doctor`: how safely it writes, who can read its file, and the room beside it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_IRGRP, S_IROTH

from converge.contracts.store import Durability, Finding, Inspection, error, fine, warning

ROOM_BYTES, ROOM_LEAST_BYTES = 1_073_741_824, 67_108_864
"""Free bytes beside the file: below the first it is time to look, below the second a burst of work fills it."""

WAL_BYTES = 268_435_456
"""A write-ahead log so large means that a reader, a backup say, has kept it from being folded back for long."""

SAFE = {"journal_mode": ("wal", "delete", "truncate", "persist"), "synchronous": ("full", "extra")}
"""The settings with which a commit is on the disk before it is acknowledged."""


def inspection(facts: Mapping[str, str | int]) -> Inspection:
    """Return what the store's facts mean for an operator."""
    unsafe = [f"{name} is {facts[name]}" for name, safe in SAFE.items() if name in facts and facts[name] not in safe]
    findings = [*_settings(unsafe), *_place(facts), *_room(facts)]
    return Inspection(
        durability=Durability.D1 if unsafe else Durability.D2,
        product=f"SQLite {sqlite3.sqlite_version}",
        findings=tuple(findings),
    )


def _settings(unsafe: list[str]) -> Iterator[Finding]:
    if unsafe:
        text = f"{' and '.join(unsafe)}: a power cut can lose what was acknowledged"
        yield error("durability", text, "let Converge open it with its own settings")


def _place(facts: Mapping[str, str | int]) -> Iterator[Finding]:
    path = Path(str(facts["path"]))
    if path.exists() and path.stat().st_mode & (S_IRGRP | S_IROTH):
        text = f"{path} can be read by other users, with the inputs and results of tasks"
        yield warning("file-mode", text, f"chmod 600 {path}")
    if "file_system" in facts:  # a network file system is refused when the store is opened
        yield fine("file-system", f"{path} is on {facts['file_system'] or 'a file system whose type is not known'}")


def _room(facts: Mapping[str, str | int]) -> Iterator[Finding]:
    free, wal = facts.get("free_bytes"), facts.get("wal_bytes")
    if isinstance(free, int):
        said = f"{free / 2**30:.1f} GiB are free beside {facts['path']}"
        if free < ROOM_LEAST_BYTES:
            yield error("disk", said, "make room now; writes are refused once it is full, and nothing is lost")
        elif free < ROOM_BYTES:
            yield warning("disk", said, "make room; `converge tasks purge` removes ended tasks")
        else:
            yield fine("disk", said)
    if isinstance(wal, int) and wal > WAL_BYTES:
        said = f"the write-ahead log has {wal / 2**20:.0f} MiB"
        yield warning("wal", said, "find the program that reads the file for so long: fuser, lsof")
