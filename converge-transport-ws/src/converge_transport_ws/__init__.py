"""WebSocket as a transport for Converge."""

from converge_transport_ws.options import WsOptions
from converge_transport_ws.plugin import WS
from converge_transport_ws.transport import WsTransport

__all__ = ["WS", "WsOptions", "WsTransport"]
