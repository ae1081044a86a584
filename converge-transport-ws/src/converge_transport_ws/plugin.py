"""The declaration of the WebSocket transport."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Feature
from converge.contracts.transport import TransportBackend
from converge.hookspecs import hookimpl
from converge_transport_ws.address import parse
from converge_transport_ws.options import WsOptions
from converge_transport_ws.transport import WsTransport

# wss is declared so that it is refused by name: the plugin says what to do instead.
WS = TransportBackend(
    name="ws",
    schemes=("ws", "wss"),
    options=WsOptions,
    open=WsTransport.open,
    contract=2,
    features=frozenset({Feature.ASYNCIO_ONLY}),
    check_address=parse,
)


@hookimpl
def converge_transports() -> Iterable[TransportBackend]:
    """Declare the transport."""
    return [WS]
