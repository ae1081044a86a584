"""A peer with a valid key of its own that floods a node in every way, and a crowd without one that never ends a
handshake: they cost bounded memory, and others are answered.

With `FULL_TESTS=1` each way has its time, and what honest peers then wait is compared with what they wait beside a
process that burns as much CPU and sends nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rogues import WAYS

from converge.testing.fixtures import wait_until_sync

IS_FULL = os.environ.get("FULL_TESTS") == "1"
SEC, ROUNDS = (4.0, 3) if IS_FULL else (0.3, 1)
CLIENTS, CROWD_SEC = (5_000, 60.0) if IS_FULL else (300, 0.5)
MEMORY_BYTES = 64 * 1_048_576
LEAST_MS = 10.0
"""What a machine with two busy cores adds by itself: a p99 below is never a breach."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900 if IS_FULL else 200)]


class Process:
    """One of the processes of `rogues`; what it writes is read by whoever wants it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        script = Path(__file__).parent / "cases/rogues.py"
        self.out = folder / f"out-{time.monotonic_ns()}"
        with self.out.open("wb") as out:
            self.popen = subprocess.Popen([sys.executable, str(script), *arguments], stdin=subprocess.PIPE, stdout=out)

    def lines(self) -> list[dict[str, Any]]:
        """What it has written so far."""
        return [json.loads(line) for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def first(self) -> dict[str, Any]:
        """Its first line, once that is there."""
        wait_until_sync(lambda: bool(self.lines()) or self.popen.poll() is not None, timeout=60)
        assert self.lines(), "it ended without a word"
        return self.lines()[0]

    def told(self, line: str) -> dict[str, Any]:
        """Give it a line; return what it writes then."""
        known = len(self.lines())
        assert self.popen.stdin is not None
        self.popen.stdin.write(line.encode() + b"\n")
        self.popen.stdin.flush()
        wait_until_sync(lambda: len(self.lines()) > known or self.popen.poll() is not None, timeout=120)
        return self.lines()[known]

    def bytes(self, field: str) -> int:
        """A figure of its memory, as the kernel has it."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return next(int(line.split()[1]) * 1_024 for line in status.splitlines() if line.startswith(f"{field}:"))

    def forget_peak(self) -> None:
        """Let the kernel count the greatest memory anew."""
        Path(f"/proc/{self.popen.pid}/clear_refs").write_text("5")


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[Process]:
    """Start a process, and end it."""
    one = Process(folder, *arguments)
    try:
        yield one
    finally:
        one.popen.kill()
        one.popen.communicate()


def p99_ms(asker: Process, since: float, until: float) -> float:
    """What 99 of 100 answers took at most, of those asked between two moments; an error is none."""
    told = [line for line in asker.lines() if since <= line["at"] <= until]
    assert [line["error"] for line in told if line["error"]] == []
    took = sorted(line["took"] for line in told)
    return 1_000 * took[min(len(took) - 1, int(len(took) * 0.99))] if took else 1_000 * (until - since)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the store and for what the processes write."""
    return tmp_path_factory.mktemp("rogues")


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Process]:
    """The node that is flooded."""
    with running(folder, "victim", f"file:{folder / 's.db'}") as one:
        one.first()
        yield one


@pytest.fixture(scope="module")
def asker(folder: Path, node: Process) -> Iterator[Process]:
    """Who asks an agent of the node all the time."""
    with running(folder, "honest", f"file:{folder / 's.db'}", node.first()["echo"][1]) as one:
        one.first()
        yield one


@pytest.fixture(scope="module")
def rogue(folder: Path, node: Process) -> Iterator[Process]:
    """Who floods the node."""
    known = node.first()
    with running(folder, "rogue", known["endpoint"], *known["echo"], known["slow"]) as one:
        one.first()
        yield one


@pytest.fixture(scope="module")
def burner(folder: Path) -> Iterator[Process | None]:
    """Who only burns CPU; nobody where nothing is compared."""
    if not IS_FULL:
        yield None
        return
    with running(folder, "burner") as one:
        one.first()
        yield one


@pytest.mark.parametrize("way", WAYS)
def test_a_flood_costs_bounded_memory_and_others_are_answered(
    way: str, node: Process, asker: Process, rogue: Process, burner: Process | None
) -> None:
    node.forget_peak()
    before, flooded, beside = node.bytes("VmRSS"), list[float](), list[float]()
    for _ in range(ROUNDS):
        began = time.monotonic()
        told = rogue.told(f"{way} {SEC}")
        until, asked = time.monotonic(), len(asker.lines())
        assert told["sent"], "nothing was sent"
        wait_until_sync(lambda count=asked: len(asker.lines()) > count + 1, timeout=60)  # type: ignore[misc]
        flooded.append(p99_ms(asker, began, until))
        if burner is not None:
            began = time.monotonic()
            burner.told(f"{SEC} {told['cpu']}")
            beside.append(p99_ms(asker, began, time.monotonic()))
    grown = node.bytes("VmHWM") - before
    figures = f"{way}: honest p99 {flooded} ms, beside a burner {beside} ms, memory +{grown / 1_048_576:.0f} MiB"
    print(figures, told)  # noqa: T201  # shown with -s, and when it fails
    assert grown <= MEMORY_BYTES, figures
    if IS_FULL:
        assert sorted(flooded)[ROUNDS // 2] <= max(LEAST_MS, 2 * sorted(beside)[ROUNDS // 2]), figures


def test_a_crowd_that_never_ends_a_handshake_keeps_nobody_out(
    node: Process, asker: Process, burner: Process | None, folder: Path
) -> None:
    endpoint = node.first()["endpoint"]
    node.forget_peak()
    before, dials, errors = node.bytes("VmRSS"), list[float](), list[str]()
    with running(folder, "newcomers", endpoint) as newcomers:
        newcomers.first()
        began = time.monotonic()
        with running(folder, "crowd", endpoint, str(CLIENTS), str(CROWD_SEC)) as crowd:
            while not crowd.lines() and len(dials) < 1_000:
                told = newcomers.told("dial")
                dials.append(told["took"])
                errors += [told["error"]] if told["error"] else []
                time.sleep(0.1)  # between two dials, so that they are no flood themselves
            told = crowd.first()
        assert newcomers.told("dial")["error"] == "", "what the crowd took is free again"
    flooded = p99_ms(asker, began, time.monotonic())
    grown = node.bytes("VmHWM") - before
    figures = f"honest p99 {flooded} ms, dials {sorted(dials)[-3:]} s, memory +{grown / 1_048_576:.0f} MiB, {told}"
    print(figures)  # noqa: T201  # shown with -s, and when it fails
    assert not told["missing"] and grown <= MEMORY_BYTES and 2 * len(errors) < len(dials), (figures, errors)
    if burner is not None:
        began = time.monotonic()
        burner.told(f"{CROWD_SEC} {told['cpu']}")
        beside = p99_ms(asker, began, time.monotonic())
        assert flooded <= max(LEAST_MS, 2 * beside), f"{figures}, beside a burner {beside} ms"
        assert max(dials) < 1.0 and not errors, (figures, errors)
