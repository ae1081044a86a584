"""What `converge plugins check tcp` needs: bytes that break the framing, and options that notice it soon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from converge.testing import Bench
from converge_transport_tcp.options import TcpOptions


class TcpBench(Bench):
    """A free port of this host for each listener."""

    oversized: bytes = b"\x00\x01\x00\x00"
    malformed: ClassVar[Mapping[str, bytes]] = {
        "an empty frame": bytes(4),
        "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "a length that is cut off": b"\x00\x00",
        "a frame that is cut off": b"\x00\x00\xff\xff" + bytes(1_000),
    }
    patience_sec: float = 3.0

    def options(self) -> TcpOptions:
        """Return options with which a peer that falls silent is noticed soon."""
        return TcpOptions(frame_sec=1.5)
