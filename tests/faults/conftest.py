"""A fleet for each store: a file, and a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from converge import Pool, PoolManager, TaskManager, open_store
from converge.testing.fleet import Fleet

POOL = "faults"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The processes under test run on asyncio; so does the observer."""
    return "asyncio"


@pytest.fixture
def agent() -> str:
    """What the processes of a fleet run; a test that wants other agents names them by a parameter."""
    return "worker_agents:Worker"


@pytest.fixture(params=["file", "redis"])
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, namespace: str, redis_url: str, agent: str
) -> Iterator[Fleet]:
    """A fleet on a store of the test's own: a file, or a network of a real Redis.

    The server starts before the test whatever the store, so that the leak check knows it.
    """
    is_file = request.param == "file"
    made = Fleet(
        tmp_path,
        f"file:{tmp_path / 'state.db'}" if is_file else redis_url,
        agent=agent,
        agents_folder=Path(__file__).parent,
        pool=POOL,
        network="converge" if is_file else namespace,
        plugins=[] if is_file else ["redis"],
    )
    try:
        yield made
    finally:
        made.kill_all()


@pytest.fixture
async def tasks(fleet: Fleet) -> AsyncIterator[TaskManager]:
    """A task manager of the test's own process, with the pool in place."""
    async with open_store(fleet.url, plugins=fleet.plugins, network=fleet.network) as store:
        await PoolManager(store).create_pool(Pool(id=POOL))
        yield TaskManager(store, poll_sec=0.3)
