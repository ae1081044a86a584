"""Channels over WebSocket, and the listener that accepts them."""

from __future__ import annotations

import contextlib
import http
import logging
import os
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, cast

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed as WsClosed
from websockets.http11 import Request, Response

from converge.contracts.transport import Channel, Listener, Transport
from converge.errors import BadRecord, ChannelError, ConnectionClosed
from converge_transport_ws._errors import CONNECTING, connect_failed, ended, listen_failed, reason_of
from converge_transport_ws.address import Address, parse
from converge_transport_ws.connection import DirectConnect, WsClientConnection, WsServerConnection
from converge_transport_ws.framing import MESSAGE_BYTES, pack, unpack
from converge_transport_ws.options import WsOptions

# Upgraded connections that wait for being accepted.
BACKLOG = 256
# C-5 gives close a second; some of it is for the system.
CLOSE_SEC = 0.8
TRY_AGAIN_LATER, NOT_UNDERSTOOD = 1013, 1003
# The library reads ahead so many messages: half a megabyte.
READ_AHEAD = 4
# Belongs to no tree: what strangers send must not fill anybody's log. Converge's own events say what ended a channel.
SILENT = logging.Logger("converge_transport_ws.silent", level=logging.CRITICAL + 1)


class WsTransport(Transport):
    """Opens WebSocket channels: no compression, binary messages only."""

    def __init__(self, options: WsOptions) -> None:
        self._options = options
        self._channels: set[WsChannel] = set()

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
        parsed, sock = await _bind(address)
        listener = WsListener(parsed)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(sock.close)
            server = await serve(
                listener.handle,
                sock=sock,
                process_request=listener.check_path,
                # Only a browser sends an origin, and no page of a browser has business here.
                origins=[None],
                server_header=None,
                create_connection=cast(
                    type[ServerConnection], partial(WsServerConnection, unfinished=listener.unfinished)
                ),
                **self._settings(),
            )
            stack.push_async_callback(listener.close, server)
            yield listener

    async def connect(self, address: str) -> Channel:
        try:
            url = parse(address).url
            # proxy=None: an environment variable must not decide where records go.
            connection = await DirectConnect(
                url, create_connection=WsClientConnection, proxy=None, user_agent_header=None, **self._settings()
            )
        except CONNECTING as error:
            raise connect_failed(address, reason_of(error)) from error
        return WsChannel(connection, self._channels)

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
    """A bound address and the upgraded connections that nobody has accepted yet."""

    def __init__(self, bound: Address) -> None:
        self.address = bound.url
        self.unfinished: set[ServerConnection] = set()
        self._path = bound.path
        self._channels: set[WsChannel] = set()
        self._put: MemoryObjectSendStream[WsChannel]
        self._get: MemoryObjectReceiveStream[WsChannel]
        self._put, self._get = anyio.create_memory_object_stream(BACKLOG)

    async def accept(self) -> Channel:
        try:
            return await self._get.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            raise ConnectionClosed("the listener was closed") from None

    def check_path(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuse a request for another path with 404."""
        if request.path != self._path:
            return connection.respond(http.HTTPStatus.NOT_FOUND, "")
        return None

    async def handle(self, connection: ServerConnection) -> None:
        """Own a connection until it ends; the library closes it when this returns."""
        self.unfinished.discard(connection)
        channel = WsChannel(connection, self._channels)
        try:
            self._put.send_nowait(channel)
        except anyio.WouldBlock:
            await connection.close(TRY_AGAIN_LATER)
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            await channel.close()
        await connection.wait_closed()
        self._channels.discard(channel)

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
        self.peer = _show(connection.remote_address)
        self._connection, self._channels = connection, channels
        self._error: ChannelError | None = None
        channels.add(self)

    async def send(self, frames: Sequence[bytes]) -> None:
        messages = pack(frames, self.frame_bytes)
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

    async def close(self) -> None:
        self._error = ConnectionClosed("this side closed the channel")
        await self._leave(1000)

    async def _leave(self, code: int) -> None:
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


async def _bind(address: str) -> tuple[Address, socket.socket]:
    try:
        parsed = parse(address)
        found = await anyio.getaddrinfo(parsed.host, parsed.port, type=socket.SOCK_STREAM)
        family, _, _, _, sockaddr = found[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                # So that a restarted node gets its port back; on Windows the option would let two processes share it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr)
            sock.listen(BACKLOG)
        except BaseException:
            sock.close()
            raise
    except (OSError, ValueError, OverflowError) as error:
        raise listen_failed(address, reason_of(error)) from error
    host, port = sock.getsockname()[:2]
    return Address(host=host, port=port, path=parsed.path), sock


def _show(sockaddr: object) -> str:
    if not isinstance(sockaddr, tuple) or len(sockaddr) < 2:
        return ""
    host, port = sockaddr[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
