"""DiscoveryContract: every clause of the discovery contract as tests. An author writes one subclass.

    class TestMyDiscovery(DiscoveryContract):
        backend = MY_BACKEND

        @pytest.fixture
        def options(self, my_server):
            return MyOptions(url=my_server)

Each test's docstring names its clause, and so does each failure. A backend that declares `publishes=False` gives with
the fixture `configured` what it must say; the clauses are tested with that in place of what is published.
"""

from __future__ import annotations

from converge.testing._discovery.base import Opening, Process
from converge.testing._discovery.clauses import DiscoveryClauses
from converge.testing._discovery.history import HistoryClauses
from converge.testing._discovery.processes import ProcessClauses
from converge.testing._discovery.service import ServiceClauses

__all__ = ["DiscoveryContract", "Opening", "Process"]


class DiscoveryContract(DiscoveryClauses, HistoryClauses, ProcessClauses, ServiceClauses):
    """The whole contract; see `converge.testing._discovery.base.DiscoveryCase` for what an author may set."""
