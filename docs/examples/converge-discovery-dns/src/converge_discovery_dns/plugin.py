"""The declaration of DNS discovery."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.discovery import DiscoveryBackend
from converge.hookspecs import hookimpl
from converge_discovery_dns.discovery import DnsDiscovery
from converge_discovery_dns.options import DnsOptions

DNS = DiscoveryBackend(name="dns", options=DnsOptions, open=DnsDiscovery.open, contract=2, publishes=False)


@hookimpl
def converge_discoveries() -> Iterable[DiscoveryBackend]:
    """Declare DNS discovery."""
    return [DNS]
