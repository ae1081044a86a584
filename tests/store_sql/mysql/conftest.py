"""A private MariaDB for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from converge.testing.cuts import CutProxy, cut_proxy
from converge.testing.store import Cut
from converge_store_sql.mysql import MysqlOptions, MysqlStore


@pytest.fixture
def options(namespace: str) -> MysqlOptions:
    """Tables of a network of its own."""
    return MysqlOptions(network=namespace)


@pytest.fixture
async def store(mariadb_url: str, options: MysqlOptions) -> AsyncIterator[MysqlStore]:
    """An open store on an empty network."""
    async with MysqlStore.opened(mariadb_url, options) as opened:
        yield opened


@pytest.fixture(scope="session")
def proxy(mariadb_url: str) -> Iterator[CutProxy]:
    """A proxy before the server, which breaks connections when it is told to."""
    with cut_proxy(mariadb_url) as made:
        yield made


@pytest.fixture
def proxied_url(proxy: CutProxy) -> str:
    """The server's URL through the proxy."""
    return proxy.url


@pytest.fixture
def cut(proxy: CutProxy) -> Callable[[Cut], None]:
    """Breaks the next request of a store that was opened through the proxy."""
    return proxy.cut
