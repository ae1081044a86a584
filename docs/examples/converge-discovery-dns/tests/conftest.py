"""A real DNS server: Debian's knot, with one zone that tests change while it runs."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from converge.testing.servers import free_port, port_answers, running

ZONE = "example.test."
NAME = f"_converge._tcp.agents.{ZONE}"
HEAD = f"""$ORIGIN {ZONE}
$TTL 0
@ IN SOA ns hostmaster {{serial}} 60 60 3600 1
@ IN NS ns
ns IN A 127.0.0.1
"""


class DnsServer:
    """A server of one zone, and how to change it."""

    name = NAME

    def __init__(self, folder: Path, port: int, program: str) -> None:
        self.folder, self.port, self.serial = folder, port, 0
        self.control = f"{Path(program).with_name('knotc')}"
        self.records(())
        self.config = folder / "knot.conf"
        self.config.write_text(
            f'server:\n  rundir: "{folder}"\n  listen: 127.0.0.1@{port}\n'
            f'database:\n  storage: "{folder}"\ncontrol:\n  listen: "{folder}/knot.sock"\n'
            f"log:\n  - target: stderr\n    any: warning\n"
            f'zone:\n  - domain: {ZONE}\n    storage: "{folder}"\n    file: "zone.txt"\n    zonefile-load: whole\n'
            f"    journal-content: none\n"
        )

    def records(self, pods: Sequence[tuple[str, int]]) -> None:
        """Write the zone file: an SRV record for each pod, as a headless service has it."""
        self.serial += 1
        lines = [f"{NAME} IN SRV 0 50 {port} {host}.agents.{ZONE}" for host, port in pods]
        (self.folder / "zone.txt").write_text(HEAD.format(serial=self.serial) + "\n".join(lines) + "\n")

    def say(self, *pods: tuple[str, int]) -> None:
        """Change the zone, and return once the server answers so."""
        self.records(pods)
        command = [self.control, "-b", "-s", str(self.folder / "knot.sock"), "zone-reload", ZONE]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="session")
def knotd() -> str:
    """Return the path of the server's program; where it is absent, the test is not run."""
    found = shutil.which("knotd", path=f"{os.environ['PATH']}:/usr/sbin")
    return found or pytest.skip("needs Debian's knot")


@pytest.fixture(scope="session")
def dns_server(knotd: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsServer]:
    """A running server without records."""
    server = DnsServer(tmp_path_factory.mktemp("knot"), free_port(), knotd)
    command = [knotd, "-c", str(server.config)]
    with running(command, directory=server.folder, ready=lambda: port_answers(server.port)):
        yield server
