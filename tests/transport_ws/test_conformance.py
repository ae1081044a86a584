"""The WebSocket transport keeps every clause of the contract, with TLS and without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest

from converge.testing import StreamTransportContract, TransportContract
from converge.testing._transport.certificates import Authority
from converge_transport_ws import WsOptions
from converge_transport_ws.plugin import WS

MASKED = b"\x00\x00\x00\x00"


class TestWs(StreamTransportContract):
    backend = WS
    loops = ("asyncio", "uvloop", "trio")
    oversized = b"\x82\xff" + (131_073).to_bytes(8, "big") + MASKED
    malformed: ClassVar = {
        "a huge message": b"\x82\xff" + (2**40).to_bytes(8, "big") + MASKED,
        "a frame without mask": b"\x82\x03\x00\x01a",
        "a reserved opcode": b"\x83\x80" + MASKED,
        "compression that was not agreed": b"\xc2\x83" + MASKED + b"\x00\x01a",
        "a text message": b"\x81\x83" + MASKED + b"abc",
        "text that is not UTF-8": b"\x81\x81" + MASKED + b"\xff",
        "an empty message": b"\x82\x80" + MASKED,
        "an empty frame": b"\x82\x82" + MASKED + b"\x00\x00",
        "a length that is cut off": b"\x82\x81" + MASKED + b"\x00",
        "lengths that do not add up": b"\x82\x84" + MASKED + b"\x00\x03ab",
        "something else": b"\x00" * 100,
    }
    patience_sec = 5.0

    @pytest.fixture
    def options(self) -> WsOptions:
        return WsOptions(connect_sec=1.0, ping_sec=0.5)


class TestWss(TransportContract):
    backend = WS
    loops = ("asyncio", "trio") if os.environ.get("FULL_TESTS") == "1" else ("asyncio",)

    @pytest.fixture
    def options(self, tmp_path: Path) -> WsOptions:
        return WsOptions(**Authority(tmp_path, "house").issue("node"), connect_sec=1.0, ping_sec=0.5)

    @pytest.fixture
    def address(self) -> str:
        return "wss://127.0.0.1:0"

    @pytest.fixture
    def foreign_address(self) -> str:
        return "wss://192.0.2.1:1"

    @pytest.fixture
    def unknown_address(self) -> str:
        return "wss://nobody.invalid:1"
