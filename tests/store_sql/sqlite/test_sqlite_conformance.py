"""The store in a SQLite file keeps every clause of the contracts of stores, tasks and discovery."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.services.store.opening import open_store
from converge.testing import DiscoveryContract, StoreContract, TaskContract
from converge.testing.discovery import Opening
from converge_store_sql.plugin import SQLITE

# The engine is that of `file:`, whose tests try it on both loops and at full numbers in every run.
IS_FULL = os.environ.get("FULL_TESTS") == "1"
LOOPS = ("asyncio", "trio") if IS_FULL else ("asyncio",)


class TestSqlite(StoreContract):
    backend = SQLITE
    loops = LOOPS
    examples, rounds = (25, 20) if IS_FULL else (8, 6)

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/state.db"


class TestSqliteTasks(TaskContract):
    backend = SQLITE
    loops = LOOPS
    examples, rounds = (25, 20) if IS_FULL else (8, 6)

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/state.db"


class TestSqliteDiscovery(DiscoveryContract):
    backend = STORE_DISCOVERY
    loops = LOOPS
    examples = 8  # each opens three handles

    @pytest.fixture
    def options(self) -> object:
        return STORE_DISCOVERY.options()

    @pytest.fixture
    async def opening(self, tmp_path: Path) -> AsyncIterator[Opening]:
        yield lambda: open_store(f"sqlite:///{tmp_path}/state.db", plugins=["sql"], network="of_discovery")
