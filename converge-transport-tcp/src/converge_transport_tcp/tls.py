"""A channel with TLS on the same sockets, one for every event loop."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import anyio

from converge.contracts.transport import Channel
from converge.errors import BadRecord, ConnectionClosed
from converge.net.failures import reason_of
from converge.net.tls import hash_of
from converge_transport_tcp._errors import lost
from converge_transport_tcp.sockets import READ_BYTES, SocketChannel


class TlsChannel(SocketChannel):
    """Frames in a TLS stream. The handshake is part of the first receive or send, so an accepted channel costs nothing
    until it is used.
    """

    def __init__(
        self, plain: SocketChannel, context: ssl.SSLContext, *, host: str | None, shake_sec: float, shown: bytes
    ) -> None:
        """`host`: the name that the server must prove; None: this side is the server, and shows what hashes to
        `shown`.
        """
        super().__init__(plain.sock, peer=plain.peer, frame_sec=plain.frame_sec, on_end=plain.on_end)
        self.tls_hash = shown
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._shake_sec, self._is_server = shake_sec, host is None
        self._shaking, self._flushing = anyio.Lock(), anyio.Lock()
        self._is_shaken = False

    async def shake(self) -> None:
        """Run the handshake, unless that has been done.

        Raises:
            BadRecord, ConnectionLost: It failed, and the channel is over.
        """
        if self._is_shaken:
            return
        async with self._shaking:
            with anyio.move_on_after(self._shake_sec) as scope:
                while not self._is_shaken:
                    await self._step(self._ssl.do_handshake)
                    self._is_shaken = True
            if scope.cancelled_caught:
                self._end(BadRecord(f"TLS was not agreed within {self._shake_sec:g} s"))
                self._raise_if_over()
            if not self._is_server:
                self.tls_hash = hash_of(self._ssl.getpeercert(binary_form=True))

    async def _write(self, data: bytes) -> None:
        await self.shake()
        self._raise_if_over()
        self._ssl.write(data)
        await self._flush()

    async def _read(self) -> bytes:
        await self.shake()
        found: list[bytes] = []
        await self._step(lambda: found.append(self._ssl.read(READ_BYTES)))
        return found[0] if found else b""

    async def _step(self, step: Callable[[], object]) -> None:
        """Take a step of TLS, with as many bytes of the peer as it needs."""
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await super()._read()
                self._incoming.write(data) if data else self._incoming.write_eof()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                if not self._is_shaken:
                    self._end(lost(None))
                    self._raise_if_over()
                return
            except ssl.SSLError as error:
                if not self._is_shaken:
                    await self._flush()  # the alert that tells the peer why
                failure = BadRecord(reason_of(error))
                failure.__cause__ = error
                self._end(failure)
                self._raise_if_over()
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        """Write what TLS has made; what was made must be written whole, or nothing can follow it."""
        if not self._outgoing.pending:
            return
        async with self._flushing:
            data = self._outgoing.read()
            if not data:
                return
            try:
                await super()._write(data)
            except BaseException:
                self._end(ConnectionClosed("a send was cancelled within a TLS record, which closed the channel"))
                raise


def secured(
    channel: Channel, context: ssl.SSLContext, *, host: str | None, shake_sec: float, shown: bytes
) -> TlsChannel:
    """Return the channel with TLS on it."""
    assert isinstance(channel, SocketChannel), "the transport's own"
    return TlsChannel(channel, context, host=host, shake_sec=shake_sec, shown=shown)
