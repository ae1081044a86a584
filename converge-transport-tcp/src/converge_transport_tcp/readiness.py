"""Waiting until a socket has something to read."""

from __future__ import annotations

import asyncio
import socket

import anyio


class Readiness:
    """Waits for one socket, which one caller reads.

    On asyncio the socket is registered with the event loop once, not for each wait: registering costs as much as the
    read. Data that comes while nobody waits is remembered; when that is told a second time, the socket is unregistered.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_watched = self._is_plain = self._is_ready = False

    async def wait(self) -> None:
        """Return when there is something to read, or the socket was closed.

        Raises:
            anyio.ClosedResourceError: It was closed.
        """
        if self._is_ready:
            self._is_ready = False
            return
        loop = self._loop
        if loop is None:
            if self._is_plain or anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
                self._is_plain = True
                await anyio.wait_readable(self._sock)
                return
            self._loop = loop = asyncio.get_running_loop()
        if not self._is_watched:
            try:
                loop.add_reader(self._sock, self._ready)
            except NotImplementedError:  # an event loop of Windows
                self._loop, self._is_plain = None, True
                await anyio.wait_readable(self._sock)
                return
            self._is_watched = True
        self._waiter = waiter = loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None

    def close(self) -> None:
        """Wake whoever waits; before the socket is closed."""
        self._unwatch()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _ready(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        elif self._is_ready:
            self._unwatch()
        else:
            self._is_ready = True

    def _unwatch(self) -> None:
        if self._loop is not None and self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._sock)
