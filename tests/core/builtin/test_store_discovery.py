"""Discovery through the store keeps every clause of the discovery contract, in memory and on a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.services.store.opening import open_store
from converge.testing import DiscoveryContract
from converge.testing.discovery import Opening


class TestStoreDiscoveryInMemory(DiscoveryContract):
    """On a store in memory."""

    backend = STORE_DISCOVERY


class TestStoreDiscoveryOnFile(DiscoveryContract):
    """On a file."""

    backend = STORE_DISCOVERY
    examples = 8  # each opens three handles on the disk

    @pytest.fixture
    async def opening(self, tmp_path: Path) -> AsyncIterator[Opening]:
        """Handles on one file."""
        yield lambda: open_store(f"file:{tmp_path}/state.db")
