"""DnsDiscovery: says the endpoints that SRV records name; Converge fetches the descriptors of the agents there, and
verifies them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.resolver
from anyio.lowlevel import checkpoint

from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import Store
from converge.errors import ChannelError
from converge_discovery_dns.options import DnsOptions

log = logging.getLogger("converge.dns")


class DnsDiscovery(Discovery):
    """What SRV records name, asked for at each look."""

    def __init__(self, options: DnsOptions, poll_sec: float) -> None:
        self._options, self._poll_sec = options, poll_sec
        self._resolver = dns.asyncresolver.Resolver(configure=not options.server)
        if options.server:
            self._resolver.nameservers, self._resolver.port = [options.server], options.port
        self._resolver.lifetime = options.answer_sec

    @classmethod
    @asynccontextmanager
    async def open(cls, options: DnsOptions, *, store: Store, poll_sec: float) -> AsyncIterator[Discovery]:
        """Yield the discovery; nothing is asked before the first look, and the store is not used."""
        yield cls(options, poll_sec)

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        """Take nothing in: whoever runs the service lists it (D-5)."""
        await checkpoint()

    async def withdraw(self, ids: Sequence[str]) -> None:
        """Take nothing back (D-5)."""
        await checkpoint()

    async def snapshot(self) -> list[Sighting]:
        """Ask for the records, in an order of their own (D-1).

        Raises:
            ChannelError: No server has answered, or it has refused; nobody knows who is there (D-8).
        """
        # By default dnspython asks once for the event loop, and believes that it stays the same.
        loop = dns.asyncbackend.get_backend(dns.asyncbackend.sniff())
        try:
            answer = await self._resolver.resolve(self._options.name, "SRV", backend=loop)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []  # a service without ready pods
        except dns.exception.DNSException as error:
            raise ChannelError(f"DNS does not tell {self._options.name}: {error}") from error
        found = sorted({(str(one.target).rstrip("."), int(one.port)) for one in answer})
        endpoints = [f"{self._options.scheme}://{host}:{port}" for host, port in found if host]
        return [Sighting(endpoint, (endpoint,)) for endpoint in endpoints]

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        """Look each poll interval, and yield what has changed (D-3); a look that fails changes nothing."""
        told = None
        while True:
            try:
                now = await self.snapshot()
            except ChannelError as error:
                log.warning("what is known stays: %s", error)
            else:
                if now != told:
                    told = now
                    yield now
            await anyio.sleep(self._poll_sec)
