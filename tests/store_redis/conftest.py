"""The Redis store's driver needs asyncio, so its tests run on that loop only."""

from __future__ import annotations

import secrets
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from converge.testing.cuts import CutProxy, cut_proxy
from converge_store_redis import RedisOptions, RedisStore


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def options(namespace: str) -> RedisOptions:
    """A network of the test's own."""
    return RedisOptions(network=namespace, connections=4)


@pytest.fixture
async def store(redis_url: str, options: RedisOptions) -> AsyncIterator[RedisStore]:
    """An open store on an empty network."""
    async with RedisStore.open(redis_url, options) as opened:
        yield opened


@pytest.fixture(scope="session")
def proxy(redis_url: str) -> Iterator[CutProxy]:
    """A proxy before the server, which breaks connections when it is told to."""
    with cut_proxy(redis_url) as made:
        yield made


@pytest.fixture
def seed() -> int:
    """A seed for random choices; a failure shows it with the test's output."""
    drawn = secrets.randbits(32)
    sys.stdout.write(f"seed {drawn}\n")
    return drawn
