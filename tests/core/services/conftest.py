"""A store of each embedded kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from converge import Pool, PoolManager, open_store
from converge.contracts.store import Store


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store but for the pool `docs`: in memory, then in a file."""
    async with open_store("memory:" if request.param == "memory" else f"file:{tmp_path / 'state.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        yield store
