"""The toy store keeps every clause of the store contract, and tasks on it keep theirs."""

import os
import secrets

import pytest

from converge.testing import StoreContract, TaskContract
from converge_store_toy.plugin import TOY

# As with pytest's `--quick`: all clauses, on one event loop, at few histories; `FULL_TESTS=1 pytest` does the rest.
IS_FULL = os.environ.get("FULL_TESTS") == "1"
LOOPS = ("asyncio", "trio") if IS_FULL else ("asyncio",)


class TestToyStore(StoreContract):
    """With nothing but the required methods there is nothing to override."""

    backend = TOY
    loops = LOOPS
    examples, rounds = (25, 20) if IS_FULL else (8, 6)

    @pytest.fixture
    def url(self) -> str:
        """Return a place that no other test uses."""
        return f"toy:{secrets.token_hex(8)}"


class TestTasksOnToyStore(TaskContract):
    """A task's life is core's: whoever keeps the clauses of a store keeps these."""

    backend = TOY
    loops = LOOPS
    examples, rounds = (20, 20) if IS_FULL else (8, 6)
