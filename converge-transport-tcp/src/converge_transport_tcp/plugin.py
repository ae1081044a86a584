"""The declaration of the TCP transport."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.transport import TransportBackend
from converge.hookspecs import hookimpl
from converge_transport_tcp.address import parse
from converge_transport_tcp.options import TcpOptions
from converge_transport_tcp.transport import TcpTransport

TCP = TransportBackend(
    name="tcp", schemes=("tcp",), options=TcpOptions, open=TcpTransport.open, contract=2, check_address=parse
)


@hookimpl
def converge_transports() -> Iterable[TransportBackend]:
    """Declare the transport."""
    return [TCP]
