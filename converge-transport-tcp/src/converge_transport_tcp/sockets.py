"""A channel on a plain socket and the event loop's readiness calls, one for every event loop that anyio knows.

An `asyncio.Protocol` beside it was measured and left out: as fast coalesced and one frame a call, a tenth less in a
round trip, and it holds bytes of its own unsent. `tests/bench/bench_transport.py` measures what is here against a bare
Protocol.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence

import anyio
import anyio.lowlevel

from converge.contracts.transport import FRAME_BYTES, Channel
from converge.errors import BadRecord, ChannelError, ConnectionClosed
from converge_transport_tcp._errors import lost
from converge_transport_tcp.framing import Decoder, check, encode, encode_one
from converge_transport_tcp.readiness import Readiness

READ_BYTES = 65_536
# So many reads that found data at once, then others get their turn.
EAGER_READS = 16


class SocketChannel(Channel):
    """Holds nothing unsent: send returns when the kernel has taken every byte."""

    def __init__(self, sock: socket.socket, *, peer: str, frame_sec: float, on_end: Callable[[Channel], None]) -> None:
        self.peer: str = peer
        self.sock: socket.socket = sock
        self.frame_sec: float = frame_sec
        self.on_end: Callable[[Channel], None] = on_end
        self._decoder = Decoder(FRAME_BYTES)
        self._error: ChannelError | None = None
        self._eager = 0
        self._is_drained = False  # the last read took all that there was
        self._since = 0.0  # when the frame began that is not whole, or this side came to wait for its rest
        self._readiness = Readiness(sock, READ_BYTES)

    async def send(self, frames: Sequence[bytes]) -> None:
        if len(frames) == 1 and 0 < len(frames[0]) <= self.frame_bytes:  # the usual case
            await self._write(encode_one(frames[0]))
            return
        check(frames, self.frame_bytes)
        for chunk in encode(frames):
            await self._write(chunk)
        self._raise_if_over()

    async def receive(self) -> Sequence[bytes]:
        frames: list[bytes] = []
        decoder = self._decoder
        is_partial = decoder.is_partial
        if is_partial:
            self._since = anyio.current_time()
        while not frames:
            if self._error is not None:
                self._raise_if_over()
            data = await self._read()
            try:
                decoder.feed(data, frames)
            except BadRecord as error:
                self._end(error)
            if not data:
                self._end(lost(None))
            if not frames and not is_partial:
                is_partial, self._since = True, anyio.current_time()
        return frames

    async def close(self) -> None:
        if self._error is None:
            self._discard()
            self._end(ConnectionClosed("this side closed the channel"))
        await anyio.lowlevel.cancel_shielded_checkpoint()

    async def _write(self, data: bytes) -> None:
        total, rest = len(data), memoryview(b"")
        try:
            if self._error is not None:
                self._raise_if_over()
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent == total:
                return
            rest = memoryview(data)[sent:]
            while rest:
                await anyio.wait_writable(self.sock)
                self._raise_if_over()
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self.sock.send(rest) :]
        except anyio.ClosedResourceError:
            self._raise_if_over()
        except OSError as error:
            self._end(lost(error))
            self._raise_if_over()
        finally:
            # Cancelled in the middle: the peer must not take what a later call sends for the rest of this frame (C-10).
            if rest and len(rest) < total:
                self._end(ConnectionClosed("a send was cancelled in the middle of a frame, which closed the channel"))

    async def _read(self) -> bytes:
        """Wait for bytes; none means the end of the stream."""
        self._eager += 1
        if self._eager > EAGER_READS:
            self._eager = 0
            await anyio.lowlevel.checkpoint()
        while True:
            if self._error is not None:
                self._raise_if_over()
            if self._is_drained:  # to ask for more at once would be in vain almost always
                self._is_drained, self._eager = False, 0
                await self._wait_readable()
                if self._error is not None:
                    self._raise_if_over()
            try:
                data = self._readiness.take()
                if data is None:
                    data = self.sock.recv(READ_BYTES)
            except BlockingIOError:
                self._is_drained = True
            except OSError as error:
                self._end(lost(error))
            else:
                self._is_drained = len(data) < READ_BYTES
                return data

    async def _wait_readable(self) -> None:
        try:
            if not self._decoder.is_partial:
                await self._readiness.wait()
                return
            with anyio.move_on_at(self._since + self.frame_sec) as scope:
                await self._readiness.wait()
        except anyio.ClosedResourceError:
            self._raise_if_over()
            raise
        if scope.cancelled_caught:
            self._end(BadRecord(f"a frame was not whole {self.frame_sec:g} s after its first byte"))

    def _discard(self) -> None:
        # Closing a socket with unread bytes resets the connection, and with it what the peer has not read yet.
        with contextlib.suppress(OSError):
            for _ in range(EAGER_READS):
                if not self.sock.recv(READ_BYTES):
                    return

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args) from self._error.__cause__

    def _end(self, error: ChannelError) -> None:
        """Remember why, once, and let go of the socket; whoever waits on it wakes up."""
        if self._error is not None:
            return
        self._error = error
        self._readiness.close()
        anyio.notify_closing(self.sock)
        self.sock.close()
        self.on_end(self)
