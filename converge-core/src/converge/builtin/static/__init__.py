"""Static discovery: the endpoints that the configuration names."""

from converge.builtin.static.discovery import StaticDiscovery
from converge.builtin.static.options import StaticOptions

__all__ = ["StaticDiscovery", "StaticOptions"]
