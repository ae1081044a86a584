"""FileStore: SQLite in WAL mode, fully durable; it reads where it is asked and writes in a thread, in turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial

import anyio

from converge.builtin.file._errors import translated
from converge.builtin.file.clock import Added
from converge.builtin.file.database import pending
from converge.builtin.file.inspection import inspection
from converge.builtin.file.options import FileOptions
from converge.builtin.file.place import checked_path, facts
from converge.builtin.file.reader import Reader
from converge.builtin.file.wake import WakeUps
from converge.builtin.file.worker import Worker
from converge.contracts.store import (
    LIMITS,
    Batch,
    Channel,
    Committed,
    Conflict,
    Entry,
    Inspection,
    Key,
    Prefix,
    Range,
    Store,
    Take,
    Turned,
)
from converge.errors import StoreUnavailable, ValueTooLarge
from converge.threads import NoThread, in_own_thread


class FileStore(Store):
    """One handle on a file; opened with `open` or `converge.open_store("file:PATH")`."""

    def __init__(self, path: str, options: FileOptions, reader: Reader, worker: Worker, wake_ups: WakeUps) -> None:
        self._path, self._options = path, options
        self._reader, self._worker, self._wake_ups = reader, worker, wake_ups
        self._ahead_sec = 0.0  # as it was read last
        self.durability = inspection({"path": path, **worker.settings}).durability

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: FileOptions | None = None) -> AsyncIterator[FileStore]:
        """Open `file:PATH`, making the file if there is none; its folder must exist.

        Raises:
            StoreRefused: The path is no place for a store: no folder, another program's file, a network file system, no
                permission.
            SchemaTooNew: A newer release made it.
            StoreBusy: Another program has held its lock for `busy_sec`.
        """
        options = options or FileOptions()
        path = await _checked(url, must_exist=options.must_exist)
        async with cls._opened(path, options) as store:
            yield store

    @staticmethod
    async def pending(url: str, options: FileOptions | None = None) -> Sequence[str]:
        """Return what `open` would add to a file that is there, a line each, without adding it.

        Raises:
            As `open`; StoreRefused also if there is no store.
        """
        path = await _checked(url, must_exist=True)
        with translated(url):
            return await in_own_thread(pending, path)

    @classmethod
    @asynccontextmanager
    async def _opened(cls, path: str, options: FileOptions) -> AsyncIterator[FileStore]:
        wake_ups = WakeUps(path)
        worker = Worker(path, options.busy_sec, wake_ups.tell)
        with ExitStack() as stack:
            try:
                await worker.start()
                stack.callback(wake_ups.close)
                with translated(path):
                    wake_ups.open()
                with closing(Reader(path)) as reader:  # left before the worker, which tidies up in its turn
                    worker.keep(reader)
                    yield cls(path, options, reader, worker, wake_ups)
            finally:
                with anyio.CancelScope(shield=True):
                    await worker.close()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return self._reader.get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        return self._reader.scan(ranges)

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        return self._reader.count(prefixes)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return (await self.turn(batches, None, wake=wake)).outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        for batch in batches:
            for key, value in batch.puts:
                if len(value) > LIMITS.value_bytes:
                    raise ValueTooLarge(f"the value of {key[0]}", len(value), LIMITS.value_bytes)
        if batches or take is not None:
            return await self._worker.turn(batches, take, wake)
        self._wake_ups.tell(wake)
        return Turned([], None)

    async def note_format(self, number: int) -> None:
        await self._worker.do(lambda database: database.raise_schema(number))

    async def advance(self, revision: int) -> None:
        await self._worker.do(lambda database: database.advance(revision))

    async def time(self) -> int:
        return self._clock().now()

    async def retention_time(self) -> int:
        clock = self._clock()
        return clock.now() - clock.retention_lag()

    def _clock(self) -> Added:
        clock = self._reader.clock()
        self._ahead_sec = clock.ahead / 1_000_000
        return clock

    @property
    def clock_ahead_sec(self) -> float:
        return self._ahead_sec

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        with translated(self._path):
            listener = self._wake_ups.listen(channels)
        try:
            version = self._reader.data_version()
            yield None
            while True:
                with anyio.move_on_after(self._options.poll_sec):
                    await anyio.wait_readable(listener.socket)
                is_told = listener.drain()
                changed = self._reader.data_version()
                if is_told or changed != version:
                    version = changed
                    yield None
        finally:
            is_told = listener.drain()
            listener.close()
            if is_told:  # and left before it looked: another looks in its place
                self._wake_ups.tell(channels)

    async def facts(self) -> Mapping[str, str | int]:
        with translated(self._path):
            return {**await in_own_thread(facts, self._path), **self._worker.settings}

    async def inspect(self) -> Inspection:
        return inspection(await self.facts())

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        async with self._opened(self._path, self._options) as store:
            yield store


async def _checked(url: str, *, must_exist: bool) -> str:
    """Return where the file is; what is wrong with the place is told as it is."""
    try:
        return await in_own_thread(partial(checked_path, url, must_exist=must_exist))
    except NoThread as error:
        raise StoreUnavailable(f"{url}: {error}") from error
