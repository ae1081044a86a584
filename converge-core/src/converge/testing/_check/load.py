"""What certification stands on: progress under load, recovery, the means of a bench, children, other releases."""

from __future__ import annotations

import os
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import Process

from converge.testing._check.given import current
from converge.testing.clauses import expect

LOAD_SEC = 60.0
"""How long a call of the load may take before it counts as hung."""
START_SEC = 60.0
"""How long another interpreter may take to begin."""
LOADED = 10
"""Calls that succeed before anything is done to the place."""
OF_SERVER = frozenset({"restart", "freeze", "refuse_writes", "rotate"})
"""What is done to a server only if it is the check's own."""

Note = Callable[[str, object], None]


class Progress:
    """Counts the calls of a load that succeeded, and tells who waits for the next."""

    def __init__(self) -> None:
        self.number = 0
        self._next = anyio.Event()

    def tell(self) -> None:
        """Note that a call has succeeded."""
        self.number += 1
        self._next.set()
        self._next = anyio.Event()

    async def goes_on(self, limit_sec: float) -> bool:
        """Return whether a call succeeds from now on, within the time."""
        with anyio.move_on_after(limit_sec):
            await self._next.wait()
            return True
        return False

    async def begun(self, clause: str, what: str) -> None:
        """Wait until the load has begun to work; `what` says what is seen where it does not."""
        while self.number < LOADED:
            expect(clause, await self.goes_on(LOAD_SEC), what)


async def recovers(clause: str, load: Progress, name: str, record_property: Note) -> None:
    """Expect that commits resume in time, and note how soon."""
    began, near_sec = time.monotonic(), current().near_sec
    # The first call that succeeds may have been under way before.
    is_well = await load.goes_on(near_sec) and await load.goes_on(near_sec)
    expect(clause, is_well, f"{name}: {_NOTHING[clause]} within {near_sec:g} s after it")
    record_property(name, f"well again after {time.monotonic() - began:.2f} s")


_NOTHING = {"S-16": "no commit is acknowledged", "D-8": "nothing that is published is seen"}
_NOTHING |= dict.fromkeys(("C-1", "C-4", "C-7", "C-9"), "nothing is echoed")


def given(name: str) -> Any:
    """Return a means of the author's bench; where it has none, the test is not tried, which the card says."""
    if name in OF_SERVER and not current().is_own:
        pytest.skip("not tried: the server was given; without URL the check has one of its own, if the bench runs one")
    return getattr(current(), name) or pytest.skip(f"not tried: the bench has no `{name}`")


@asynccontextmanager
async def forked_child() -> AsyncIterator[None]:
    """Let a child that was forked live beside while the block lasts; skip the test where a system cannot fork."""
    if not hasattr(os, "fork"):
        pytest.skip("not applicable: this system cannot fork")
    until, end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside: this is about just that
        child = os.fork()
    if child == 0:
        os.close(end)
        os.read(until, 1)  # until the parent has closed its end
        os._exit(0)
    os.close(until)
    try:
        yield
    finally:
        os.close(end)
        await anyio.to_thread.run_sync(os.waitpid, child, 0)


def kill(process: Process) -> None:
    """Kill a process that may have ended by itself."""
    with suppress(ProcessLookupError):
        process.kill()


async def first_line(process: Process) -> tuple[str, str]:
    """Return the first line of a process's output; if there is none, it is empty, and the last line of its errors is
    the other.
    """
    assert process.stdout is not None and process.stderr is not None, "they are pipes"
    text = b""
    with anyio.move_on_after(START_SEC):
        async for piece in process.stdout:
            text += piece
            if b"\n" in text:
                return text.partition(b"\n")[0].decode(), ""
    kill(process)
    return "", b"".join([piece async for piece in process.stderr]).decode(errors="replace").strip().rpartition("\n")[2]


RELEASE = """import sys
from importlib.metadata import entry_points, version
top = sys.argv[1]
found = {one.dist.version for one in entry_points(group="converge") if one.module.partition(".")[0] == top}
print(version("converge-core") if top == "converge" else " ".join(sorted(found)))
"""


def release_in(python: str, module: str) -> str:
    """Return which release of a module's package an interpreter has."""
    command = [python, "-P", "-c", RELEASE, module.partition(".")[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LOAD_SEC)
    if done.returncode or not done.stdout.strip():
        pytest.fail(f"{python} has no release of the plugin: {done.stderr.strip()[-500:]}", pytrace=False)
    return done.stdout.strip()
