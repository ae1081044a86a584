"""The Redis store keeps every clause of the store contract, on real servers, as a user with the documented rights, with
connections that break.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from converge.testing import StoreContract
from converge.testing.cuts import CutProxy
from converge.testing.store import Cut
from converge_store_redis import RedisOptions
from converge_store_redis.plugin import REDIS

IS_FULL = os.environ.get("FULL_TESTS") == "1"


class TestRedis(StoreContract):
    """Redis 8, with the store's own turn, count and watch."""

    backend = REDIS

    @pytest.fixture
    def url(self, proxy: CutProxy) -> str:
        return proxy.url

    @pytest.fixture
    def options(self, namespace: str) -> RedisOptions:
        return RedisOptions(network=namespace)

    @pytest.fixture
    def cut(self, proxy: CutProxy) -> Callable[[Cut], None] | None:
        return proxy.cut


class TestRedisInherited(TestRedis):
    """With the turn, count and watch that every store inherits."""

    inherited_turn = True
    examples, rounds = (25, 20) if IS_FULL else (8, 6)


class TestRedis62(StoreContract):
    """Redis 6.2, the oldest that is supported."""

    backend = REDIS
    examples, rounds = (25, 20) if IS_FULL else (8, 6)

    @pytest.fixture
    def url(self, few62_url: str) -> str:
        return few62_url

    @pytest.fixture
    def options(self, namespace: str) -> RedisOptions:
        return RedisOptions(network=namespace)
