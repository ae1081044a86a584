"""The store on MariaDB keeps every clause of the contracts of stores, tasks and discovery, on a real server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.services.store.opening import open_store
from converge.testing import DiscoveryContract, StoreContract, TaskContract
from converge.testing.discovery import Opening
from converge.testing.store import Begin, Cut
from converge_store_sql.mysql import MysqlOptions
from converge_store_sql.plugin import MYSQL

# Every clause runs always; as many histories and repeats as elsewhere only in the full run.
IS_FULL = os.environ.get("FULL_TESTS") == "1"


class TestMariadb(StoreContract):
    backend = MYSQL
    examples, rounds = (25, 20) if IS_FULL else (8, 6)

    @pytest.fixture
    def url(self, proxied_url: str) -> str:
        return proxied_url

    @pytest.fixture
    def options(self, namespace: str) -> MysqlOptions:
        return MysqlOptions(network=namespace, poll_sec=0.05)

    @pytest.fixture
    async def begin(self, mariadb_url: str) -> AsyncIterator[Begin]:
        engine = create_async_engine(mariadb_url.replace("mysql:", "mysql+asyncmy:"))
        yield engine.begin
        await engine.dispose()

    @pytest.fixture
    def cut(self, cut: Callable[[Cut], None]) -> Callable[[Cut], None] | None:
        return cut


if IS_FULL:

    class TestMariadbInherited(TestMariadb):
        inherited_turn = True


class TestMariadbTasks(TaskContract):
    backend = MYSQL
    examples, rounds = (25, 20) if IS_FULL else (8, 6)

    @pytest.fixture
    def url(self, mariadb_url: str) -> str:
        return mariadb_url

    @pytest.fixture
    def options(self, namespace: str) -> MysqlOptions:
        return MysqlOptions(network=namespace)


class TestMariadbDiscovery(DiscoveryContract):
    backend = STORE_DISCOVERY
    loops = ("asyncio",)
    examples = 8  # each opens three handles

    @pytest.fixture
    def options(self) -> object:
        return STORE_DISCOVERY.options()

    @pytest.fixture
    async def opening(self, mariadb_url: str, namespace: str) -> AsyncIterator[Opening]:
        yield lambda: open_store(mariadb_url, plugins=["sql"], network=namespace)
