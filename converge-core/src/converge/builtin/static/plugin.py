"""Declares static discovery."""

from __future__ import annotations

from collections.abc import Iterable

from converge.builtin.static.discovery import StaticDiscovery
from converge.builtin.static.options import StaticOptions
from converge.contracts.discovery import CONTRACT, DiscoveryBackend
from converge.hookspecs import hookimpl

STATIC = DiscoveryBackend(
    name="static", options=StaticOptions, open=StaticDiscovery.open, contract=CONTRACT, publishes=False
)


@hookimpl
def converge_discoveries() -> Iterable[DiscoveryBackend]:
    """Declare static discovery."""
    return [STATIC]
