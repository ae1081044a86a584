"""The SQL store's driver needs asyncio, so its tests run on that loop only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator

import asyncpg
import pytest
from anyio.from_thread import start_blocking_portal

from converge.testing.cuts import CutProxy, cut_proxy
from converge.testing.servers import postgres_server
from converge.testing.store import Cut
from converge_store_sql import SqlOptions, SqlStore


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server without fsync: no promise tested here hangs on the disk, and thousands of tables are made and thrown
    away.
    """
    with postgres_server(fsync=False) as url:
        yield url


@pytest.fixture(scope="session")
def server_url(postgres_url: str) -> str:
    """The server of the folder's tests; the folders below have others."""
    return postgres_url


@pytest.fixture(scope="session")
def runtime_role(postgres_url: str) -> str:
    """A role that has on all tables what the page of PostgreSQL says, and may make none."""

    async def make() -> None:
        connection = await asyncpg.connect(postgres_url)
        await connection.execute(
            "create role agents login;"
            "alter default privileges grant select, insert, update, delete on tables to agents;"
            "alter default privileges grant usage, select, update on sequences to agents"
        )
        await connection.close()

    with start_blocking_portal() as portal:  # the event loop of a test may be there already
        portal.call(make)
    return "agents"


@pytest.fixture
def options(namespace: str) -> SqlOptions:
    """Tables of a network of its own."""
    return SqlOptions(network=namespace)


@pytest.fixture
async def store(server_url: str, options: SqlOptions) -> AsyncIterator[SqlStore]:
    """An open store on an empty network."""
    async with SqlStore.open(server_url, options) as opened:
        yield opened


@pytest.fixture
def new_id() -> Callable[[], bytes]:
    """Draws ids that no other test uses."""
    return lambda: secrets.token_bytes(16)


@pytest.fixture(scope="module")
def proxy(server_url: str) -> Iterator[CutProxy]:
    """A proxy before the server, which breaks connections when it is told to. For a module, not for the session: it
    would be kept for folders that have another server.
    """
    with cut_proxy(server_url) as made:
        yield made


@pytest.fixture
def proxied_url(proxy: CutProxy) -> str:
    """The server's URL through the proxy."""
    return proxy.url


@pytest.fixture
def cut(proxy: CutProxy) -> Callable[[Cut], None]:
    """Breaks the next request of a store that was opened through the proxy."""
    return proxy.cut
