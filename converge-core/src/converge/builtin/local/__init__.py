"""The local transport: channels within one process and event loop."""

from converge.builtin.local.options import LocalOptions
from converge.builtin.local.transport import LocalTransport

__all__ = ["LocalOptions", "LocalTransport"]
