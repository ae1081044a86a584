"""DNS discovery keeps every clause of the discovery contract, and says what a real server says."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import pytest

from converge import MemoryStore
from converge.contracts.discovery import Discovery, Sighting
from converge.errors import ChannelError
from converge.testing import DiscoveryContract
from converge.testing.servers import free_port
from converge_discovery_dns import DnsDiscovery, DnsOptions
from converge_discovery_dns.plugin import DNS

IS_FULL = os.environ.get("FULL_TESTS") == "1"
PODS = [("pod-0", 7000), ("pod-1", 7001)]


def sightings(*pods: tuple[str, int]) -> list[Sighting]:
    """Return what the discovery says of pods."""
    endpoints = [f"tcp://{host}.agents.example.test:{port}" for host, port in pods]
    return [Sighting(endpoint, (endpoint,)) for endpoint in endpoints]


class TestDns(DiscoveryContract):
    """The kit, on two pods of a real server."""

    backend = DNS
    loops = ("asyncio", "trio") if IS_FULL else ("asyncio",)
    examples = 20 if IS_FULL else 3

    @pytest.fixture
    def options(self, dns_server: Any) -> DnsOptions:
        """Return options that name the server."""
        dns_server.say(*PODS)
        return DnsOptions(name=dns_server.name, server="127.0.0.1", port=dns_server.port)

    @pytest.fixture
    def configured(self) -> list[Sighting]:
        """Return what it must say with these options."""
        return sightings(*PODS)

    @pytest.fixture
    def configure(self, dns_server: Any) -> Callable[[int], list[Sighting]]:
        """Return what lets the zone name so many pods."""

        def configure(number: int) -> list[Sighting]:
            pods = [(f"pod-{pod}", 7000) for pod in range(number)]
            dns_server.say(*pods)
            return sightings(*pods)

        return configure


class TestRecords:
    """What records become."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        """Run on both event loops."""
        return str(request.param)

    @pytest.fixture
    async def discovery(self, dns_server: Any) -> AsyncIterator[Discovery]:
        """An open discovery that looks often."""
        options = DnsOptions(name=dns_server.name, server="127.0.0.1", port=dns_server.port)
        async with DnsDiscovery.open(options, store=MemoryStore(), poll_sec=0.05) as opened:
            yield opened

    async def test_pods_that_come_and_go_are_seen(self, dns_server: Any, discovery: Discovery) -> None:
        dns_server.say()
        assert await discovery.snapshot() == []
        reader = discovery.reader()
        dns_server.say(*PODS)
        assert list((await reader.look()).came) == sightings(*PODS)
        dns_server.say(PODS[1])
        assert list((await reader.look()).gone) == [sightings(PODS[0])[0].id]

    async def test_a_change_wakes_a_watcher(self, dns_server: Any, discovery: Discovery) -> None:
        dns_server.say(PODS[0])
        seen = []
        async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]  # an async generator
            async for now in watch:
                seen.append(now)
                if len(seen) == 2:
                    break
                dns_server.say(*PODS)
        assert seen == [sightings(PODS[0]), sightings(*PODS)]

    async def test_more_records_than_fit_a_datagram_are_all_told(self, dns_server: Any, discovery: Discovery) -> None:
        many = [(f"pod-{number:03}", 7000) for number in range(200)]
        dns_server.say(*many)
        assert await discovery.snapshot() == sightings(*many)

    async def test_a_server_that_does_not_answer_is_an_error_and_not_an_empty_list(self) -> None:
        options = DnsOptions(name="_a._tcp.example.test", server="127.0.0.1", port=free_port(), answer_sec=0.2)
        async with DnsDiscovery.open(options, store=MemoryStore(), poll_sec=0.05) as discovery:
            with pytest.raises(ChannelError, match="does not tell"):
                await discovery.snapshot()
