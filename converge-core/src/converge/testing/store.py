"""StoreContract: every clause of the store contract as tests. An author writes one subclass.

    class TestMyStore(StoreContract):
        backend = MY_BACKEND

        @pytest.fixture
        def options(self, tmp_path):
            return MyOptions(path=tmp_path / "store")

Each test's docstring names its clause, and so does each failure. `inherited_turn = True` in a second subclass runs the
same with the `turn`, `count` and `watch` that every store inherits.
"""

from __future__ import annotations

from converge.testing._store.base import Cut, Opening
from converge.testing._store.commits import CommitClauses
from converge.testing._store.handles import HandleClauses
from converge.testing._store.history import HistoryClauses
from converge.testing._store.places import PlaceClauses
from converge.testing._store.processes import ProcessClauses
from converge.testing._store.races import RaceClauses
from converge.testing._store.reads import ReadClauses
from converge.testing._store.takes import TakeClauses
from converge.testing._store.transactions import Begin, TransactionClauses
from converge.testing._store.wakes import WakeClauses

__all__ = ["Begin", "Cut", "Opening", "StoreContract"]


class StoreContract(
    ReadClauses,
    CommitClauses,
    TakeClauses,
    RaceClauses,
    HandleClauses,
    WakeClauses,
    PlaceClauses,
    ProcessClauses,
    TransactionClauses,
    HistoryClauses,
):
    """The whole contract; see `converge.testing._store.base.StoreCase` for what an author may set."""
