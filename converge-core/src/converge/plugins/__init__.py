"""Plugins: found by metadata, loaded when named, refused with a reason."""

from converge.plugins.host import Installed, PluginHost

__all__ = ["Installed", "PluginHost"]
