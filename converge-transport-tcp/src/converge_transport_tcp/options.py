"""Options of the TCP transport."""

from __future__ import annotations

import attrs
from attrs.validators import and_, ge, le


@attrs.frozen(kw_only=True)
class TcpOptions:
    """What an operator may set under `[options.tcp]`.

    Attributes:
        connect_sec: How long a connection may take to come about, name look-up included.
        frame_sec: How long a frame may take from its first byte to its last before the channel is given up.
        backlog: Connections that wait in the kernel for being accepted: what it drops is sent again after a second. The
            kernel takes no more than its own limit (`somaxconn` on Linux).
        certificate, key: PEM files for tls://: what this node shows to others, and its private key. Changed files are
            read again.
        ca: PEM file of the authorities of other nodes' certificates; empty: those of the system.
        mutual: Whether who dials must show a certificate of `ca`.
    """

    connect_sec: float = attrs.field(
        default=5.0, validator=and_(ge(0.05), le(60.0)), metadata={"unit": "s", "help": "longest time to connect"}
    )
    frame_sec: float = attrs.field(
        default=10.0, validator=and_(ge(0.1), le(60.0)), metadata={"unit": "s", "help": "longest time for one frame"}
    )
    backlog: int = attrs.field(
        default=4_096,
        validator=and_(ge(1), le(65_535)),
        metadata={"unit": "connections", "help": "queue of the listening socket"},
    )
    certificate: str = attrs.field(default="", metadata={"help": "PEM file of the certificate for tls://"})
    key: str = attrs.field(default="", metadata={"help": "PEM file of the certificate's private key"})
    ca: str = attrs.field(default="", metadata={"help": "PEM file of the authorities of other nodes"})
    mutual: bool = attrs.field(default=False, metadata={"help": "who dials must show a certificate of ca"})
