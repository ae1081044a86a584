"""Options of the WebSocket transport."""

from __future__ import annotations

import attrs
from attrs.validators import and_, ge, le


@attrs.frozen(kw_only=True)
class WsOptions:
    """What an operator may set under `[options.ws]`.

    Attributes:
        connect_sec: How long a connection may take to come about, name look-up and HTTP upgrade included; on both
            sides.
        ping_sec: How often a WebSocket ping is sent, and how long its answer may take: a peer that stopped in the
            middle of a frame ends after both.
        certificate, key: PEM files for wss://: what this node shows to others, and its private key. Changed files are
            read again.
        ca: PEM file of the authorities of other nodes' certificates; empty: those of the system.
        mutual: Whether who dials must show a certificate of `ca`.
        tls_terminated: TLS ends at a reverse proxy in front of this node: others see that one's certificate.
    """

    connect_sec: float = attrs.field(
        default=5.0, validator=and_(ge(0.05), le(60.0)), metadata={"unit": "s", "help": "longest time to connect"}
    )
    ping_sec: float = attrs.field(
        default=20.0, validator=and_(ge(0.1), le(300.0)), metadata={"unit": "s", "help": "time between two pings"}
    )
    certificate: str = attrs.field(default="", metadata={"help": "PEM file of the certificate for wss://"})
    key: str = attrs.field(default="", metadata={"help": "PEM file of the certificate's private key"})
    ca: str = attrs.field(default="", metadata={"help": "PEM file of the authorities of other nodes"})
    mutual: bool = attrs.field(default=False, metadata={"help": "who dials must show a certificate of ca"})
    tls_terminated: bool = attrs.field(
        default=False, metadata={"help": "TLS ends at a reverse proxy in front of this node"}
    )
