"""Tasks keep every clause of their contract on a real PostgreSQL."""

from __future__ import annotations

import os

import pytest

from converge.testing import TaskContract
from converge_store_sql import SqlOptions
from converge_store_sql.plugin import SQL


class TestPostgresqlTasks(TaskContract):
    """On PostgreSQL 18."""

    backend = SQL
    # As many histories and repeats as elsewhere only in the full run.
    examples, rounds = (20, 20) if os.environ.get("FULL_TESTS") == "1" else (8, 6)

    @pytest.fixture
    def url(self, postgres_url: str) -> str:
        """The server of this test process."""
        return postgres_url

    @pytest.fixture
    def options(self, namespace: str) -> SqlOptions:
        """A network of the test's own."""
        return SqlOptions(network=namespace)
