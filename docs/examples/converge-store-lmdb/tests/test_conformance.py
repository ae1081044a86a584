"""The LMDB store keeps every clause of the store contract, with several processes, and tasks on it keep theirs. For its
length the kit runs with FULL_TESTS=1; `test_place.py` always does.
"""

import os
from pathlib import Path

import pytest

from converge.testing import StoreContract, TaskContract
from converge_store_lmdb.plugin import LMDB

if os.environ.get("FULL_TESTS") == "1":

    class Placed:
        """Where each test finds an empty store."""

        @pytest.fixture
        def url(self, tmp_path: Path) -> str:
            """Return a place that no other test uses."""
            return f"lmdb:{tmp_path}/state"

    class TestLmdbStore(Placed, StoreContract):
        """With its own turn and count."""

        backend = LMDB

    class TestLmdbStoreInherited(Placed, StoreContract):
        """With the turn and count that every store inherits."""

        backend = LMDB
        inherited_turn = True

    class TestTasksOnLmdb(Placed, TaskContract):
        """A task's life is core's: whoever keeps the clauses of a store keeps these."""

        backend = LMDB
