"""The SQL store's driver needs asyncio, so its tests run on that loop only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from anyio.from_thread import start_blocking_portal

from converge.testing.servers import postgres_server
from converge.testing.store import Cut
from converge_store_sql import SqlOptions, SqlStore


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server without fsync: no promise tested here hangs on the disk, and thousands of tables are made and thrown away."""
    with postgres_server(fsync=False) as url:
        yield url


@pytest.fixture
def options(namespace: str) -> SqlOptions:
    """Tables of a network of its own."""
    return SqlOptions(network=namespace)


@pytest.fixture
async def store(postgres_url: str, options: SqlOptions) -> AsyncIterator[SqlStore]:
    """An open store on an empty network."""
    async with SqlStore.open(postgres_url, options) as opened:
        yield opened


@pytest.fixture
def new_id() -> Callable[[], bytes]:
    """Draws ids that no other test uses."""
    return lambda: secrets.token_bytes(16)


class Proxy:
    """Passes bytes on to a server, and breaks one connection at the moment that it is told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._moment: Cut | None = None

    def cut(self, moment: Cut) -> None:
        """Break the connection that carries the next request, before the server has it or when it answers."""
        self._moment = moment

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serve until the block ends; gives the port."""
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._serve)
            yield listener.extra(SocketAttribute.local_port)
            group.cancel_scope.cancel()

    async def _serve(self, client: SocketStream) -> None:
        async with client, await anyio.connect_tcp("127.0.0.1", self._port) as server, anyio.create_task_group() as group:

            async def pump(source: SocketStream, sink: SocketStream, moment: Cut) -> None:
                await self._pass(source, sink, moment)
                group.cancel_scope.cancel()

            group.start_soon(pump, client, server, Cut.BEFORE)
            group.start_soon(pump, server, client, Cut.AFTER)

    async def _pass(self, source: SocketStream, sink: SocketStream, moment: Cut) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in source:
                if self._moment is moment:
                    self._moment = None
                    return
                await sink.send(data)


@pytest.fixture(scope="session")
def proxy(postgres_url: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before the server, and the URL through it; on a thread of its own, for some tests block the event loop on purpose."""
    port = urlsplit(postgres_url).port
    assert port is not None
    made = Proxy(port)
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(made.serving()) as own_port:
        yield made, postgres_url.replace(f":{port}/", f":{own_port}/")


@pytest.fixture
def proxied_url(proxy: tuple[Proxy, str]) -> str:
    """The server's URL through the proxy."""
    return proxy[1]


@pytest.fixture
def cut(proxy: tuple[Proxy, str]) -> Callable[[Cut], None]:
    """Breaks the next request of a store that was opened through the proxy."""
    return proxy[0].cut
