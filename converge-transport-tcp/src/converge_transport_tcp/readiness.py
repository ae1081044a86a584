"""Waiting for what a socket has to read."""

from __future__ import annotations

import asyncio
import socket

import anyio


class Readiness:
    """Waits for one socket, which one caller reads.

    On asyncio the socket is registered with the event loop once, not for each wait: registering costs as much as the
    read. What comes while somebody waits is read when the loop tells of it: before the waiter has its turn the loop
    asks the system again, and would tell of the same bytes once more, for a read and a turn in vain. Data that comes
    while nobody waits is remembered; when that is told a second time, the socket is unregistered.
    """

    def __init__(self, sock: socket.socket, read_bytes: int) -> None:
        self._sock, self._read_bytes = sock, read_bytes
        self._data: bytes | None = None
        self._failure: OSError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_watched = self._is_plain = self._is_ready = False

    def take(self) -> bytes | None:
        """Return what was read while somebody waited; None: nothing was.

        Raises:
            OSError: The read failed.
        """
        if self._failure is not None:
            raise self._failure
        data, self._data = self._data, None
        return data

    async def wait(self) -> None:
        """Return when there is something to `take` or to read, or the socket was closed. What has come when this is
        cancelled stays to be taken.

        Raises:
            anyio.ClosedResourceError: It was closed.
        """
        if self._data is not None or self._failure is not None:
            return
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
            try:
                self._data = self._sock.recv(self._read_bytes)
            except BlockingIOError:
                return
            except OSError as error:
                self._failure = error
            self._waiter.set_result(None)
        elif self._is_ready:
            self._unwatch()
        else:
            self._is_ready = True

    def _unwatch(self) -> None:
        if self._loop is not None and self._is_watched:
            self._is_watched = False
            self._loop.remove_reader(self._sock)
