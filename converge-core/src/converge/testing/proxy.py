"""A TCP proxy that splits, delays, cuts, changes or records the bytes between two ends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketAttribute, SocketStream

# Answers the bytes to pass on; `offset` counts the bytes of this direction that came before.
Change = Callable[[int, bytes], bytes]


class ByteProxy:
    """Stands between one client and one server. Its faults are attributes, and may be set while bytes flow.

    `up` is from the client to the server, `down` the way back.
    """

    def __init__(self, target: str, address: str) -> None:
        self._target = target
        self.address = address
        """Where the client connects: the server's address with the proxy's port."""
        self.chunk_bytes = 65_536
        """The most that is passed on in one write."""
        self.delay_sec = 0.0
        """What each write waits before."""
        self.cut_up_after: int | None = None
        self.cut_down_after: int | None = None
        """After so many bytes of a direction both connections are closed."""
        self.change_up: Change | None = None
        self.change_down: Change | None = None
        self.seen_up = bytearray()
        self.seen_down = bytearray()
        """Everything that came in, before any fault."""
        self._server: SocketStream | None = None
        self._writing = {"up": anyio.Lock(), "down": anyio.Lock()}

    async def inject(self, data: bytes) -> None:
        """Write bytes to the server as if the client had sent them."""
        assert self._server is not None, "nobody has connected yet"
        async with self._writing["up"]:
            await self._server.send(data)

    async def _serve(self, client: SocketStream) -> None:
        host, port = host_and_port(self._target)
        async with client:
            try:
                server = await anyio.connect_tcp(host, port)
            except OSError:
                return  # nobody listens behind it: the client's connection ends
            async with server, anyio.create_task_group() as group:
                self._server = server
                group.start_soon(self._pump, client, server, self.seen_up, "up")
                group.start_soon(self._pump, server, client, self.seen_down, "down")

    async def _pump(self, source: SocketStream, sink: SocketStream, seen: bytearray, way: str) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in source:
                offset = len(seen)
                seen += data
                change: Change | None = getattr(self, f"change_{way}")
                cut: int | None = getattr(self, f"cut_{way}_after")
                passed = data if cut is None else data[: max(cut - offset, 0)]
                await self._write(sink, change(offset, passed) if change is not None else passed, way)
                if len(passed) < len(data) or offset + len(passed) == cut:
                    break
        # The end of one direction ends both; what is still on its way in the other one may be lost, as in life.
        await sink.aclose()
        await source.aclose()

    async def _write(self, sink: SocketStream, data: bytes, way: str) -> None:
        for start in range(0, len(data), self.chunk_bytes):
            if self.delay_sec:
                await anyio.sleep(self.delay_sec)
            async with self._writing[way]:
                await sink.send(data[start : start + self.chunk_bytes])


@contextlib.asynccontextmanager
async def byte_proxy(target: str) -> AsyncIterator[ByteProxy]:
    """Run a proxy before the address `scheme://HOST:PORT...`."""
    host, port = host_and_port(target)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        own = listener.extra(SocketAttribute.local_port)
        proxy = ByteProxy(target, target.replace(f"{host}:{port}", f"127.0.0.1:{own}", 1))
        group.start_soon(listener.serve, proxy._serve)
        yield proxy
        group.cancel_scope.cancel()


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port of `scheme://HOST:PORT...`."""
    parts = urlsplit(address)
    assert parts.hostname is not None and parts.port is not None, f"{address} has no host and port"
    return parts.hostname, parts.port
