"""The etcd store keeps every clause of the store contract, with several processes and cut connections, and tasks on it
keep theirs. For its length the kit runs with FULL_TESTS=1; `test_etcd.py` always does.
"""

import os
import secrets
from collections.abc import Callable

import pytest

from converge.testing import StoreContract, TaskContract
from converge.testing.cuts import CutProxy
from converge.testing.store import Cut
from converge_store_etcd import EtcdOptions
from converge_store_etcd.plugin import ETCD

if os.environ.get("FULL_TESTS") == "1":

    class TestEtcdStore(StoreContract):
        """With the inherited turn, and its own count."""

        backend = ETCD

        @pytest.fixture
        def url(self, proxy: CutProxy) -> str:
            """Return the server's URL through the proxy."""
            return proxy.url

        @pytest.fixture
        def cut(self, proxy: CutProxy) -> Callable[[Cut], None] | None:
            """Return what breaks the next call."""
            return proxy.cut

        @pytest.fixture
        def options(self) -> EtcdOptions:
            """Return options that name a network of its own."""
            return EtcdOptions(network=f"t{secrets.token_hex(6)}", call_sec=25.0)  # less than the kit waits for a call

    class TestTasksOnEtcd(TaskContract):
        """A task's life is core's: whoever keeps the clauses of a store keeps these."""

        backend = ETCD
        examples, rounds = 10, 10

        @pytest.fixture
        def url(self, etcd_url: str) -> str:
            """Return the server's URL."""
            return etcd_url

        @pytest.fixture
        def options(self) -> EtcdOptions:
            """Return options that name a network of its own."""
            return EtcdOptions(network=f"t{secrets.token_hex(6)}")
