"""The output of an attempt: numbered and written in the order of calls, so that a reader misses nothing."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec

from converge.codec import encode, encode_plain, moment_or
from converge.contracts.store import LIMITS, Channel, Key, Put, Range
from converge.errors import ValueTooLarge
from converge.machines.durable import Chunk
from converge.model.keys import CHUNK, READER
from converge.services.durable.ledger import Ledger
from converge.services.durable.limits import CHUNK_BYTES, CHUNKS, READERS_FRESH_SEC
from converge.services.durable.output import channel_of

OUTPUT_BATCH = 100
"""Pieces of output of one batch: with the longest ones it fits into a call."""


class PuttingOut:
    """The output of one attempt."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._next = 0
        self._waiting: list[tuple[int, bytes]] = []
        self._written = -1
        self._turn = anyio.Lock()
        self._readers: list[Channel] = []
        self._readers_due = float("-inf")

    async def emit(self, data: Any, step: str, *, is_progress: bool = False) -> None:
        """Emit a piece of output; return when it is stored.

        Raises:
            InvalidValue, ValueTooLarge: It cannot be put out.
            StaleClaim, StoreError: As `Ledger.write`.
        """
        raw = encode_plain(data, "progress" if is_progress else "emit")
        if len(raw) > CHUNK_BYTES:
            raise ValueTooLarge("a piece of output", len(raw), CHUNK_BYTES)
        number, self._next = self._next, self._next + 1
        self._waiting.append((number, encode(Chunk(msgspec.Raw(raw), step, is_progress))))
        while self._written < number:
            async with self._turn:  # those that come meanwhile go out together, behind these
                if self._written < number:
                    await self._write()

    async def _write(self) -> None:
        ledger, some = self._ledger, self._waiting[:OUTPUT_BATCH]
        puts: list[Put] = [(CHUNK(ledger.id, ledger.token, number), value) for number, value in some]
        deletes: list[Key] = [CHUNK(ledger.id, ledger.token, number - CHUNKS) for number, _ in some if number >= CHUNKS]
        await self._look_for_readers()
        await ledger.write(puts, deletes, wake=self._readers)
        self._waiting = self._waiting[len(some) :]
        self._written = some[-1][0]

    async def _look_for_readers(self) -> None:
        handle = self._ledger.handle
        monotonic = handle.env.monotonic()
        if monotonic < self._readers_due:
            return
        readers = Range(READER(self._ledger.id), None, LIMITS.keys)
        (page,) = await self._ledger.patiently(lambda: handle.store.scan([readers]))
        now = handle.about_now()
        self._readers = [channel_of(entry.key[2]) for entry in page if moment_or(entry.value, 0) > now]
        self._readers_due = monotonic + READERS_FRESH_SEC
