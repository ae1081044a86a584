"""The declaration of the TCP transport."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.transport import TransportBackend
from converge.hookspecs import hookimpl
from converge_transport_tcp.address import SCHEMES, parse
from converge_transport_tcp.options import TcpOptions
from converge_transport_tcp.transport import TcpTransport, check_listening

TCP = TransportBackend(
    name="tcp",
    schemes=SCHEMES,
    options=TcpOptions,
    open=TcpTransport.open,
    contract=2,
    check_address=parse,
    check_listening=check_listening,
    secure_schemes=frozenset({"tls"}),
)


@hookimpl
def converge_transports() -> Iterable[TransportBackend]:
    """Declare the transport."""
    return [TCP]
