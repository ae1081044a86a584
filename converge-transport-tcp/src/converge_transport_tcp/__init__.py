"""TCP as a transport for Converge."""

from converge_transport_tcp.options import TcpOptions
from converge_transport_tcp.plugin import TCP
from converge_transport_tcp.transport import TcpTransport

__all__ = ["TCP", "TcpOptions", "TcpTransport"]
