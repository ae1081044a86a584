"""The local transport keeps every clause that does not speak of bytes on a wire."""

from __future__ import annotations

import pytest

from converge.builtin.local.plugin import LOCAL
from converge.testing import TransportContract


class TestLocal(TransportContract):
    backend = LOCAL
    carrier_bytes = 0

    @pytest.fixture
    def address(self) -> str:
        return "local:"

    @pytest.fixture
    def foreign_address(self) -> str:
        return "tcp://127.0.0.1:0"

    @pytest.fixture
    def unknown_address(self) -> str:
        return "local:nobody"
