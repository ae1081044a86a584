"""Tasks keep every clause of their contract on a real Redis."""

from __future__ import annotations

import pytest

from converge.testing import TaskContract
from converge_store_redis import RedisOptions
from converge_store_redis.plugin import REDIS


class TestRedisTasks(TaskContract):
    """On Redis 8."""

    backend = REDIS

    @pytest.fixture
    def url(self, few_url: str) -> str:
        """The server of this test process."""
        return few_url

    @pytest.fixture
    def options(self, namespace: str) -> RedisOptions:
        """A network of the test's own."""
        return RedisOptions(network=namespace)
