"""Fleets: real processes of `converge run` on one store, to be killed, stopped and watched by tests. For suites of
faults and scenarios.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import anyio
import attrs

from converge.contracts.store import Batch, Store
from converge.model.keys import EXPIRY
from converge.services.durable.manager import TaskManager
from converge.services.store.processes import leases
from converge.testing.fixtures import wait_until

COMMAND = Path(sys.executable).with_name("converge")


@attrs.define(eq=False)
class Fleet:
    """Processes that share a store. Those that are left at the end are killed, by their process id.

    Attributes:
        folder: Where configurations, logs and the ledger go.
        url: The store's.
        agent: `module:Class` of a module in `agents_folder`, which finds the ledger's path in the environment, as
            LEDGER.
        options: Those of backends, by their name.
        popen: How a process is started, for all fleets: a suite that starts hundreds may know a quicker way.
    """

    popen: ClassVar[Callable[..., subprocess.Popen[bytes]]] = subprocess.Popen

    folder: Path
    url: str
    agent: str
    agents_folder: Path
    pool: str
    network: str
    plugins: list[str]
    options: Mapping[str, Mapping[str, str]] = MappingProxyType({})
    processes: list[subprocess.Popen[bytes]] = attrs.field(init=False, factory=list)
    ledger_path: Path = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.ledger_path = self.folder / "ledger"
        self.ledger_path.touch()

    def start(
        self,
        *flags: str,
        agents: int = 4,
        lease_sec: float = 15.0,
        grace_sec: float = 5.0,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start one process.

        Args:
            flags: More of the command's, such as `"--transport", "tcp://127.0.0.1:0"`.
            environment: Variables that it has besides the test's own.
            within: A command that runs the process in its place, such as `ip netns exec NAME`.
        """
        config = self.folder / f"converge{len(self.processes)}.toml"
        lines = [
            f"lease_sec = {lease_sec}",
            f"grace_sec = {grace_sec}",
            "poll_sec = 0.3",
            f'network = "{self.network}"',
        ]
        for name, values in self.options.items():
            lines += [f"[options.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        config.write_text("\n".join(lines) + "\n")
        command = [
            *within,
            str(COMMAND),
            "run",
            self.agent,
            "--agents",
            str(agents),
            "--pool",
            self.pool,
            "--store",
            self.url,
        ]
        for plugin in self.plugins:
            command += ["--plugin", plugin]
        command += ["-c", str(config), "--create-pool", *flags]
        log = (self.folder / f"log{len(self.processes)}.txt").open("wb")
        variables = {**os.environ, "LEDGER": str(self.ledger_path), **(environment or {})}
        process = type(self).popen(command, cwd=self.agents_folder, stdout=log, stderr=log, env=variables)
        log.close()
        self.processes.append(process)
        return process

    def log_of(self, process: subprocess.Popen[bytes]) -> str:
        """Return what a process has written so far."""
        return (self.folder / f"log{self.processes.index(process)}.txt").read_text(errors="replace")

    async def until_running(self, process: subprocess.Popen[bytes], *, timeout: float = 30.0) -> None:
        """Return once its agents run.

        Raises:
            AssertionError: It ended, or took too long; its log is shown.
        """
        await wait_until(
            lambda: ": running " in self.log_of(process) or process.poll() is not None,
            timeout=timeout,
            what="agents run",
        )
        assert process.poll() is None, self.log_of(process)

    def ledger(self) -> list[dict[str, Any]]:
        """Return every line that handlers have written."""
        return [json.loads(line) for line in self.ledger_path.read_text().splitlines() if line.endswith("}")]

    def starts(self) -> dict[str, list[dict[str, Any]]]:
        """Return the lines of starts, by task."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for line in self.ledger():
            if line["what"] == "start":
                found[line["task"]].append(line)
        return dict(found)

    def kill_all(self) -> None:
        """End what is left."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


async def all_terminal(tasks: TaskManager, ids: list[str], *, timeout: float) -> None:
    """Return when every task is terminal."""
    with anyio.fail_after(timeout):
        for task_id in ids:
            await tasks.result(task_id)


async def expire_leases(store: Store, *pids: int) -> None:
    """Let the leases of dead processes, of all if none is named, expire now. Nobody waits for it then, and while they
    lived their leases could be too long for a busy machine to lose them.
    """
    expired = [one for one in await leases(store) if not pids or one.pid in pids]
    assert expired, f"no lease of {pids}"
    await store.commit([Batch(puts=[(EXPIRY(bytes.fromhex(one.id)), b"1") for one in expired])])


async def until_started(fleet: Fleet, count: int, *, timeout: float = 30.0) -> None:
    """Return when so many attempts have begun."""
    await wait_until(
        lambda: sum(map(len, fleet.starts().values())) >= count, timeout=timeout, what=f"{count} attempts begun"
    )
