"""Channels over TCP, and the listener that accepts them."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator

import anyio

from converge.contracts.transport import NO_TLS, Channel, Listener, Transport
from converge.errors import ChannelError, ConfigError, ConnectionClosed, ConnectionLost
from converge.net.failures import connect_failed, listen_failed, reason_of
from converge.net.sockets import connect, resolve, show
from converge.net.tls import TlsFiles
from converge_transport_tcp._errors import EXHAUSTED, lost
from converge_transport_tcp.address import is_tls, parse
from converge_transport_tcp.options import TcpOptions
from converge_transport_tcp.sockets import SocketChannel
from converge_transport_tcp.tls import secured

# While the process is out of descriptors, or the socket fails again and again, accepting is tried at this interval.
EXHAUSTED_SEC = 0.1


def files_of(options: TcpOptions) -> TlsFiles:
    """Return the files of TLS that the options name."""
    return TlsFiles(options.certificate, options.key, options.ca, is_mutual=options.mutual)


def check_listening(address: str, options: TcpOptions) -> None:
    """Refuse an address with TLS where its files cannot be used.

    Raises:
        ValueError: They cannot; the text says why.
    """
    if is_tls(address):
        files_of(options).check()


class TcpTransport(Transport):
    """Opens TCP channels; plain, since Converge encrypts every record itself."""

    def __init__(self, options: TcpOptions) -> None:
        self._options = options
        self._channels: set[Channel] = set()
        self._tls = files_of(options)

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
        try:
            tls = self._tls if is_tls(address) else None
            if tls is not None:
                tls.server()  # so that what is wrong with its files is told now
        except ConfigError as error:
            raise listen_failed(address, str(error)) from error
        sock = await self._bind(address)
        listener = TcpListener(sock, self._options, tls)
        try:
            yield listener
        finally:
            await listener.close()

    async def connect(self, address: str) -> Channel:
        options = self._options
        try:
            host, port = parse(address)
            with anyio.fail_after(options.connect_sec):
                channel = channel_of(await connect(host, port), options, self._channels)
                return await self._with_tls(channel, host) if is_tls(address) else channel
        except TimeoutError:
            raise connect_failed(address, f"no answer within {options.connect_sec:g} s") from None
        except (OSError, ValueError) as error:
            raise connect_failed(address, error) from error

    async def _with_tls(self, channel: Channel, host: str) -> Channel:
        try:
            context = self._tls.client()
            secure = secured(channel, context, host=host, shake_sec=self._options.connect_sec, shown=NO_TLS)
            self._channels.discard(channel)  # its socket is the other's now
            self._channels.add(secure)
            channel = secure
            await secure.shake()
        except (ConfigError, ChannelError) as error:
            await channel.close()
            why = error.__cause__
            raise why if isinstance(why, ssl.SSLCertVerificationError) else OSError(str(error)) from error
        except BaseException:
            await channel.close()
            raise
        return secure

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

    def __init__(self, sock: socket.socket, options: TcpOptions, tls: TlsFiles | None = None) -> None:
        self.address: str = f"{'tcp' if tls is None else 'tls'}://{show(sock.getsockname())}"
        self._sock, self._options, self._tls = sock, options, tls
        self._channels: set[Channel] = set()

    async def accept(self) -> Channel:
        has_failed = False
        while True:
            try:
                sock, _ = self._sock.accept()
                return self._secured(channel_of(sock, self._options, self._channels))
            except ConnectionLost:
                continue  # gone before it was accepted; it is nobody's channel
            except BlockingIOError:
                await self._wait()
            except OSError as error:
                self._raise_if_closed()
                # Other errors are about one connection; a second one in a row may be about the socket.
                if has_failed or error.errno in EXHAUSTED:
                    await anyio.sleep(EXHAUSTED_SEC)
                has_failed = True

    def _secured(self, channel: Channel) -> Channel:
        if self._tls is None:
            return channel
        context, shown = self._tls.server()
        secure = secured(channel, context, host=None, shake_sec=self._options.connect_sec, shown=shown)
        self._channels.discard(channel)  # its socket is the other's now
        self._channels.add(secure)
        return secure

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


def _socket(family: socket.AddressFamily) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock
