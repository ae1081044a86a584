"""Where a store's file may be: a path in a folder that is there, on a disk of this host."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from converge.builtin.file._errors import translated
from converge.builtin.file.schema import APPLICATION_ID
from converge.errors import NoSuchStore, StoreRefused

log = logging.getLogger("converge.store")

NETWORK_FILE_SYSTEMS = frozenset(
    ("9p", "acfs", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.blobfuse2", "fuse.ceph",
    "fuse.davfs2", "fuse.gcsfuse",
     "fuse.glusterfs", "fuse.juicefs", "fuse.mfs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2",
     "glusterfs", "gpfs", "lustre",
     "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "smb2", "smb3", "smbfs")
)  # fmt: skip
"""Types whose locks and shared memory do not reach the other hosts that see the file."""

SHARED_FILE_SYSTEMS = frozenset(
    ("drvfs", "fakeowner", "fuse.fakeowner", "fuse.grpcfuse", "fuse.osxfs", "fuse.vmhgfs-fuse", "grpcfuse", "osxfs",
    "prl_fs", "vboxsf",
     "virtiofs", "vmhgfs")
)  # fmt: skip
"""Types by which a virtual machine or container sees a folder of its host: two kernels with locks of their own."""

LOCAL_FUSE = frozenset(("fuse.bindfs", "fuse.encfs", "fuse.fuse-overlayfs", "fuse.gocryptfs"))
"""Types in user space that only one kernel sees."""

SCARCE_BYTES = 1_073_741_824
"""Where less is free a reserve is kept for deleting."""

RESERVE_BYTES, RESERVE_SHARE = 6_291_456, 4
"""How large it is: what the log and a delete write at most; at most such a part of what is free."""

BESIDE = ("-wal", "-shm", "-journal", ".lock", ".turn", ".wake", ".reserve")
"""What the names of the files end in that belong to a store, beside its own."""

OPEN_BYTES = 131_072
"""What SQLite needs to open a file that nobody else has open: the log and the shared memory."""

MOUNTS = Path("/proc/mounts")


def checked_path(url: str, *, must_exist: bool = False) -> str:
    """Return the absolute path of `file:PATH`, without symbolic links: whoever opens the file by whatever name meets
    the same locks and the same log.

    Raises:
        StoreRefused: It is no place for a store, or there is none though there must be; why, and what to do.
    """
    text = re.sub(r"^file:(//)?", "", url, flags=re.IGNORECASE)
    if not text or "\0" in text:
        raise StoreRefused("file: a path is missing; write file:state.db")
    try:
        text.encode()  # SQLite takes a path as UTF-8
    except UnicodeEncodeError as error:
        raise StoreRefused(f"file:{text!a} is not UTF-8; name a file in UTF-8, in a locale of UTF-8") from error
    path = Path(text).absolute()
    try:
        if path.is_dir():
            raise StoreRefused(f"{path} is a folder; name a file in it")
        path, found = _resolved(path)
        if not path.parent.is_dir():
            if text.startswith("~"):
                raise StoreRefused(f"file:{text}: only a shell knows what ~ is; write the path of the folder whole")
            raise StoreRefused(f"{path.parent} does not exist; make the folder first")
        _check_name(path)
    except (OSError, RuntimeError) as error:
        raise StoreRefused(
            f"{path} cannot be opened for writing ({error}); look at its own and its folder's permissions"
        ) from error
    if found and not stat.S_ISREG(found.st_mode):
        raise StoreRefused(f"{path} is a device, a pipe or a socket; name a file")
    has_content = found is not None and found.st_size > 0  # an empty file is no store yet
    _check_file_system(path)
    if must_exist and not has_content:
        others = [
            other.name
            for other in path.parent.glob(f"*{path.suffix}")
            if other != path and other.is_file() and _store_of(other) == other
        ]
        near = difflib.get_close_matches(path.name, others, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "`converge run` with this store makes it"
        raise NoSuchStore(f"there is no store at {path}; {hint}")
    if has_content:
        _check_head(path)
    return str(path)


def _resolved(path: Path) -> tuple[Path, os.stat_result | None]:
    """Return the path without symbolic links, and what is there, if anything is."""
    try:
        path = path.resolve(strict=True)
        return path, path.stat()
    except FileNotFoundError:
        return path.resolve(), None


def _check_name(path: Path) -> None:
    """Refuse the name of a file that belongs to another store, and one too long for the files beside it."""
    if (store := _store_of(path)).is_file() and store != path:
        raise StoreRefused(f"{path} belongs to the store {store}; name another file")
    longest = os.pathconf(path.parent, "PC_NAME_MAX") - max(map(len, BESIDE))
    if (size := len(os.fsencode(path.name))) > longest:
        raise StoreRefused(
            f"the name of a store in {path.parent} has at most {longest} bytes, not {size}; name another file"
        )


def _store_of(path: Path) -> Path:
    """Return the path of the store to which a file would belong by its name."""
    name = next((path.name.removesuffix(end) for end in BESIDE if path.name.endswith(end)), path.name)
    return path.with_name(name) if name else path


def _check_file_system(path: Path) -> None:
    """Refuse a file system whose locks or shared memory do not reach all who may open the file; warn of others."""
    if any(point == str(path) for point, _ in _mounts()):
        raise StoreRefused(
            f"{path} is mounted without its folder, so that its log would not be beside it where it is kept, and what "
            "the log holds would be lost with this system; mount its folder"
        )
    kind = file_system(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreRefused(
            f"{path} is on a network file system ({kind}), whose locks cannot be relied on; use a local disk, or a "
            "Redis or SQL store"
        )
    if kind in SHARED_FILE_SYSTEMS:
        raise StoreRefused(
            f"{path} is in a folder that several systems share ({kind}), whose locks cannot be relied on; use a volume "
            "or disk of this system's own"
        )
    if kind.startswith("fuse.") and kind not in LOCAL_FUSE:
        log.warning(
            "%s is on %s, which Converge does not know: if several systems see it, its locks cannot be relied on, and "
            "tasks may be lost",
            path,
            kind,
        )


def _check_head(path: Path) -> None:
    """Refuse what is not ours before locks are made beside it. Ours has no mark, and later some pages, while it is made
    and first folded back from its log; it has a turnstile then, in which who opens it looks again.

    SQLite reads it, since a descriptor of our own would drop this process's locks when it is closed.
    """
    try:
        with translated(str(path)), closing(_looking(path)) as connection:
            (owner,) = connection.execute("pragma application_id").fetchone()
            (page_bytes,) = connection.execute("pragma page_size").fetchone()
    except StoreRefused as refused:
        if getattr(refused.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_CORRUPT:
            return  # it may be just growing: this look waits for no lock. Who opens it does, and finds out
        raise
    is_begun = path.stat().st_size <= page_bytes or path.with_name(f"{path.name}.turn").exists()
    if owner not in (0, APPLICATION_ID) or (owner == 0 and not is_begun):
        raise StoreRefused(f"{path} is a database of another program; choose another path")


def _looking(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?immutable=1", uri=True)


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


def keep_reserve(path: str, *, is_opening: bool = False) -> None:
    """Keep some room for deleting once the disk runs full: a delete is written to the log first, and the log is folded
    back by making the file larger, so a disk without any room could never be cleared. Called in the turnstile.
    """
    place = os.statvfs(Path(path).parent)
    free = place.f_bavail * place.f_frsize
    if is_opening and free < OPEN_BYTES:
        give_reserve_up(path, OPEN_BYTES)  # else the file could not even be opened
    wanted = min(RESERVE_BYTES, free // RESERVE_SHARE)
    if free > SCARCE_BYTES or wanted < OPEN_BYTES:
        return
    with suppress(OSError):  # it is full meanwhile
        descriptor = os.open(f"{path}.reserve", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_blocks * 512 < wanted:
                os.pwrite(descriptor, bytes(wanted), 0)
        finally:
            os.close(descriptor)


def give_reserve_up(path: str, size: int = RESERVE_BYTES) -> None:
    """Release so much of the reserved room; it is reserved again when there is some."""
    with suppress(OSError):
        os.truncate(f"{path}.reserve", max(0, _size(f"{path}.reserve") - size))


def file_system(folder: Path) -> str:
    """Return the type of the file system that holds the folder, or empty where the host does not say."""
    real = str(folder.resolve())
    # The longest mount point wins, and of several on one point the last.
    best, found = -1, ""
    for point, kind in _mounts():
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= best:
            best, found = len(point), kind
    return found


def _mounts() -> list[tuple[str, str]]:
    """Return each mount point with its type; none where the host does not say."""
    try:
        mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return []
    # Blanks in a point are written as octal.
    return [(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point), kind) for point, kind in mounts]
