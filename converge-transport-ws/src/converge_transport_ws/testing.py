"""What `converge plugins check ws` needs: bytes that break the framing, and options that notice it soon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from converge.testing import Bench
from converge_transport_ws.options import WsOptions

MASKED = b"\x00\x00\x00\x00"


class WsBench(Bench):
    """A free port of this host for each listener."""

    oversized: bytes = b"\x82\xff" + (131_073).to_bytes(8, "big") + MASKED
    malformed: ClassVar[Mapping[str, bytes]] = {
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
    patience_sec: float = 12.0

    def options(self) -> WsOptions:
        """Return options with which a peer that falls silent is noticed soon, and one on a busy machine is not taken
        for silent.
        """
        return WsOptions(connect_sec=3.0, ping_sec=2.0)
