"""The toy store keeps every clause of the store contract, and tasks on it keep theirs."""

import secrets

import pytest

from converge.testing import StoreContract, TaskContract
from converge_store_toy.plugin import TOY


class TestToyStore(StoreContract):
    """With nothing but the required methods there is nothing to override."""

    backend = TOY

    @pytest.fixture
    def url(self) -> str:
        """Return a place that no other test uses."""
        return f"toy:{secrets.token_hex(8)}"


class TestTasksOnToyStore(TaskContract):
    """A task's life is core's: whoever keeps the clauses of a store keeps these."""

    backend = TOY
