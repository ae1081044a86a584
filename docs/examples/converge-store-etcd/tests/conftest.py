"""Real etcd servers: one, and a cluster of three."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from converge.testing.cuts import CutProxy, cut_proxy
from converge.testing.servers import ServerUrl, free_port, running

# What a transaction may have: the contract's calls have up to 20,000 writes, and as many checks.
OPTIONS = ("--max-txn-ops", "100000", "--max-request-bytes", "33554432", "--log-level", "error")


@pytest.fixture(scope="session")
def etcd() -> str:
    """Return the path of the server's program; where it is absent, the test is not run."""
    return shutil.which("etcd") or pytest.skip("needs Debian's etcd-server")


def is_healthy(port: int) -> bool:
    """Return whether a member answers and has a leader."""
    try:
        return bool(httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json()["health"] == "true")
    except (httpx.HTTPError, ValueError, KeyError):
        return False


@contextmanager
def cluster(program: str, members: int) -> Iterator[list[ServerUrl]]:
    """Run so many members of one cluster; give the URL of each, with its process id."""
    ports = [(free_port(), free_port()) for _ in range(members)]
    peers = ",".join(f"m{number}=http://127.0.0.1:{peer}" for number, (_, peer) in enumerate(ports))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = []
        for number, (port, peer) in enumerate(ports):
            home = folder / str(number)
            home.mkdir()
            here, there = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
            command = [program, "--name", f"m{number}", "--data-dir", str(home / "data"), *OPTIONS]
            command += ["--listen-client-urls", here, "--advertise-client-urls", here]
            command += ["--listen-peer-urls", there, "--initial-advertise-peer-urls", there]
            command += ["--initial-cluster", peers, "--initial-cluster-state", "new"]
            # A member alone has no leader: the last one is waited for, and answers for all.
            is_last = number == members - 1
            process = stack.enter_context(
                running(command, directory=home, ready=lambda p=port, last=is_last: not last or is_healthy(p))
            )
            started.append(ServerUrl.of(f"etcd://127.0.0.1:{port}", process, home))
        yield started


@pytest.fixture(scope="session")
def etcd_url(etcd: str) -> Iterator[ServerUrl]:
    """A server alone, one for each test process."""
    with cluster(etcd, 1) as (server,):
        yield server


@pytest.fixture
def etcd_cluster(etcd: str) -> Iterator[list[ServerUrl]]:
    """A cluster of three members."""
    with cluster(etcd, 3) as members:
        yield members


@pytest.fixture(scope="session")
def proxy(etcd_url: str) -> Iterator[CutProxy]:
    """Stand before that server, and break connections."""
    with cut_proxy(etcd_url) as made:
        yield made
