"""The Redis store keeps every clause of the store contract, on a real server."""

from __future__ import annotations

import pytest

from converge.testing import StoreContract, TaskContract
from converge_store_redis import RedisOptions
from converge_store_redis.plugin import REDIS


class _OnRedis(StoreContract):
    backend = REDIS

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        """The server of this test process."""
        return redis_url

    @pytest.fixture
    def options(self, namespace: str) -> RedisOptions:
        """A network of the test's own."""
        return RedisOptions(network=namespace)


class TestRedisStore(_OnRedis):
    """With its own turn, count and watch."""


class TestRedisStoreInherited(_OnRedis):
    """With those that every store inherits."""

    inherited_turn = True


class TestRedisTasks(TaskContract):
    """Tasks on it."""

    backend = REDIS

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        """The server of this test process."""
        return redis_url

    @pytest.fixture
    def options(self, namespace: str) -> RedisOptions:
        """A network of the test's own."""
        return RedisOptions(network=namespace)
