"""Where a store's file may be: a path in a folder that is there, on a disk of this host."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from converge.builtin.file.schema import APPLICATION_ID
from converge.errors import StoreRefused

NETWORK_FILE_SYSTEMS = frozenset(
    ("9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs",
     "nfs4", "ocfs2", "smb3", "smbfs")
)  # fmt: skip
"""Types whose locks and shared memory do not reach the other hosts that see the file."""

MAGIC = b"SQLite format 3\0"
"""How each database of SQLite begins, as its file format says."""

HEAD_BYTES = 100
"""What a SQLite file begins with: the mark above, and at 28 the number of pages, at 68 whose file it is."""

MOUNTS = Path("/proc/mounts")


def checked_path(url: str, *, must_exist: bool = False) -> str:
    """Return the absolute path of `file:PATH`, where a file is then, readable by its owner alone if it is new.

    Raises:
        StoreRefused: It is no place for a store, or there is none though there must be; why, and what to do.
    """
    text = re.sub(r"^file:(//)?", "", url)
    if not text or "\0" in text:
        raise StoreRefused("file: a path is missing; write file:state.db")
    path = Path(text).absolute()
    if path.is_dir():
        raise StoreRefused(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise StoreRefused(f"{path.parent} does not exist; make the folder first")
    kind = file_system(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreRefused(f"{path} is on a network file system ({kind}), whose locks cannot be relied on; use a local disk, or a Redis or SQL store")
    if must_exist and not (path.exists() and path.stat().st_size):  # an empty file is none yet
        others = [other.name for other in path.parent.glob(f"*{path.suffix}") if other != path and other.is_file()]
        near = difflib.get_close_matches(path.name, others, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "`converge run` with this store makes it"
        raise StoreRefused(f"there is no store at {path}; {hint}")
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise StoreRefused(f"{path} cannot be opened for writing ({error.strerror}); look at its own and its folder's permissions") from error
    # Before locks are made beside a file that is not ours.
    if head and not head.startswith(MAGIC):
        raise StoreRefused(f"{path}: it is not a SQLite database, or it is damaged; choose another path")
    if _is_foreign(head):
        raise StoreRefused(f"{path} is a database of another program; choose another path")
    return str(path)


def _is_foreign(head: bytes) -> bool:
    """Tell whether a file with this head has another program's tables; while ours are made, it has one page and no mark, and `schema` decides."""
    pages, owner = (int.from_bytes(head[at : at + 4]) for at in (28, 68))
    return owner not in (0, APPLICATION_ID) or (owner == 0 and pages > 1)


def facts(path: str) -> dict[str, str | int]:
    """Return where the file is, how large, and how much room is left beside it."""
    room = os.statvfs(Path(path).parent)
    return {
        "path": path,
        "file_bytes": _size(path),
        "wal_bytes": _size(f"{path}-wal"),
        "free_bytes": room.f_bavail * room.f_frsize,
        "file_system": file_system(Path(path).parent),
    }


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # a log is there only while the store is open somewhere


def file_system(folder: Path) -> str:
    """The type of the file system that holds the folder, where the host says it; else empty."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    real = str(folder.resolve())
    # The longest mount point wins, and of several on one point the last. Blanks in a point are written as octal.
    best, found = -1, ""
    for escaped, kind in mounts:
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), escaped)
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, found = len(point), kind
    return found
