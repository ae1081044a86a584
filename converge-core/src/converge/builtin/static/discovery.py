"""Static discovery: the configured endpoints; core fetches and verifies the descriptors of the agents there."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.lowlevel import checkpoint

from converge.builtin.static.options import ENDPOINTS, StaticOptions, check_endpoint
from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import Store
from converge.errors import ConfigError
from converge.threads import in_own_thread

log = logging.getLogger("converge.static")


class StaticDiscovery(Discovery):
    """The endpoints of a list, or of a file that may change."""

    def __init__(self, endpoints: Sequence[str], file: Path | None = None, poll_sec: float = 1.0) -> None:
        self._endpoints, self._file, self._poll_sec = tuple(dict.fromkeys(endpoints)), file, poll_sec

    @classmethod
    @asynccontextmanager
    async def open(cls, options: StaticOptions, *, store: Store, poll_sec: float) -> AsyncIterator[Discovery]:
        """Yield the discovery; the store is not used.

        Raises:
            ConfigError: The file cannot be read, or a line of it is no endpoint.
        """
        file = Path(options.file) if options.file else None
        yield cls(options.endpoints if file is None else await in_own_thread(read, file), file, poll_sec)

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await checkpoint()  # nothing is taken in (D-5): others ask this node

    async def withdraw(self, ids: Sequence[str]) -> None:
        await checkpoint()

    async def snapshot(self) -> list[Sighting]:
        await checkpoint()
        if self._file is not None:
            await self._read_again(self._file)
        return [Sighting(endpoint, (endpoint,)) for endpoint in self._endpoints]

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        told = None
        while True:
            now = await self.snapshot()
            if now != told:
                told = now
                yield now
            await anyio.sleep(self._poll_sec)

    async def _read_again(self, file: Path) -> None:
        try:
            self._endpoints = await in_own_thread(read, file)
        except ConfigError as error:
            log.warning("the endpoints stay as they were: %s", error)


def read(file: Path) -> tuple[str, ...]:
    """Return the endpoints of a file: one a line; a # that begins a line or stands after a blank begins a comment.

    Raises:
        ConfigError: It cannot be read, or a line is no endpoint: which.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"options.static.file: {file} cannot be read: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition(" #")[0].strip()
        if text and not text.startswith("#"):
            try:
                found.append(check_endpoint(text))
            except ValueError as error:
                raise ConfigError(f"options.static.file: {file}, line {number}: {error}") from error
    if len(found) > ENDPOINTS:
        raise ConfigError(
            f"options.static.file: {file} has {len(found):,} endpoints; the most there may be are {ENDPOINTS:,}"
        )
    return tuple(dict.fromkeys(found))
