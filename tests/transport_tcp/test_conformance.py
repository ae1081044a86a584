"""The TCP transport keeps every clause of the contract, with TLS and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converge.testing import StreamTransportContract, TransportContract
from converge.testing._transport.certificates import Authority
from converge_transport_tcp import TcpOptions
from converge_transport_tcp.plugin import TCP
from converge_transport_tcp.testing import TcpBench


class TestTcp(StreamTransportContract):
    backend = TCP
    loops = ("asyncio", "uvloop", "trio")
    oversized = TcpBench.oversized
    malformed = TcpBench.malformed
    patience_sec = 9.0

    @pytest.fixture
    def options(self) -> TcpOptions:
        return TcpOptions(frame_sec=3.0)  # more than a machine stands still


class TestTls(TransportContract):
    backend = TCP
    loops = ("asyncio", "trio") if os.environ.get("FULL_TESTS") == "1" else ("asyncio",)

    @pytest.fixture
    def options(self, tmp_path: Path) -> TcpOptions:
        return TcpOptions(**Authority(tmp_path, "house").issue("node"))

    @pytest.fixture
    def address(self) -> str:
        return "tls://127.0.0.1:0"

    @pytest.fixture
    def foreign_address(self) -> str:
        return "tls://192.0.2.1:1"

    @pytest.fixture
    def unknown_address(self) -> str:
        return "tls://nobody.invalid:1"
