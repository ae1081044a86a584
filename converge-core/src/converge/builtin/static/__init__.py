"""Static discovery: the endpoints that the configuration names."""

from converge.builtin.static.discovery import StaticDiscovery
from converge.builtin.static.options import StaticOptions
from converge.builtin.static.plugin import STATIC

__all__ = ["STATIC", "StaticDiscovery", "StaticOptions"]
