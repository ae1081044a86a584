"""A real DNS server for all tests."""

from collections.abc import Iterator

import pytest

from converge.testing.servers import free_port
from converge_discovery_dns.testing import DnsServer, program


@pytest.fixture(scope="session")
def knotd() -> str:
    """Return the path of the server's program; where it is absent, the test is not run."""
    return program() or pytest.skip("needs Debian's knot")


@pytest.fixture(scope="session")
def dns_server(knotd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsServer]:
    """A running server without records."""
    server = DnsServer(tmp_path_factory.mktemp("knot"), free_port(), knotd)
    server.start()
    try:
        yield server
    finally:
        server.stop()
