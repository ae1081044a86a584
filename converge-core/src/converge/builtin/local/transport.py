"""Channels within one process and event loop, for tests and for several nodes in one process."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import count

import anyio
import anyio.lowlevel
from anyio.lowlevel import RunVar

from converge.contracts.transport import FRAME_BYTES, WRITE_QUEUE_BYTES, Channel, Listener, Transport
from converge.errors import (
    ChannelError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    InvalidValue,
    ListenFailed,
    MessageTooLarge,
)

# Channels that wait for being accepted; as the backlog of a socket.
BACKLOG = 256
FRAME_OVERHEAD_BYTES = 48

_NAME = re.compile(r"local:(?://)?([A-Za-z0-9._-]{0,64})")
# The names in use, as ports are a host's: not an object's, since two nodes of a process find each other by name alone.
# An event loop has its own, because a channel works within one loop; they end with it.
_NAMES: RunVar[dict[str, LocalListener]] = RunVar("converge.local.names")


def check_address(address: str) -> None:
    """Refuse what can be no address.

    Raises:
        ValueError: It is not `local:NAME`.
    """
    if _NAME.fullmatch(address) is None:
        raise ValueError("it is not local:NAME with a name of letters, digits, dots, dashes")


class LocalTransport(Transport):
    """Opens channels to listeners of the same event loop; `local:` alone draws a free name, as port 0 does."""

    def __init__(self) -> None:
        self._channels: set[LocalChannel] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, options: object) -> AsyncIterator[LocalTransport]:
        """Yield a transport; leaving it closes the channels that are left."""
        transport = cls()
        try:
            yield transport
        finally:
            for channel in list(transport._channels):
                channel.end()

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        names = _names()
        match = _NAME.fullmatch(address)
        if match is None:
            raise ListenFailed(
                f"cannot listen on {address}: it is not local:NAME with a name of letters, digits, dots, dashes"
            )
        name = match[1] or next(free for number in count(1) if (free := f"unnamed-{number}") not in names)
        if name in names:
            raise ListenFailed(
                f"cannot listen on {address}: the name is in use; choose another one, or `local:` for a free one"
            )
        listener = names[name] = LocalListener(f"local:{name}")
        try:
            yield listener
        finally:
            del names[name]
            listener.end()
            await anyio.lowlevel.cancel_shielded_checkpoint()

    async def connect(self, address: str) -> Channel:
        await anyio.lowlevel.checkpoint()
        match = _NAME.fullmatch(address)
        listener = _names().get(match[1]) if match is not None else None
        if listener is None:
            raise ConnectFailed(f"cannot connect to {address}: nobody listens there in this process and event loop")
        here, there = _pair(listener.address, self._channels, listener.channels)
        listener.offer(there)
        return here


class LocalListener(Listener):
    """A name in use, and the channels that nobody has accepted yet."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channels: set[LocalChannel] = set()
        self._waiting: deque[LocalChannel] = deque()
        self._changed = anyio.Event()
        self._is_closed = False

    async def accept(self) -> Channel:
        await anyio.lowlevel.checkpoint()
        while not self._waiting:
            if self._is_closed:
                raise ConnectionClosed("the listener was closed")
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()
        return self._waiting.popleft()

    def offer(self, channel: LocalChannel) -> None:
        """Let the channel wait for being accepted."""
        if len(self._waiting) >= BACKLOG:
            channel.end()
            raise ConnectFailed(
                f"cannot connect to {self.address}: {BACKLOG} channels wait there to be accepted; try again later"
            )
        self._waiting.append(channel)
        self._changed.set()

    def end(self) -> None:
        """Close every channel, accepted or not (C-11)."""
        self._is_closed = True
        self._waiting.clear()
        self._changed.set()
        for channel in list(self.channels):
            channel.end()


class _Pipe:
    """One direction: frames in order, bounded by their bytes. Mutable, and shared by the two ends."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        self.held = 0
        self.is_over = False
        self.readable = anyio.Event()
        self.writable = anyio.Event()

    def put(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.held += cost(frame)
        self.readable.set()

    def drain(self) -> list[bytes]:
        frames = list(self.frames)
        self.frames.clear()
        self.held = 0
        self.writable.set()
        return frames

    def end(self) -> None:
        self.is_over = True
        self.readable.set()
        self.writable.set()


def cost(frame: bytes) -> int:
    """Return what a frame counts for in a pipe: its bytes, and what Python keeps beside them."""
    return len(frame) + FRAME_OVERHEAD_BYTES


class LocalChannel(Channel):
    """One end of two pipes."""

    def __init__(self, outgoing: _Pipe, incoming: _Pipe, *, peer: str, open_channels: set[LocalChannel]) -> None:
        self.peer = peer
        self._out, self._in = outgoing, incoming
        self._open_channels = open_channels
        self._is_closed = False
        open_channels.add(self)

    async def send(self, frames: Sequence[bytes]) -> None:
        sizes = [len(frame) for frame in frames]
        if sizes and max(sizes) > FRAME_BYTES:
            raise MessageTooLarge(
                f"a frame has {max(sizes)} bytes, the limit is {FRAME_BYTES}; nothing was sent, split it"
            )
        if sizes and not min(sizes):
            raise InvalidValue("frame", b"", f"1 to {FRAME_BYTES} bytes")
        await anyio.lowlevel.checkpoint()
        for frame in frames:
            while not self._out.is_over and self._out.held + cost(frame) > WRITE_QUEUE_BYTES:
                self._out.writable = anyio.Event()
                await self._out.writable.wait()
            self._raise_if_over(self._out)
            # Whatever the caller does with a bytearray of its own later, the frame stays what it was.
            self._out.put(bytes(frame))
        self._raise_if_over(self._out)

    async def receive(self) -> Sequence[bytes]:
        await anyio.lowlevel.checkpoint()
        while self._is_closed or not self._in.frames:
            self._raise_if_over(self._in)
            self._in.readable = anyio.Event()
            await self._in.readable.wait()
        return self._in.drain()

    async def close(self) -> None:
        self.end()
        await anyio.lowlevel.cancel_shielded_checkpoint()

    def end(self) -> None:
        """Close without waiting: nothing here has to be flushed."""
        self._is_closed = True
        self._out.end()
        self._in.end()
        self._open_channels.discard(self)

    def _raise_if_over(self, pipe: _Pipe) -> None:
        if self._is_closed:
            raise ConnectionClosed("this side closed the channel")
        if pipe.is_over:
            raise _gone()


def _gone() -> ChannelError:
    return ConnectionLost("the peer is gone; frames sent shortly before may not have been read")


def _pair(address: str, ours: set[LocalChannel], theirs: set[LocalChannel]) -> tuple[LocalChannel, LocalChannel]:
    there, back = _Pipe(), _Pipe()
    return LocalChannel(there, back, peer=address, open_channels=ours), LocalChannel(
        back, there, peer="local:", open_channels=theirs
    )


def _names() -> dict[str, LocalListener]:
    names = _NAMES.get(None)
    if names is None:
        names = {}
        _NAMES.set(names)
    return names
