"""A TCP proxy on a thread of its own that breaks one call of a store: before the server has it, or when it answers; or
freezes connections.

Give its `url` to the store and its `cut` as the fixture of `StoreContract` of that name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.from_thread import start_blocking_portal

from converge.testing.store import Cut


class _Link:
    """One connection through the proxy."""

    is_frozen = False


class CutProxy:
    """Passes bytes on to a server until it is told to break a connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None, f"{url} has no host and port"
        self._host, self._port = parts.hostname, parts.port
        self._target = url
        self._moment: Cut | None = None
        self._links: set[_Link] = set()
        self.url = url
        """The server's URL through the proxy."""

    def cut(self, moment: Cut) -> None:
        """Break the connection that carries the next request, or the next answer."""
        self._moment = moment

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            own = listener.extra(SocketAttribute.local_port)
            self.url = self._target.replace(f"{self._host}:{self._port}", f"127.0.0.1:{own}", 1)
            group.start_soon(listener.serve, self._serve)
            yield
            group.cancel_scope.cancel()

    def freeze(self) -> None:
        """Pass nothing more of the connections that are open now, and leave them open: as a firewall that forgot them.
        New ones work.
        """
        for link in self._links:
            link.is_frozen = True

    async def _serve(self, client: SocketStream) -> None:
        link = _Link()
        self._links.add(link)
        try:
            await self._serve_link(client, link)
        finally:
            self._links.discard(link)

    async def _serve_link(self, client: SocketStream, link: _Link) -> None:
        async with client:
            with suppress(OSError):  # the server is away: so is the proxy's client, at once
                async with (
                    await anyio.connect_tcp(self._host, self._port) as server,
                    anyio.create_task_group() as group,
                ):

                    async def pump(source: SocketStream, sink: SocketStream, moment: Cut) -> None:
                        await self._pass(source, sink, moment, link)
                        group.cancel_scope.cancel()

                    group.start_soon(pump, client, server, Cut.BEFORE)
                    group.start_soon(pump, server, client, Cut.AFTER)

    async def _pass(self, source: SocketStream, sink: SocketStream, moment: Cut, link: _Link) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in source:
                if link.is_frozen:
                    continue
                if self._moment is moment:
                    self._moment = None
                    return
                await sink.send(data)


@contextmanager
def cut_proxy(url: str) -> Iterator[CutProxy]:
    """Run a proxy before the server of `scheme://HOST:PORT...`; on a thread, since some tests block their event loop on
    purpose.
    """
    made = CutProxy(url)
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(made._serving()):
        yield made
