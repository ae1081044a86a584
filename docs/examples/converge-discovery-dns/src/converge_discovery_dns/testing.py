"""What `converge plugins check dns` needs: a real DNS server, Debian's knot, whose zone changes while it runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from converge.contracts.discovery import Sighting
from converge.testing import Bench
from converge.testing.servers import ServerFailed, free_port, port_answers, running
from converge_discovery_dns.options import DnsOptions

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
        self.folder, self.port, self.program, self.serial = folder, port, program, 0
        self._running, self.pid = ExitStack(), 0
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

    def start(self) -> None:
        """Run the server until `stop`."""
        command = [self.program, "-c", str(self.config)]
        ready = running(command, directory=self.folder, ready=lambda: port_answers(self.port))
        self.pid = self._running.enter_context(ready).pid

    def stop(self) -> None:
        """End the server."""
        self._running.close()


def program() -> str | None:
    """Return the path of the server's program, if there is one."""
    return shutil.which("knotd", path=f"{os.environ['PATH']}:/usr/sbin")


class DnsBench(Bench):
    """A server of the check's own, whose zone names pods."""

    def __init__(self, backend: Any, given: str, folder: Path) -> None:
        super().__init__(backend, given, folder)
        self._server = DnsServer(self.fresh(), free_port(), program() or "knotd")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server while the discovery is checked."""
        if program() is None:
            raise ServerFailed("knotd", "is not there", "install Debian's knot")
        self._server.start()
        try:
            yield
        finally:
            self._server.stop()

    def options(self) -> DnsOptions:
        """Return options that name the server."""
        return DnsOptions(name=self._server.name, server="127.0.0.1", port=self._server.port)

    def configure(self, options: Any, number: int) -> list[Sighting]:
        """Name so many pods in the zone."""
        pods = [(f"pod-{pod}", 7000) for pod in range(number)]
        self._server.say(*pods)
        endpoints = [f"tcp://{host}.agents.example.test:{port}" for host, port in pods]
        return [Sighting(endpoint, (endpoint,)) for endpoint in endpoints]

    def restart(self) -> None:
        """End the server and start it again at its port, on its zone."""
        self._server.stop()
        self._server.start()

    @contextmanager
    def freeze(self) -> Iterator[None]:
        """Stop the server from answering while the block lasts."""
        os.kill(self._server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._server.pid, signal.SIGCONT)
