"""Discovery for Converge by DNS SRV records."""

from converge_discovery_dns.discovery import DnsDiscovery
from converge_discovery_dns.options import DnsOptions

__all__ = ["DnsDiscovery", "DnsOptions"]
