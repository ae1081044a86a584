"""The SQL store's driver needs asyncio, so its tests run on that loop only."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable

import pytest

from converge_store_sql import SqlOptions, SqlStore


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


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
