"""Channels over TCP, and the listener that accepts them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator

import anyio

from converge.contracts.transport import Channel, Listener, Transport
from converge.errors import ConnectionClosed, ConnectionLost
from converge_transport_tcp._errors import EXHAUSTED, connect_failed, listen_failed, lost, reason_of
from converge_transport_tcp.address import SCHEME, Endpoint, parse, resolve, show
from converge_transport_tcp.options import TcpOptions
from converge_transport_tcp.sockets import SocketChannel

# While the process is out of descriptors, accepting is tried again at this interval.
EXHAUSTED_SEC = 0.1


class TcpTransport(Transport):
    """Opens TCP channels; plain, since Converge encrypts every record itself."""

    def __init__(self, options: TcpOptions) -> None:
        self._options = options
        self._channels: set[Channel] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, options: TcpOptions) -> AsyncIterator[TcpTransport]:
        """Yield a transport; leaving it closes the channels that are left."""
        transport = cls(options)
        try:
            yield transport
        finally:
            await close_all(transport._channels)

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        sock = await self._bind(address)
        listener = TcpListener(sock, self._options)
        try:
            yield listener
        finally:
            await listener.close()

    async def connect(self, address: str) -> Channel:
        try:
            with anyio.fail_after(self._options.connect_sec):
                sock = await _dial(await resolve(*parse(address)))
        except TimeoutError:
            raise connect_failed(address, f"no answer within {self._options.connect_sec:g} s") from None
        except (OSError, ValueError) as error:
            raise connect_failed(address, reason_of(error)) from error
        return channel_of(sock, self._options, self._channels)

    async def _bind(self, address: str) -> socket.socket:
        try:
            family, sockaddr = (await resolve(*parse(address)))[0]
            sock = _socket(family)
            try:
                if os.name == "posix":
                    # So that a restarted node gets its port back; on Windows the option would let two processes share
                    # it.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(sockaddr)
                sock.listen(self._options.backlog)
            except BaseException:
                sock.close()
                raise
        except (OSError, ValueError, OverflowError) as error:
            raise listen_failed(address, reason_of(error)) from error
        return sock


class TcpListener(Listener):
    """A bound socket; connections wait in the kernel until accept takes them, so they are bounded by `backlog`."""

    def __init__(self, sock: socket.socket, options: TcpOptions) -> None:
        self.address = f"{SCHEME}://{show(sock.getsockname())}"
        self._sock, self._options = sock, options
        self._channels: set[Channel] = set()

    async def accept(self) -> Channel:
        while True:
            try:
                sock, _ = self._sock.accept()
                return channel_of(sock, self._options, self._channels)
            except ConnectionLost:
                continue  # gone before it was accepted; it is nobody's channel
            except BlockingIOError:
                await self._wait()
            except OSError as error:
                self._raise_if_closed()
                if error.errno in EXHAUSTED:
                    await anyio.sleep(EXHAUSTED_SEC)

    async def close(self) -> None:
        """Close the socket, then every channel accepted here (C-11)."""
        anyio.notify_closing(self._sock)
        self._sock.close()
        await close_all(self._channels)

    async def _wait(self) -> None:
        try:
            await anyio.wait_readable(self._sock)
        except anyio.ClosedResourceError:
            self._raise_if_closed()
            raise

    def _raise_if_closed(self) -> None:
        if self._sock.fileno() < 0:
            raise ConnectionClosed("the listener was closed")


def channel_of(sock: socket.socket, options: TcpOptions, channels: set[Channel]) -> Channel:
    """Make a channel of a connected socket, known in `channels` until it ends."""
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = SocketChannel(
            sock, peer=show(sock.getpeername()), frame_sec=options.frame_sec, on_end=channels.discard
        )
    except OSError as error:
        sock.close()
        raise lost(error) from error
    channels.add(channel)
    return channel


async def close_all(channels: set[Channel]) -> None:
    """Close side by side, so that many silent peers take no longer than one."""
    async with anyio.create_task_group() as group:
        for channel in list(channels):
            group.start_soon(channel.close)


async def _dial(endpoints: list[Endpoint]) -> socket.socket:
    """Try one address after the other; the last one's error counts."""
    failure: OSError = OSError("the host has no address")
    for family, sockaddr in endpoints:
        sock = _socket(family)
        try:
            await _connect(sock, sockaddr)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _connect(sock: socket.socket, sockaddr: tuple[str, int] | tuple[str, int, int, int]) -> None:
    try:
        sock.connect(sockaddr)
    except BlockingIOError:
        await anyio.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code)) from None


def _socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock
