"""The processes of one `converge run --processes N`: started, started again when they end, their output one stream."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import attrs
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.buffered import BufferedByteReceiveStream

from converge.env import SYSTEM, Env
from converge.errors import ConfigError, ConvergeError
from converge.machines.breaker import QUICK_ENDS, WELL_SEC, Restarts
from converge.operations.drain import Drain, Drained, Progress
from converge.operations.run import (
    BEYOND_SEC,
    Run,
    cancel_when_asked,
    check,
    opened_store,
    pools_of,
    prepare_pools,
    submit_all,
    warn_of_unclaimable,
)
from converge.operations.signals import stop_asked
from converge.runtime.config.config import ENV_PREFIX, Config, options_with_origin
from converge.runtime.config.node_settings import addresses
from converge.runtime.probes.probes import check_installed
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.store.handle import StoreHandle

log = logging.getLogger("converge.run")

LINE_BYTES = 65_536
"""The longest line that stays one: a longer one is cut into several."""

LAST_WORDS_SEC = 0.5
"""How long the output of a process that has ended is waited for: a child of its own may hold the pipe."""

REFUSED = 78
"""The exit code of a process that refused its configuration: another start would end the same way. The number is
`EX_CONFIG` of sysexits.h; with 2 and 3, which commands have for it, user code may end a process for reasons of its own.
"""

CONFIGURATION = 3
"""What the supervisor's own exit code is then."""

SOCKET_BYTES = 103
"""The longest path of a unix socket on every system."""

CANNOT_START = 126
"""What shells make the exit code of what cannot be started."""

Relay = Callable[[int, bytes], None]
"""Writes a line of the process of that number."""


def follow_supervisor() -> None:
    """Stop this process, as by SIGTERM, once its supervisor is gone."""
    held = os.dup(0)  # the supervisor holds the other end of what was standard input
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def wait() -> None:
        while os.read(held, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="converge-supervisor", daemon=True).start()


def for_process(config: Config, number: int) -> Config:
    """Return the configuration of the process of that number: it listens at the port plus its number; 0 stays 0.

    Raises:
        ConfigError: There is no such port.
    """
    return attrs.evolve(
        config,
        port=_port(config.port, number),
        transport=_all_shifted(config.transport, number),
        advertise=_all_shifted(config.advertise, number),
        processes=1,
    )


def _all_shifted(text: str, number: int) -> str:
    return ",".join(_shifted(one, number) for one in addresses(text))


def _shifted(address: str, number: int) -> str:
    """Return a URL, or HOST:PORT, with the port plus the number."""
    try:
        port = urlsplit(address if "://" in address else f"//{address}").port
    except ValueError:
        return address  # whoever listens there says what is wrong with it
    if not port:
        return address
    before, _, after = address.rpartition(f":{port}")
    return f"{before}:{_port(port, number)}{after}"


def _port(port: int, number: int) -> int:
    if port and port + number > 65_535:
        raise ConfigError(f"port: {port} is not allowed with so many processes; each listens at the next port")
    return port + number if port else 0


def marked(number: int, line: bytes, *, is_json: bool) -> str:
    """Return a line of a process with its mark: `[2] ...`, or the field `process` of a JSON line."""
    text = line.decode("utf-8", "backslashreplace")
    if is_json and text.startswith("{"):
        with suppress(ValueError, RecursionError):  # a handler may print whatever it likes
            return json.dumps({"process": number} | json.loads(text) | {"process": number}, ensure_ascii=False)
    return f"[{number}] {text}"


class Start(NamedTuple):
    """How a process is started: its command, the variable that tells it its number, who writes its output, and
    what else stands in its environment.
    """

    command: Sequence[str]
    variable: str
    relay: Relay
    environ: Callable[[int], Mapping[str, str]] = lambda _: {}


class Processes:
    """The processes of one supervisor.

    `stop_sec`: how long they have to end once `begin_stop` was called; then they are killed.
    """

    def __init__(self, start: Start, count: int, env: Env, stop_sec: float) -> None:
        self._start, self._count, self._env, self._stop_sec = start, count, env, stop_sec
        self._running: dict[int, Process] = {}
        self._stopping, self._has_begun = anyio.Event(), False
        self._error: ConvergeError | None = None
        self.ended = anyio.Event()
        """Set once all have ended, or none was started."""
        self.worst = 0
        """The greatest exit code of those that ended when they were to stop."""

    async def run(self) -> None:
        """Run the processes until `begin_stop`; return when all have ended, also if this is cancelled meanwhile.

        Raises:
            ConfigError: One refused its configuration; the others were stopped.
            ConvergeError: One ended again and again; the others were stopped.
        """
        self._has_begun = True
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as outer:
                outer.start_soon(self._kill_late)
                async with anyio.create_task_group() as group:
                    for number in range(self._count):
                        group.start_soon(self._keep, number)
                outer.cancel_scope.cancel()
            self.ended.set()
        if self._error is not None:
            raise self._error

    def begin_stop(self) -> None:
        """Stop all processes, and start no further ones. Idempotent."""
        if not self._has_begun:
            self.ended.set()
        if not self._stopping.is_set():
            self._stopping.set()
            for process in self._running.values():
                with suppress(ProcessLookupError):
                    process.terminate()

    def kill(self) -> None:
        """End all at once, past all clean-up; from any thread."""
        for process in list(self._running.values()):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    async def _kill_late(self) -> None:
        await self._stopping.wait()
        await anyio.sleep(self._stop_sec)
        log.error("processes %s did not stop within %.0f s, and are killed", sorted(self._running), self._stop_sec)
        self.kill()

    async def _keep(self, number: int) -> None:
        restarts = Restarts()
        while not self._stopping.is_set():
            began = self._env.monotonic()
            code = await self._run_one(number)
            if self._stopping.is_set():
                was_starting = code == -signal.SIGTERM  # it held nothing yet: from then on it handles the signal
                ended = CONFIGURATION if code == REFUSED else code if code >= 0 else 128 - code
                self.worst = max(self.worst, 0 if was_starting else ended)
                return
            wait_sec = restarts.ended(self._env.monotonic() - began, self._env.uniform())
            if code == REFUSED:
                self._give_up(ConfigError(f"process [{number}] refused its configuration; all are stopped"))
                return
            if wait_sec is None:
                text = f"process [{number}] ended {QUICK_ENDS} times within {WELL_SEC:.0f} s of its start"
                self._give_up(ConvergeError(f"{text}, the last time with {_ending(code)}; all are stopped"))
                return
            log.error("process [%d] ended with %s; it starts again in %.1f s", number, _ending(code), wait_sec)
            with anyio.move_on_after(wait_sec):
                await self._stopping.wait()

    def _give_up(self, error: ConvergeError) -> None:
        self._error = self._error or error
        self.begin_stop()

    async def _run_one(self, number: int) -> int:
        """Run the process once; return its exit code, negative for a signal."""
        variables = {self._start.variable: str(number), "PYTHONUNBUFFERED": "1", **self._start.environ(number)}
        try:
            process = await anyio.open_process(
                list(self._start.command),
                stdin=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,  # Ctrl-C is for the supervisor, which passes it on once
            )
        except OSError as error:  # of processes, memory or descriptors there are too few, which harms no other process
            log.error("process [%d] cannot be started: %s", number, error)
            return CANNOT_START
        async with process:
            self._running[number] = process
            log.info("process [%d] has the pid %d", number, process.pid)
            if self._stopping.is_set():
                process.terminate()
            assert process.stdout is not None, "its output is a pipe"
            async with anyio.create_task_group() as group:
                group.start_soon(self._relay_lines, number, process.stdout)
                code = await process.wait()
                del self._running[number]
                group.cancel_scope.deadline = anyio.current_time() + LAST_WORDS_SEC
        return code

    async def _relay_lines(self, number: int, output: ByteReceiveStream) -> None:
        stream, relay = BufferedByteReceiveStream(output), self._start.relay
        while True:
            try:
                relay(number, await stream.receive_until(b"\n", LINE_BYTES))
            except anyio.DelimiterNotFound:
                relay(number, await stream.receive_exactly(LINE_BYTES))
            except anyio.IncompleteRead:
                if rest := stream.buffer:
                    relay(number, rest)
                return


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


async def supervise(
    config: Config, run: Run, start: Start, on_progress: Progress | None = None
) -> tuple[Drained | None, int]:
    """Run as many processes as configured until the pool is drained, if that is asked, or until a
    signal comes. The tasks of `run` are submitted here. Return what was drained, and the exit code.

    Raises:
        ConfigError: The configuration cannot be used, or a process refused it.
        ConvergeError: A process ended again and again. In a group, as task groups raise it.
    """
    check(config, run)
    for_process(config, config.processes - 1)  # the last one's port
    stop_sec = config.grace_sec + BEYOND_SEC + BEYOND_SEC
    drained: Drained | None = None
    with _health_of_all(config) as environ, options_with_origin(config):
        processes = Processes(start._replace(environ=environ), config.processes, SYSTEM, stop_sec)
        with stop_asked(stop_sec + BEYOND_SEC, processes.kill) as stop:
            async with anyio.create_task_group() as outer:
                with anyio.CancelScope() as scope:
                    outer.start_soon(cancel_when_asked, stop, scope)
                    try:
                        drained = await _feed(config, run, on_progress, partial(outer.start_soon, processes.run))
                    finally:
                        processes.begin_stop()
                await processes.ended.wait()
                outer.cancel_scope.cancel()
    code = 128 + stop.number if run.is_drain and drained is None else 0
    return drained, max(code, processes.worst)


@contextmanager
def _health_of_all(config: Config) -> Iterator[Callable[[int], Mapping[str, str]]]:
    """Serve the health of all processes as one; what each needs for it stands in its environment."""
    if not config.health:
        yield lambda _: {}
        return
    check_installed()
    from converge.runtime.probes.children import Children, socket_of
    from converge.runtime.probes.metrics import registry_of
    from converge.runtime.probes.server import HealthServer

    with TemporaryDirectory(prefix="converge-health-") as name:
        folder = Path(name)
        if len(os.fsencode(socket_of(folder, config.processes))) > SOCKET_BYTES:
            text = f"health: the path of {folder.parent} is too long for the sockets of the processes"
            raise ConfigError(f"{text}; set TMPDIR to a shorter one")
        children = Children(folder, config.processes, config.stall_sec)
        server = HealthServer(config.health, children.health, registry_of(children))
        try:
            yield lambda number: {f"{ENV_PREFIX}HEALTH": f"unix:{socket_of(folder, number)}"}
        finally:
            server.close()


async def _feed(config: Config, run: Run, on_progress: Progress | None, start: Callable[[], object]) -> Drained | None:
    """Prepare the pools, start the processes, submit the tasks; return once the pool is drained, or never."""
    pools = pools_of(config)
    async with opened_store(config, must_exist=False) as store:
        await prepare_pools(PoolManager(store), config, pools, may_create=run.may_create_pool)
        warn_of_unclaimable(config, run)
        draining = Drain(StoreHandle.of(store), TaskManager(store), pools, on_progress) if run.is_drain else None
        if draining is not None:
            await draining.begin()
        start()
        ids = await submit_all(store, run.tasks)
        if draining is not None:
            return await draining.run(ids)
    await anyio.sleep_forever()
    raise AssertionError("nobody wakes it")


def command_of(arguments: Sequence[str]) -> list[str]:
    """Return what starts one process with these arguments of `converge run`."""
    return [sys.executable, "-m", "converge", "run", *arguments]
