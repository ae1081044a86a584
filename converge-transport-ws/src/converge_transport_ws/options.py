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
    """

    connect_sec: float = attrs.field(
        default=5.0, validator=and_(ge(0.05), le(60.0)), metadata={"unit": "s", "help": "longest time to connect"}
    )
    ping_sec: float = attrs.field(
        default=20.0, validator=and_(ge(0.1), le(300.0)), metadata={"unit": "s", "help": "time between two pings"}
    )
