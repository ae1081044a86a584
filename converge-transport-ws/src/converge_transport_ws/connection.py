"""What the library's connections lack: a limit on the HTTP head as a whole, a channel before the upgrade is done, no
redirects.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection

from converge.errors import ConfigError
from converge.net.failures import reason_of

# The library limits each line of the head to 8 KiB, and their number to 128: a megabyte for each stranger.
HEAD_BYTES = 8_192
# What a TLS handshake may take; the upgrade has its own time.
SHAKE_SEC = 5.0
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
    """A connection that was accepted. It is offered at once: who counts what strangers cost sees it before TLS and the
    upgrade, which are done meanwhile.

    Attributes:
        upgraded: Whether the upgrade was done; a future.
        refusal: Why TLS was not agreed, or empty.
    """

    def __init__(
        self,
        *args: Any,
        offer: Callable[[WsServerConnection], bool],
        tls: Callable[[], ssl.SSLContext] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._http_head, self._offer, self._tls = Head(), offer, tls
        self._securing: asyncio.Task[None] | None = None
        self.upgraded: asyncio.Future[bool] = self.loop.create_future()
        self.refusal: str = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Offer the connection; close it where nobody accepts any."""
        super().connection_made(transport)
        if not self._offer(self):
            self.transport.abort()
        elif self._tls is not None:
            self.transport.pause_reading()
            self._securing = self.loop.create_task(self._secure(self.transport, self._tls))

    async def _secure(self, transport: asyncio.Transport, tls: Callable[[], ssl.SSLContext]) -> None:
        try:
            secured = await self.loop.start_tls(
                transport, self, tls(), server_side=True, ssl_handshake_timeout=SHAKE_SEC
            )
        except (OSError, ConfigError, ValueError) as error:
            secured = None
            if isinstance(error, ssl.SSLError):
                self.refusal = reason_of(error)
        if secured is None or transport.is_closing():
            transport.abort()
            self.connection_lost(None)  # the loop tells nobody where it went before TLS was agreed
            return
        vars(self)["transport"] = secured  # the library's attribute: what it writes goes through TLS from here

    def data_received(self, data: bytes) -> None:
        """Close the connection if its HTTP head is over the limit."""
        if self._http_head.is_too_long(data):
            self.transport.abort()
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go who waits for the upgrade."""
        if not self.upgraded.done():
            self.upgraded.set_result(False)
        if not self.connection_lost_waiter.done():  # it may be told twice where TLS was not agreed
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
