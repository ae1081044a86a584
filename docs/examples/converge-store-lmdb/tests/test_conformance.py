"""The LMDB store keeps every clause of the store contract, with several processes, and tasks on it keep theirs."""

import os
from pathlib import Path

import pytest

from converge.testing import StoreContract, TaskContract
from converge_store_lmdb.plugin import LMDB

IS_FULL = os.environ.get("FULL_TESTS") == "1"
LOOPS = ("asyncio", "trio") if IS_FULL else ("asyncio",)
EXAMPLES, ROUNDS = (25, 20) if IS_FULL else (3, 3)


class TestLmdbStore(StoreContract):
    """With its own turn and count."""

    backend = LMDB
    loops = LOOPS
    examples, rounds = EXAMPLES, ROUNDS

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        """Return a place that no other test uses."""
        return f"lmdb:{tmp_path}/state"


if IS_FULL:

    class TestTasksOnLmdb(TaskContract):
        """A task's life is core's: whoever keeps the clauses of a store keeps these."""

        backend = LMDB
        loops = LOOPS
        examples, rounds = EXAMPLES, ROUNDS

        @pytest.fixture
        def url(self, tmp_path: Path) -> str:
            """Return a place that no other test uses."""
            return f"lmdb:{tmp_path}/state"
