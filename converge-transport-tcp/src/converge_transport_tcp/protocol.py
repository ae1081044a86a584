"""A channel as an `asyncio.Protocol`: beside the one on sockets, since it sends one frame a call three times as fast and answers sooner.

`tests/bench/bench_transport.py` measures both.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence
from typing import cast

import anyio

from converge.contracts.transport import FRAME_BYTES, WRITE_QUEUE_BYTES, Channel
from converge.errors import BadRecord, ChannelError, ConnectionClosed
from converge_transport_tcp._errors import lost
from converge_transport_tcp.framing import Decoder, check, encode

# send waits above it; with the chunk that may follow it stays well under the contract's bound.
HIGH_BYTES = WRITE_QUEUE_BYTES // 4
# Reading pauses while more than this waits for receive.
HELD_BYTES = 262_144
CLOSE_SEC = 1.0
# An unfinished frame is looked at so many times within its time. A loop that was blocked looks once, however long it was, so it costs no connection.
LOOKS = 4


class ProtocolChannel(Channel, asyncio.Protocol):
    """One connection; all calls and callbacks in one event loop."""

    def __init__(self, *, peer: str, frame_sec: float, on_end: Callable[[Channel], None]) -> None:
        self.peer = peer
        self._frame_sec, self._on_end = frame_sec, on_end
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder(FRAME_BYTES)
        self._frames: list[bytes] = []
        self._held = 0
        self._written = 0
        self._error: ChannelError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._is_full = False
        self._is_paused = False
        self._ended = self._loop.create_future()
        self._look: asyncio.TimerHandle | None = None

    @classmethod
    async def adopt(cls, sock: socket.socket, *, peer: str, frame_sec: float, on_end: Callable[[Channel], None]) -> ProtocolChannel:
        """Make a channel of a connected socket, which it then owns."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_connection(lambda: cls(peer=peer, frame_sec=frame_sec, on_end=on_end), sock=sock)
        return channel

    async def send(self, frames: Sequence[bytes]) -> None:
        check(frames, self.frame_bytes)
        self._raise_if_over()
        for chunk in encode(frames):
            while self._is_full or self._written > HIGH_BYTES:
                await self._drained()
                self._raise_if_over()
            self._written += len(chunk)
            self._open_transport.write(chunk)

    async def receive(self) -> Sequence[bytes]:
        while not self._frames:
            self._raise_if_over()
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frames, self._frames, self._held = self._frames, [], 0
        if self._is_paused:
            self._is_paused = False
            self._open_transport.resume_reading()
        return frames

    async def close(self) -> None:
        if self._ended.done():
            self._over(ConnectionClosed("this side closed the channel"))
            return
        self._over(ConnectionClosed("this side closed the channel"))
        self._frames.clear()
        transport = self._open_transport
        if self._is_paused:
            # Closing a socket with unread bytes resets the connection, and with it what the peer has not read yet: read, discard, let the peer close.
            self._is_paused = False
            transport.resume_reading()
            transport.write_eof()
        else:
            transport.close()
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            await asyncio.shield(self._ended)
        if not self._ended.done():
            transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._error is not None:
            return
        try:
            self._decoder.feed(data, self._frames)
        except BadRecord as error:
            self._over(error)
            self._open_transport.abort()
            return
        self._held += len(data)
        if self._frames:
            if self._held > HELD_BYTES and not self._is_paused:
                self._is_paused = True
                self._open_transport.pause_reading()
            _wake(self._reader)
        if self._look is None and self._decoder.is_partial:
            self._look_later(self._decoder.frames, LOOKS)

    def eof_received(self) -> bool:
        self._over(lost(None))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(lost(exc))
        if self._look is not None:
            self._look.cancel()
        if not self._ended.done():
            self._ended.set_result(None)
        self._on_end(self)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        _wake(self._writer)

    # Private.

    @property
    def _open_transport(self) -> asyncio.Transport:
        assert self._transport is not None  # create_connection has called connection_made before it gave the channel
        return self._transport

    async def _drained(self) -> None:
        self._written = 0
        if not self._is_full:
            # A sender whose peer reads fast never waits; the others of its event loop get their turn here.
            await asyncio.sleep(0)
            return
        self._writer = self._loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def _look_later(self, frames: int, looks: int) -> None:
        self._look = self._loop.call_later(self._frame_sec / LOOKS, self._look_at_partial, frames, looks)

    def _look_at_partial(self, frames: int, looks: int) -> None:
        self._look = None
        if not self._decoder.is_partial or self._error is not None:
            return
        if self._decoder.frames != frames or self._is_paused:
            self._look_later(self._decoder.frames, LOOKS)
        elif looks > 1:
            self._look_later(frames, looks - 1)
        else:
            self._over(BadRecord(f"a frame was not whole {self._frame_sec:g} s after its first byte"))
            self._open_transport.abort()

    def _over(self, error: ChannelError) -> None:
        if self._error is None:
            self._error = error
        elif isinstance(error, ConnectionClosed):
            # From now on it is we who ended it, whatever the world did before.
            self._error = error
        _wake(self._reader)
        _wake(self._writer)

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        with contextlib.suppress(asyncio.InvalidStateError):
            waiter.set_result(None)
