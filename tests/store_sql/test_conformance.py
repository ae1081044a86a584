"""The SQL store keeps every clause of the store contract on a real PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable

import pytest
from anyio.from_thread import start_blocking_portal
from sqlalchemy.ext.asyncio import create_async_engine

from converge.testing import StoreContract
from converge.testing.store import Begin, Cut
from converge_store_sql import SqlOptions, SqlStore
from converge_store_sql.plugin import SQL

# Every clause runs always; as many histories and repeats as elsewhere, and the inherited turn, only in the full run.
IS_FULL = os.environ.get("FULL_TESTS") == "1"


class TestPostgresql(StoreContract):
    backend = SQL
    examples, rounds = (25, 20) if IS_FULL else (8, 6)

    @pytest.fixture
    def url(
        self,
        proxied_url: str,
        postgres_url: str,
        runtime_role: str,
        options: SqlOptions,
        request: pytest.FixtureRequest,
    ) -> str:
        """The store as a runtime role sees it: the owner has made the tables, and the role may not. Where nothing was
        ever stored, the owner is the one who looks.
        """
        is_new = "look" in request.node.name
        networks = [] if is_new else [options.network]
        if "network" in request.node.name:
            networks += [f"{options.network[:20]}_{end}" for end in ("a", "b", "ab")]

        async def make() -> None:
            for network in networks:
                async with SqlStore.open(postgres_url, SqlOptions(network=network)):
                    pass

        with start_blocking_portal() as portal:  # the event loop of a test may be there already
            portal.call(make)
        return proxied_url if is_new else proxied_url.replace("postgres@", f"{runtime_role}@")

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


if IS_FULL:

    class TestPostgresqlInherited(TestPostgresql):
        inherited_turn = True
