"""What the library's connections lack: a limit on the HTTP head as a whole, a bound on unfinished upgrades, no
redirects.
"""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection

# The library limits each line of the head to 8 KiB, and their number to 128: a megabyte for each stranger.
HEAD_BYTES = 8_192
# Connections of one listener whose upgrade is unfinished; each ends after `connect_sec`.
UNFINISHED = 64

_END = b"\r\n\r\n"


class Head:
    """Watches the first bytes of a connection."""

    def __init__(self) -> None:
        self._seen = bytearray()
        self._is_over = False

    def is_too_long(self, data: bytes) -> bool:
        """Return whether the head has not ended within its limit. Frames may follow it in the same bytes."""
        if self._is_over:
            return False
        self._seen += data[: HEAD_BYTES + len(_END)]
        end = self._seen.find(_END)
        too_long = end > HEAD_BYTES - len(_END) or (end < 0 and len(self._seen) > HEAD_BYTES)
        self._is_over = end >= 0
        if self._is_over or too_long:
            self._seen.clear()
        return too_long


class WsServerConnection(ServerConnection):
    """A connection that was accepted; `unfinished` holds those of its listener whose upgrade goes on."""

    def __init__(self, *args: Any, unfinished: set[ServerConnection], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http_head, self._unfinished = Head(), unfinished

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the connection at once where too many upgrades are unfinished."""
        super().connection_made(transport)
        if len(self._unfinished) >= UNFINISHED:
            self.transport.abort()
        else:
            self._unfinished.add(self)

    def data_received(self, data: bytes) -> None:
        """Close the connection if its HTTP head is over the limit."""
        if self._http_head.is_too_long(data):
            self.transport.abort()
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room for another."""
        self._unfinished.discard(self)
        super().connection_lost(exc)


class WsClientConnection(ClientConnection):
    """A connection that was dialled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._http_head = Head()

    def data_received(self, data: bytes) -> None:
        """Close the connection if its HTTP head is over the limit."""
        if self._http_head.is_too_long(data):
            self.transport.abort()
            return
        super().data_received(data)


class DirectConnect(connect):
    """Follows no redirect: whoever answers must not send a node elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Fail on a redirect, and do not follow it."""
        return exc
