"""Channels over WebSocket, and the listener that accepts them."""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, cast

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed as WsClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from converge.contracts.transport import NO_TLS, Channel, Listener, Transport
from converge.errors import BadRecord, ChannelError, ConfigError, ConnectionClosed, ConnectionLost
from converge.net.failures import connect_failed, listen_failed, reason_of
from converge.net.sockets import connect, resolve, show
from converge.net.tls import TlsFiles, hash_of
from converge_transport_ws._errors import CONNECTING, ended, why
from converge_transport_ws.address import Address, parse
from converge_transport_ws.connection import DirectConnect, WsClientConnection, WsServerConnection
from converge_transport_ws.framing import MESSAGE_BYTES, pack, unpack
from converge_transport_ws.options import WsOptions

# Upgraded connections that wait for being accepted.
BACKLOG = 256
# Connections that wait in the kernel: what it drops is sent again after a second. It takes no more than somaxconn.
QUEUE = 4_096
# C-5 gives close a second; some of it is for the system.
CLOSE_SEC = 0.8
NOT_UNDERSTOOD = 1003
SUBPROTOCOL = Subprotocol("converge.v1")
# The library reads ahead so many messages: half a megabyte.
READ_AHEAD = 4
# TLS is agreed for who dials before the other side has seen its certificate, and the loop sends no alert.
REFUSED = "it ended the connection after TLS was agreed, as with `mutual` for want of a certificate; its log says why"
# Belongs to no tree: what strangers send must not fill anybody's log. Converge's own events say what ended a channel.
SILENT = logging.Logger("converge_transport_ws.silent", level=logging.CRITICAL + 1)


def files_of(options: WsOptions) -> TlsFiles:
    """Return the files of TLS that the options name."""
    return TlsFiles(options.certificate, options.key, options.ca, is_mutual=options.mutual)


def check_listening(address: str, options: WsOptions) -> None:
    """Refuse an address with TLS where its files cannot be used.

    Raises:
        ValueError: They cannot; the text says why.
    """
    if parse(address).is_tls:
        files_of(options).check()


class WsTransport(Transport):
    """Opens WebSocket channels: no compression, binary messages only."""

    def __init__(self, options: WsOptions) -> None:
        self._options = options
        self._channels: set[WsChannel] = set()
        self._tls = files_of(options)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, options: WsOptions) -> AsyncIterator[WsTransport]:
        """Yield a transport; leaving it closes the channels that are left."""
        transport = cls(options)
        try:
            yield transport
        finally:
            await close_all(transport._channels)

    @contextlib.asynccontextmanager
    async def listen(self, address: str) -> AsyncIterator[Listener]:
        try:
            if parse(address).is_tls:
                self._tls.server()  # so that what is wrong with its files is told now
        except (ConfigError, ValueError) as error:
            raise listen_failed(address, str(error)) from error
        parsed, sock = await _bind(address)
        listener = WsListener(parsed, self._tls, is_tls_terminated=self._options.tls_terminated)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(sock.close)
            server = await serve(
                listener.handle,
                sock=sock,
                process_request=listener.check_path,
                # Only a browser sends an origin, and no page of a browser has business here.
                origins=[None],
                server_header=None,
                subprotocols=[SUBPROTOCOL],
                select_subprotocol=_subprotocol,
                create_connection=cast(
                    type[ServerConnection], partial(WsServerConnection, offer=listener.offer, tls=listener.tls)
                ),
                **self._settings(),
            )
            sock.listen(QUEUE)  # the event loop has made it shorter
            stack.push_async_callback(listener.close, server)
            yield listener

    async def connect(self, address: str) -> Channel:
        options, sock = self._options, None
        try:
            parsed = parse(address)
            with anyio.fail_after(options.connect_sec):
                sock = await connect(parsed.host, parsed.port)
            # proxy=None: an environment variable must not decide where records go.
            connection = await DirectConnect(
                parsed.url,
                create_connection=WsClientConnection,
                proxy=None,
                user_agent_header=None,
                subprotocols=[SUBPROTOCOL],
                sock=sock,
                ssl=self._tls.client() if parsed.is_tls else None,
                **self._settings(),
            )
        except TimeoutError as error:
            raise connect_failed(address, f"no answer within {options.connect_sec:g} s") from error
        except (*CONNECTING, ConfigError) as error:
            is_refused = address.startswith("wss:") and isinstance(error.__cause__, EOFError)
            raise connect_failed(address, REFUSED if is_refused else why(error)) from error
        finally:
            if sock is not None and sys.exc_info()[0] is not None:
                sock.close()
        channel = WsChannel(connection, self._channels)
        shown = connection.transport.get_extra_info("ssl_object")
        channel.tls_hash = NO_TLS if shown is None else hash_of(shown.getpeercert(binary_form=True))
        return channel

    def _settings(self) -> dict[str, Any]:
        options = self._options
        return {
            "compression": None,
            "open_timeout": options.connect_sec,
            "ping_interval": options.ping_sec,
            "ping_timeout": options.ping_sec,
            "close_timeout": CLOSE_SEC,
            "max_size": MESSAGE_BYTES,
            "max_queue": READ_AHEAD,
            "logger": SILENT,
        }


class WsListener(Listener):
    """A bound address and the connections that nobody has accepted yet."""

    def __init__(self, bound: Address, files: TlsFiles, *, is_tls_terminated: bool) -> None:
        self.address: str = bound.url
        self.tls = self._context if bound.is_tls else None
        self._path, self._files, self._is_tls_terminated = bound.path, files, is_tls_terminated
        self._channels: set[WsChannel] = set()
        self._put: MemoryObjectSendStream[WsChannel]
        self._get: MemoryObjectReceiveStream[WsChannel]
        self._put, self._get = anyio.create_memory_object_stream(BACKLOG)

    def _context(self) -> ssl.SSLContext:
        return self._files.server()[0]

    async def accept(self) -> Channel:
        try:
            return await self._get.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise ConnectionClosed("the listener was closed") from None

    def offer(self, connection: WsServerConnection) -> bool:
        """Let a connection wait for being accepted; return whether there was room."""
        channel = WsChannel(connection, self._channels)
        channel.is_tls_terminated = self._is_tls_terminated
        try:
            channel.tls_hash = NO_TLS if self.tls is None else self._files.server()[1]
            self._put.send_nowait(channel)
        except (anyio.WouldBlock, anyio.ClosedResourceError, anyio.BrokenResourceError, ConfigError):
            self._channels.discard(channel)
            return False
        return True

    def check_path(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a request for another path with 404."""
        if request.path != self._path:
            return connection.respond(http.HTTPStatus.NOT_FOUND, "")
        return None

    async def handle(self, connection: ServerConnection) -> None:
        """Own a connection until it ends; the library closes it when this returns."""
        assert isinstance(connection, WsServerConnection), "the library makes those that it is told to"
        if not connection.upgraded.done():
            connection.upgraded.set_result(True)
        await connection.wait_closed()

    async def close(self, server: Server) -> None:
        """Close the socket, then every channel accepted here (C-11)."""
        server.close(close_connections=False)
        self._put.close()
        self._get.close()
        await close_all(self._channels)
        # Whose upgrade is unfinished.
        server.close()
        with anyio.CancelScope(shield=True):
            await server.wait_closed()


class WsChannel(Channel):
    """One WebSocket connection."""

    def __init__(self, connection: ClientConnection | ServerConnection, channels: set[WsChannel]) -> None:
        self.peer: str = show(connection.remote_address)
        self._connection, self._channels = connection, channels
        self._is_open = not isinstance(connection, WsServerConnection)
        self._error: ChannelError | None = None
        channels.add(self)

    async def send(self, frames: Sequence[bytes]) -> None:
        messages = pack(frames, self.frame_bytes)
        await self._open()
        self._raise_if_over()
        try:
            for message in messages:
                # Before writing, too: a send that was cancelled while it waited has left its bytes with the connection,
                # and they are bounded (C-3).
                await self._connection.drain()
                await self._connection.send(message)
        except WsClosed as error:
            raise self._over(ended(error)) from error
        self._raise_if_over()

    async def receive(self) -> Sequence[bytes]:
        await self._open()
        self._raise_if_over()
        try:
            message = await self._connection.recv()
            self._raise_if_over()
            if isinstance(message, str):
                raise BadRecord("the peer sent a text message; it is not a node")
            return unpack(message)
        except WsClosed as error:
            raise self._over(ended(error)) from error
        except BadRecord as error:
            self._over(error)
            await self._leave(NOT_UNDERSTOOD)
            raise

    async def _open(self) -> None:
        """Wait for the upgrade, on the side that was dialled (C-14)."""
        if self._is_open:
            return
        assert isinstance(self._connection, WsServerConnection), "the other side is open from the start"
        self._raise_if_over()
        self._is_open = await asyncio.shield(self._connection.upgraded)
        if not self._is_open:
            if why := self._connection.refusal:
                raise self._over(BadRecord(why))
            raise self._over(ConnectionLost("the peer is gone, or is no node: it has not upgraded to a WebSocket"))

    async def close(self) -> None:
        self._error = ConnectionClosed("this side closed the channel")
        await self._leave(1000)

    async def _leave(self, code: int) -> None:
        if self._is_open:
            with anyio.move_on_after(CLOSE_SEC, shield=True):
                await self._connection.close(code)
        self._connection.transport.abort()
        self._channels.discard(self)

    def _over(self, error: ChannelError) -> ChannelError:
        """Remember why, once; what this side did itself counts more."""
        if self._error is None:
            self._error = error
            self._channels.discard(self)
        return type(self._error)(*self._error.args)

    def _raise_if_over(self) -> None:
        if self._error is not None:
            raise type(self._error)(*self._error.args)


async def close_all(channels: set[WsChannel]) -> None:
    """Close side by side, so that many silent peers take no longer than one."""
    async with anyio.create_task_group() as group:
        for channel in list(channels):
            group.start_soon(channel.close)


def _subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Agree on ours; a node of an earlier release offers none."""
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


async def _bind(address: str) -> tuple[Address, socket.socket]:
    try:
        parsed = parse(address)
        family, sockaddr = (await resolve(parsed.host, parsed.port))[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                # So that a restarted node gets its port back; on Windows the option would let two processes share it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr)
            sock.listen(QUEUE)
        except BaseException:
            sock.close()
            raise
    except (OSError, ValueError, OverflowError) as error:
        raise listen_failed(address, reason_of(error)) from error
    host, _, port = show(sock.getsockname()).rpartition(":")
    return Address(host=host.strip("[]"), port=int(port), path=parsed.path, is_tls=parsed.is_tls), sock
