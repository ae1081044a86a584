"""One connection to a server: hiredis's parser in an asyncio protocol, in RESP3."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Self, cast

from hiredis import ProtocolError, PushNotification, Reader, ReplyError, pack_command

from converge_store_redis.place import Address

KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
"""After this many seconds, and tries, the system takes a silent peer for dead: load balancers forget later."""

_MORE = object()


class ConnectionDied(OSError):
    """The connection is gone, or was given up."""


class Connection(asyncio.Protocol):
    """Answers come in the order of the requests. A caller that stops waiting closes the connection."""

    def __init__(self, on_push: Callable[[list[Any]], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(notEnoughData=_MORE)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._transport: asyncio.Transport | None = None
        self._on_push = on_push
        self._died: BaseException | None = None
        self.role = "master"
        """What the server said that it is, when the connection was made: `master` or `replica`."""
        self.closed = asyncio.Event()
        self.heard_at = self.asked_at = self._loop.time()
        """When something was last received, and asked (the loop's time)."""

    @classmethod
    async def open(
        cls, to: Address, context: ssl.SSLContext | None, on_push: Callable[[list[Any]], None] | None = None
    ) -> Self:
        """Connect; the caller closes. Raises OSError."""
        loop = asyncio.get_running_loop()
        if not to.port:
            _, made = await loop.create_unix_connection(lambda: cls(on_push), to.host)
            return made
        _, made = await loop.create_connection(
            lambda: cls(on_push), to.host, to.port, ssl=context, server_hostname=to.host if context else None
        )
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE:
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not _MORE:
                if type(answer) is PushNotification:
                    if self._on_push is not None:
                        self._on_push(answer)
                elif waiting:
                    waiter = waiting.popleft()
                    if not waiter.done():
                        waiter.set_result(answer)
                else:  # what nobody has asked: the reason for which the server closes the connection
                    raise answer if isinstance(answer, ReplyError) else ProtocolError("an answer to nothing")
        except (ProtocolError, ReplyError) as error:
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(exc or ConnectionDied("the server closed the connection"))

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be asked."""
        return self._died is not None

    def close(self, why: BaseException | None = None) -> None:
        """End the connection at once; those who wait for answers get the reason."""
        if self._died is None:
            self._died = why or ConnectionDied("the connection was closed")
            self.closed.set()
            if self._transport is not None:
                self._transport.abort()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._died)
                waiter.exception()  # whoever waited may be gone

    def ask(self, *command: Any) -> asyncio.Future[Any]:
        """Send a command; the answer comes, as `ReplyError` too, as the future's result.

        Raises:
            OSError, ProtocolError, ReplyError: Why the connection is closed; nothing was sent.
        """
        return self.send(command)

    def send(self, command: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Send a command as `ask` does, without copying arguments that may be long."""
        self._write(command)
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def tell(self, *command: Any) -> None:
        """Send a command to which no answer is awaited: SUBSCRIBE, which pushes instead. Raises as `ask`."""
        self._write(command)

    def _write(self, command: tuple[Any, ...]) -> None:
        if self._died is not None or self._transport is None:
            raise ConnectionDied("the connection was closed") from self._died
        self.asked_at = self._loop.time()
        self._transport.write(pack_command(command))
