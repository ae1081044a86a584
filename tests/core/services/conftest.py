"""A store of each embedded kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from converge import MemoryStore, Pool, PoolManager, open_store
from converge.builtin.file import clock
from converge.contracts.store import Store


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store but for the pool `docs`: in memory, then in a file."""
    async with open_store("memory:" if request.param == "memory" else f"file:{tmp_path / 'state.db'}") as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        yield store


@pytest.fixture
def pass_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`pass_time(60.0)` moves the store's clock on: nobody has to wait for it, or to be in time."""
    passed = 0

    def pass_by(seconds: float) -> None:
        nonlocal passed
        passed += int(seconds * 1_000_000)
        if isinstance(store, MemoryStore):
            store._core._offset += int(seconds * 1_000_000_000)

    boot_time, wall_time = clock.boot_time, clock.wall_time
    monkeypatch.setattr(clock, "boot_time", lambda: boot_time() + passed)
    monkeypatch.setattr(clock, "wall_time", lambda: wall_time() + passed)
    return pass_by
