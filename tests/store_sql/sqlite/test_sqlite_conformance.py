"""The store in a SQLite file keeps every clause of the contracts of stores, tasks and discovery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.services.store.opening import open_store
from converge.testing import DiscoveryContract, StoreContract, TaskContract
from converge.testing.discovery import Opening
from converge_store_sql.plugin import SQLITE


class TestSqlite(StoreContract):
    backend = SQLITE

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/state.db"


class TestSqliteTasks(TaskContract):
    backend = SQLITE

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/state.db"


class TestSqliteDiscovery(DiscoveryContract):
    backend = STORE_DISCOVERY
    examples = 8  # each opens three handles

    @pytest.fixture
    def options(self) -> object:
        return STORE_DISCOVERY.options()

    @pytest.fixture
    async def opening(self, tmp_path: Path) -> AsyncIterator[Opening]:
        yield lambda: open_store(f"sqlite:///{tmp_path}/state.db", plugins=["sql"], network="of_discovery")
