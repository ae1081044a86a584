"""The SQL store's driver needs asyncio, so its tests run on that loop only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from urllib.parse import urlsplit

import pytest

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

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [self._pass(reader, server_writer, Cut.BEFORE), self._pass(server_reader, writer, Cut.AFTER)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            writer.close()
            server_writer.close()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, moment: Cut) -> None:
        while data := await source.read(65536):
            if self._moment is moment:
                self._moment = None
                return
            sink.write(data)
            await sink.drain()


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the server, and the URL through it."""
    port = urlsplit(postgres_url).port
    assert port is not None
    made = Proxy(port)
    served: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(made.serve(reader, writer))
        served.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield made, postgres_url.replace(f":{port}/", f":{server.sockets[0].getsockname()[1]}/")
    server.close()
    for task in served:
        task.cancel()
    await asyncio.gather(*served, return_exceptions=True)


@pytest.fixture
def proxied_url(proxy: tuple[Proxy, str]) -> str:
    """The server's URL through the proxy."""
    return proxy[1]


@pytest.fixture
def cut(proxy: tuple[Proxy, str]) -> Callable[[Cut], None]:
    """Breaks the next request of a store that was opened through the proxy."""
    return proxy[0].cut
