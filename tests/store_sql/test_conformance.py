"""The SQL store keeps every clause of the store contract on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from converge.testing import StoreContract
from converge.testing.store import Begin, Cut
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
    async def begin(self, postgres_url: str) -> AsyncIterator[Begin]:
        engine = create_async_engine(postgres_url.replace("postgresql:", "postgresql+asyncpg:"))
        yield engine.begin
        await engine.dispose()

    @pytest.fixture
    def cut(self, cut: Callable[[Cut], None]) -> Callable[[Cut], None] | None:
        return cut


class TestPostgresqlInherited(TestPostgresql):
    inherited_turn = True
