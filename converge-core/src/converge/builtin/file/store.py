"""FileStore: SQLite in WAL mode with full durability; reads where they are asked, writes in a thread behind the turnstile."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from converge.builtin.file.database import Reader
from converge.builtin.file.options import FileOptions
from converge.builtin.file.wake import WakeUps, remove
from converge.builtin.file.worker import Worker
from converge.contracts.store import LIMITS, Batch, Channel, Committed, Conflict, Durability, Entry, Key, Prefix, Range, Store, Take, Turned
from converge.errors import StoreRefused, ValueTooLarge

_NETWORK_FILE_SYSTEMS = frozenset(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "fuse.sshfs", "lustre"))


class FileStore(Store):
    """One handle on a file; opened with `open` or `converge.open_store("file:PATH")`."""

    def __init__(self, path: str, options: FileOptions) -> None:
        self._path, self._options = path, options
        self.durability = Durability.D2
        self._reader = Reader(path)
        self._worker = Worker(path, options.busy_sec)
        self._wake_ups = WakeUps(path)
        self._wake_ups.open()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: FileOptions | None = None) -> AsyncIterator[FileStore]:
        """Open `file:PATH`, making the file if there is none; its folder must exist.

        Raises:
            StoreRefused: The path is no place for a store: no folder, another program's file, a network file system, no permission.
            SchemaTooNew: A newer release made it.
        """
        path = await anyio.to_thread.run_sync(_checked_path, url)
        store = cls(path, options or FileOptions())
        try:
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await store._close()

    async def _close(self) -> None:
        await self._worker.close()
        self._reader.close()
        self._wake_ups.close()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return self._reader.get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        return self._reader.scan(ranges)

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        return [self._reader.count(prefix) for prefix in prefixes]

    async def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        return (await self.turn(batches, None, wake=wake)).outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        for batch in batches:
            for key, value in batch.puts:
                if len(value) > LIMITS.value_bytes:
                    raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
        turned = await self._worker.turn(batches, take) if batches or take is not None else Turned([], None)
        self._wake_ups.tell(wake)
        return turned

    async def time(self) -> int:
        return self._worker.clock.now()

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        listener, paths = self._wake_ups.listen(channels)
        reader = Reader(self._path)  # `data_version` tells of commits by any other connection, also by this handle's own
        try:
            version = reader.data_version()
            yield None
            while True:
                with anyio.move_on_after(self._options.poll_sec):
                    await anyio.wait_readable(listener)
                is_told = _drain(listener)
                changed = reader.data_version()
                if is_told or changed != version:
                    version = changed
                    yield None
        finally:
            listener.close()
            reader.close()
            remove(paths)

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        store = FileStore(self._path, self._options)
        try:
            yield store
        finally:
            with anyio.CancelScope(shield=True):
                await store._close()


def _drain(listener: object) -> bool:
    is_told = False
    while True:
        try:
            listener.recv(16)  # type: ignore[attr-defined]  # a socket
            is_told = True
        except BlockingIOError:
            return is_told


def _checked_path(url: str) -> str:
    text = url.removeprefix("file:")
    if text.startswith("//"):
        text = text[2:]
    if not text:
        raise StoreRefused("file: a path is missing; write file:state.db")
    path = Path(text).absolute()
    if path.is_dir():
        raise StoreRefused(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise StoreRefused(f"{path.parent} does not exist; make the folder first")
    kind = _file_system(path.parent)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreRefused(f"{path} is on a network file system ({kind}), whose locks cannot be relied on; use a local disk, or a Redis or SQL store")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) if os.access(path.parent, os.W_OK) else -1
    if descriptor >= 0:
        os.close(descriptor)
    return str(path)


def _file_system(folder: Path) -> str:
    """The type of the file system that holds the folder, where /proc/mounts says it; else empty."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    real = str(folder.resolve())
    found = [(len(point), kind) for point, kind in mounts if real == point or real.startswith(point.rstrip("/") + "/")]
    return max(found)[1] if found else ""
