"""The WebSocket transport keeps every clause of the contract, with TLS and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converge.testing import StreamTransportContract, TransportContract
from converge.testing._transport.certificates import Authority
from converge_transport_ws import WsOptions
from converge_transport_ws.plugin import WS
from converge_transport_ws.testing import WsBench


class TestWs(StreamTransportContract):
    backend = WS
    loops = ("asyncio", "uvloop", "trio")
    oversized = WsBench.oversized
    malformed = WsBench.malformed
    patience_sec = WsBench.patience_sec

    @pytest.fixture
    def options(self) -> WsOptions:
        return WsOptions(connect_sec=5.0, ping_sec=2.0)


class TestWss(TransportContract):
    backend = WS
    loops = ("asyncio", "trio") if os.environ.get("FULL_TESTS") == "1" else ("asyncio",)

    @pytest.fixture
    def options(self, tmp_path: Path) -> WsOptions:
        return WsOptions(**Authority(tmp_path, "house").issue("node"), connect_sec=5.0, ping_sec=2.0)

    @pytest.fixture
    def address(self) -> str:
        return "wss://127.0.0.1:0"

    @pytest.fixture
    def foreign_address(self) -> str:
        return "wss://192.0.2.1:1"

    @pytest.fixture
    def unknown_address(self) -> str:
        return "wss://nobody.invalid:1"
