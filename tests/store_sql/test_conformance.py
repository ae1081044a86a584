"""The SQL store keeps every clause of the store contract on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from converge.testing import StoreContract
from converge.testing.store import Cut
from converge_store_sql import SqlOptions
from converge_store_sql.plugin import SQL


class TestPostgresql(StoreContract):
    backend = SQL

    @pytest.fixture
    def url(self, proxied_url: str) -> str:
        return proxied_url

    @pytest.fixture
    def options(self, namespace: str) -> SqlOptions:
        return SqlOptions(network=namespace)

    @pytest.fixture
    def cut(self, cut: Callable[[Cut], None]) -> Callable[[Cut], None] | None:
        return cut


class TestPostgresqlInherited(TestPostgresql):
    inherited_turn = True
