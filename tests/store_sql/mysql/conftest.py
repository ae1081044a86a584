"""The tests of this folder have a private MariaDB."""

from __future__ import annotations

import pytest

from converge_store_sql.mysql import MysqlOptions


@pytest.fixture(scope="session")
def server_url(mariadb_url: str) -> str:
    """The server of these tests."""
    return mariadb_url


@pytest.fixture
def options(namespace: str) -> MysqlOptions:
    """Tables of a network of its own."""
    return MysqlOptions(network=namespace)
