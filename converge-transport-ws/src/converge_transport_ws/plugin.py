"""The declaration of the WebSocket transport."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Feature
from converge.contracts.transport import TransportBackend
from converge.hookspecs import hookimpl
from converge_transport_ws.address import SCHEMES, parse
from converge_transport_ws.options import WsOptions
from converge_transport_ws.transport import WsTransport, check_listening

WS = TransportBackend(
    name="ws",
    schemes=SCHEMES,
    options=WsOptions,
    open=WsTransport.open,
    contract=2,
    features=frozenset({Feature.ASYNCIO_ONLY}),
    check_address=parse,
    check_listening=check_listening,
    secure_schemes=frozenset({"wss"}),
)


@hookimpl
def converge_transports() -> Iterable[TransportBackend]:
    """Declare the transport."""
    return [WS]
