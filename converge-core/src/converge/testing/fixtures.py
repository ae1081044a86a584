"""Waiting without sleeps, leak checks on every test; opt in with `pytest_plugins = ["converge.testing.fixtures"]`."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from inspect import isawaitable, iscoroutinefunction
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge.testing.clauses import cited, in_short
from converge.testing.servers import SERVER_MARK, SERVER_PIDS

# What a test started may need a moment to end after the test itself; what is there after that was forgotten.
FAILED_TASKS = "Tasks failed on a store that is not known to be sound: run StoreContract first, and mend what it finds"
FOLLOWS = "; the store itself is broken, from which this may follow: mend what StoreContract found first"

SETTLE_SEC = 5.0
LONG_TIMES = 8
"""How many times more histories and repeats `--long` has."""
POLL_SEC = 0.005
CONTRACTS = ("StoreContract", "TaskContract")
CONTRACT_OF = "converge-contract"
"""The property of a test that names which of the two it inherits: tasks stand on a store."""
CLAUSES_OF = "converge-clauses"
"""The property of a test that names its contract class, and the clauses that it tries."""
# Pools of idle threads that belong to the event loops; they are reused, and end with their loop or by themselves.
POOL_THREADS = ("AnyIO worker thread", "Trio thread", "asyncio_")
# Helper processes that Python's multiprocessing keeps until the interpreter ends.
POOL_PROCESSES = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


async def wait_until(
    condition: Callable[[], bool | Awaitable[bool]], *, timeout: float = 30.0, what: str = "the condition"
) -> None:
    """Return once the condition holds; ask it every few milliseconds.

    Raises:
        AssertionError: It does not hold after `timeout` seconds; `what` is named.
    """
    with anyio.move_on_after(timeout):
        while True:
            answer = condition()
            if await answer if isawaitable(answer) else answer:
                return
            await anyio.sleep(POLL_SEC)
    raise AssertionError(f"{what} did not come true within {timeout:g} s")


def wait_until_sync(condition: Callable[[], bool], *, timeout: float = 30.0, what: str = "the condition") -> None:
    """Wait as `wait_until` does, in tests without an event loop, such as those that watch other processes."""
    if not _holds_within(condition, timeout):
        raise AssertionError(f"{what} did not come true within {timeout:g} s")


def child_processes() -> frozenset[int]:
    """Return the living children of this process, without test servers and Python's own helpers; empty where there is
    no /proc.
    """
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        found.update(int(pid) for pid in _read(listing).split())
    return frozenset(pid for pid in found - SERVER_PIDS if _counts_as_child(Path(f"/proc/{pid}")))


@pytest.fixture
def namespace() -> str:
    """Return a short name that no other test uses, for tests that share a server."""
    # Not from `random`: a test runner may seed that alike for every test.
    return f"t{secrets.token_hex(6)}"


@pytest.fixture(autouse=True)
def no_leaked_threads_or_processes() -> Iterator[None]:
    """Fail a test that leaves a thread or a child process behind."""
    threads, children = frozenset(threading.enumerate()), child_processes()
    yield
    if _holds_within(lambda: not _new_threads(threads) and not child_processes() - children, SETTLE_SEC):
        return
    names = sorted(thread.name for thread in _new_threads(threads))
    commands = [_command(pid) for pid in sorted(child_processes() - children)]
    pytest.fail(f"left behind by the test: threads {names}, processes {commands}", pytrace=False)


@pytest.fixture
async def no_leaked_tasks() -> AsyncIterator[None]:
    """Fail a coroutine test that leaves an asyncio task behind; trio's nurseries leave none."""
    before = _open_tasks()
    yield
    leaked = _open_tasks() - before
    if leaked:
        _, leaked = await asyncio.wait(leaked, timeout=SETTLE_SEC)
    if leaked:
        pytest.fail(f"left behind by the test: asyncio tasks {sorted(map(repr, leaked))}", pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--quick`: every clause of a contract is tried, on one event loop, with few random histories and repeats."""
    parser.addoption(
        "--quick",
        action="store_true",
        help="contract classes of converge.testing: one event loop, few random histories and repeats",
    )

    parser.addoption(
        "--long",
        action="store_true",
        help="contract classes of converge.testing: many random histories and repeats, for a release",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note which clauses each test of a contract is about: reports of other processes bring it along. Simple tests come
    before random histories, and what tries a store before what tries tasks on it, within each module.
    """
    places = {module: at for at, module in reversed(list(enumerate(map(_module_of, items))))}
    items.sort(key=lambda item: (places[_module_of(item)], _is_of("TaskContract", item), "histor" in item.name))
    for item in items:
        owner, clauses = getattr(item, "cls", None), cited(getattr(item, "function", None))
        if (
            owner is not None
            and clauses
            and any(base.__module__.startswith("converge.testing.") for base in owner.__mro__)
        ):
            item.user_properties.append((CLAUSES_OF, (owner.__name__, clauses)))
            item.user_properties += [(CONTRACT_OF, name) for name in CONTRACTS if _is_of(name, item)]


def _module_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _is_of(contract: str, item: pytest.Item) -> bool:
    """Return whether the test is of a subclass of this contract of the kit."""
    return any(base.__name__ == contract for base in getattr(getattr(item, "cls", None), "__mro__", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say of each contract class which clauses were tried, and of those that were not, why."""
    tried: dict[str, set[str]] = {}
    left: dict[str, dict[str, set[str]]] = {}
    reports = [one for some in terminalreporter.stats.values() for one in some if isinstance(one, pytest.TestReport)]
    for report in reports:
        found: Any = dict(report.user_properties).get(CLAUSES_OF)
        if found is None:
            continue
        owner, clauses = found
        if report.when == "call" and not report.skipped:
            tried.setdefault(owner, set()).update(clauses)
        elif report.skipped and "not applicable: " not in _why(report):
            left.setdefault(owner, {}).setdefault(_why(report), set()).update(clauses[:1])
    lines: dict[str, list[str]] = {}
    for owner in tried:
        reasons = [f"{in_short(clauses)} {why}" for why, clauses in sorted(left.get(owner, {}).items())]
        lines.setdefault("; ".join([f"{in_short(tried[owner])} tried", *reasons]), []).append(owner)
    for text, owners in lines.items():
        terminalreporter.write_line(f"{', '.join(owners)}: {text}")
    broken = {dict(report.user_properties).get(CONTRACT_OF) for report in reports if report.failed}
    kept = {dict(report.user_properties).get(CONTRACT_OF) for report in reports if report.passed}
    if "TaskContract" in broken and ("StoreContract" in broken or "StoreContract" not in kept):
        terminalreporter.write_line(FAILED_TASKS, red=True)


def _why(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return f"not tried: {reason.removeprefix('Skipped: ').removeprefix('not tried: ')}"


def scaled(config: pytest.Config, usual: int, quick: int) -> int:
    """Return how often something is repeated that is repeated so often, or with `--quick`, or with `--long`."""
    if is_quick(config):
        return min(usual, quick)
    return usual * LONG_TIMES if config.getoption("--long", default=False) else usual


def is_quick(config: pytest.Config) -> bool:
    """Return whether the contract classes are to be quick."""
    return bool(config.getoption("--quick", default=False))


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Give each coroutine test the check for asyncio tasks: an autouse fixture would run synchronous tests once per
    loop, too.
    """
    if iscoroutinefunction(obj) and collector.istestfunction(obj, name):
        marks = getattr(obj, "pytestmark", [])
        if not any(mark.name == "usefixtures" and "no_leaked_tasks" in mark.args for mark in marks):
            pytest.mark.usefixtures("no_leaked_tasks")(obj)


def _open_tasks() -> set[asyncio.Task[object]]:
    try:
        tasks = asyncio.all_tasks()
    except RuntimeError:
        return set()
    # The tasks in which anyio's own test runner drives tests and fixtures.
    return {task for task in tasks if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")}


def _new_threads(before: frozenset[threading.Thread]) -> list[threading.Thread]:
    return [
        thread for thread in threading.enumerate() if thread not in before and not thread.name.startswith(POOL_THREADS)
    ]


def _counts_as_child(process: Path) -> bool:
    state = _read(process / "stat").rpartition(b")")[2].split()[:1]
    if state in ([], [b"Z"], [b"X"]):
        return False
    if any(helper in _read(process / "cmdline") for helper in POOL_PROCESSES):
        return False
    return f"{SERVER_MARK}=1".encode() not in _read(process / "environ").split(b"\0")


def _command(pid: int) -> str:
    return f"{pid}: {_read(Path(f'/proc/{pid}/cmdline')).replace(bytes(1), b' ').decode(errors='replace').strip()}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _holds_within(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SEC)
    return True
