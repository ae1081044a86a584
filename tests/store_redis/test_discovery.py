"""Discovery through a Redis store keeps every clause of the discovery contract."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.services.store.opening import open_store
from converge.testing import DiscoveryContract
from converge.testing.discovery import Opening


class TestRedisDiscovery(DiscoveryContract):
    """On a real server."""

    backend = STORE_DISCOVERY
    loops = ("asyncio",)
    examples = 8  # each opens three handles

    @pytest.fixture
    def options(self) -> object:
        """Those of discovery, not of the store."""
        return STORE_DISCOVERY.options()

    @pytest.fixture
    async def opening(self, redis_url: str, namespace: str) -> AsyncIterator[Opening]:
        """Handles on one network."""
        yield lambda: open_store(redis_url, plugins=["redis"], network=namespace)
