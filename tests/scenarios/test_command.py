"""The command in several processes on one store: draining, submitting and waiting, looking, stopping, dying."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import preloaded
import pytest

from converge import Task, TaskManager, open_store
from converge.contracts.store import Range, Store
from converge.model.keys import AGENT, EXPIRY, HELD, JOINED, LEASE, MEMBER, Family
from converge.testing.fixtures import wait_until, wait_until_sync
from converge.testing.fleet import COMMAND, Fleet, expire_leases, until_started
from converge.testing.place import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

NEVER_SEC = 40.0
"""How long a command of these tests may take: far longer than it does."""

SOON_SEC = 1.0 if os.environ.get("FULL_TESTS") == "1" else 10.0
"""How soon another process begins what was handed back: long before the lease of 15 s would have ended."""


@attrs.frozen
class Site:
    """A store of the test's own and the processes on it."""

    place: Place
    fleet: Fleet

    @property
    def flags(self) -> list[str]:
        """What names the store on the command line."""
        named = ["--store", self.place.store, *(part for name in self.place.plugins for part in ("--plugin", name))]
        return [*named, "--network", self.place.network]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `converge ARGUMENTS` on the store."""
        environment = {**os.environ, "LEDGER": str(self.fleet.ledger_path)}
        command = [str(COMMAND), *arguments, *self.flags]
        return preloaded.start(
            command,
            cwd=self.place.agents_folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def call(self, *arguments: str) -> list[dict[str, Any]]:
        """Run `converge ARGUMENTS --json` to its end; return its lines."""
        process = self.start(*arguments, "--json")
        code, out, err = ended(process)
        assert code == 0, err
        return [json.loads(line) for line in out.splitlines()]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end of a command; return its exit code and what it wrote."""
    try:
        out, err = process.communicate(timeout=NEVER_SEC)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module", params=["file", "redis"] if os.environ.get("FULL_TESTS") == "1" else ["redis"])
def engine(request: pytest.FixtureRequest, place_of: Callable[[str, str], Place]) -> str:
    """The store, in a short run the one with a server: `tests/core/cli` has a file. Its server starts before the tests,
    so that the leak check knows it.
    """
    place_of(request.param, "tcp")
    return str(request.param)


@pytest.fixture
def site(engine: str, place_of: Callable[[str, str], Place], tmp_path: Path) -> Iterator[Site]:
    """A new store or network, without any process."""
    place = place_of(engine, "tcp")
    made = Site(place, place.fleet(tmp_path))
    try:
        yield made
    finally:
        made.fleet.kill_all()


def jsonl(folder: Path, count: int) -> str:
    """Write a file of so many tasks; return its path."""
    file = folder / "tasks.jsonl"
    file.write_text("".join(json.dumps({"inputs": {"name": f"n{at}"}}) + "\n" for at in range(count)))
    return str(file)


RUN = ("run", "talking_agents:Talker", "--agents", "4", "--pool", "scenario", "--create-pool")


def test_processes_that_drain_one_store_all_work_and_all_end(site: Site, tmp_path: Path) -> None:
    ids = [line["id"] for line in _submitted(site, tmp_path, 300)]
    drains = [site.start(*RUN, "--drain", "--json") for _ in range(2)]
    rows = []
    for code, out, err in [ended(process) for process in drains]:
        assert code == 0, err
        rows += [json.loads(line) for line in out.splitlines()]
    # A drain shows what it found at work; what had ended before it looked is in the store only.
    assert {row["id"] for row in rows} <= set(ids)
    done = site.call("tasks", "list", "--state", "completed", "--limit", "1000")
    assert {task["id"]: task["result"]["pid"] in {one.pid for one in drains} for task in done} == dict.fromkeys(
        ids, True
    )
    assert {row["state"] for row in rows} == {"COMPLETED"}
    assert {task: len(lines) for task, lines in site.fleet.starts().items()} == dict.fromkeys(ids, 1)


def _submitted(site: Site, folder: Path, count: int) -> list[dict[str, Any]]:
    code, _, err = ended(site.start(*RUN, "--drain"))  # makes the pool
    assert code == 0, err
    return site.call("submit", jsonl(folder, count), "--pool", "scenario")


def test_submit_waits_for_what_other_processes_do_and_the_store_shows_it(site: Site, tmp_path: Path) -> None:
    for _ in range(2):
        site.fleet.start()
    wait_until_sync(
        lambda: all("running" in site.fleet.log_of(one) for one in site.fleet.processes),
        timeout=NEVER_SEC,
        what="both run",
    )
    rows = site.call("submit", jsonl(tmp_path, 200), "--pool", "scenario", "--wait")
    assert [row["hint"] for row in rows] == [f"n{at}" for at in range(200)], "not in the order of the file"
    assert {row["state"] for row in rows} == {"COMPLETED"}
    assert {row["result"]["pid"] for row in rows} == {process.pid for process in site.fleet.processes}
    listed = site.call("tasks", "list", "--pool", "scenario", "--state", "completed", "--limit", "500")
    assert {task["id"] for task in listed} == {row["id"] for row in rows}
    (shown,) = site.call("tasks", "show", rows[0]["id"])
    assert (shown["v"], shown["state"], shown["result"], shown["inputs"]) == (
        1,
        "COMPLETED",
        rows[0]["result"],
        {"name": "n0"},
    )
    assert [one["what"] for one in shown["history"]] == ["completed"]
    assert not site.call("tasks", "list", "--state", "pending")


def test_plugins_are_listed_alike_by_every_process(site: Site) -> None:
    command = [
        str(COMMAND),
        "plugins",
        "list",
        "--json",
        *(part for name in site.place.plugins for part in ("--plugin", name)),
    ]
    listed = [
        preloaded.run(command, capture_output=True, text=True, timeout=NEVER_SEC, check=True).stdout for _ in range(2)
    ]
    assert listed[0] == listed[1]
    records = {line["name"]: line for line in map(json.loads, listed[0].splitlines())}
    assert {name for name, one in records.items() if one["is_loaded"]} == set(site.place.plugins)


async def test_f9_a_stopped_process_hands_back_what_it_cannot_finish_and_leaves_nothing(site: Site) -> None:
    """SIGTERM: exit 0; another process starts the long task within a second of the exit; no descriptor or membership is
    left.
    """
    transport = ("--transport", site.place.transport)
    stopped = site.fleet.start(*transport, agents=2, lease_sec=15.0, grace_sec=0.5)
    await site.fleet.until_running(stopped)
    async with open_store(site.place.store, plugins=site.place.plugins, network=site.place.network) as store:
        tasks = TaskManager(store)
        long = await tasks.submit(Task(pool_id="scenario", inputs={"long": True}))
        short = await tasks.submit(Task(pool_id="scenario"))
        await until_started(site.fleet, 2)
        (lease,) = {key[1] for key in await _keys(store, LEASE)}
        other = site.fleet.start(*transport, agents=2, lease_sec=15.0)
        await site.fleet.until_running(other)
        stopped.send_signal(signal.SIGTERM)
        await anyio.to_thread.run_sync(stopped.wait)
        left = time.time()
        assert stopped.returncode == 0, site.fleet.log_of(stopped)
        await wait_until(
            lambda: len(site.fleet.starts()[long]) == 2, timeout=14, what="another process starts the long task"
        )
        again = site.fleet.starts()[long][1]
        assert (again["pid"], again["attempt"]) == (other.pid, 1), "a task that was handed back has lost an attempt"
        assert again["at"] - left < SOON_SEC
        assert (await tasks.result(short, timeout=10)).state == "COMPLETED"
        for family in (AGENT, JOINED, LEASE, EXPIRY, HELD):
            assert lease not in {key[1] for key in await _keys(store, family)}, family
        # Two agents of the other process, and nobody else.
        assert len(await _keys(store, MEMBER)) == 2


async def test_a_second_signal_ends_a_process_at_once_and_its_task_goes_back_with_its_lease(site: Site) -> None:
    stopped = site.fleet.start(agents=1, grace_sec=60.0)
    async with open_store(site.place.store, plugins=site.place.plugins, network=site.place.network) as store:
        await site.fleet.until_running(stopped)
        long = await TaskManager(store).submit(Task(pool_id="scenario", inputs={"long": True}))
        await until_started(site.fleet, 1)
        stopped.send_signal(signal.SIGTERM)
        await wait_until(lambda: "SIGTERM: stopping" in site.fleet.log_of(stopped), what="the first signal is heard")
        assert stopped.poll() is None, "the first signal ended it, with a task at work"
        stopped.send_signal(signal.SIGTERM)
        with anyio.fail_after(20):  # much less than its grace time
            await anyio.to_thread.run_sync(stopped.wait)
        assert stopped.returncode == 143
        await expire_leases(store, stopped.pid)
        other = site.fleet.start(agents=1)
        await wait_until(
            lambda: len(site.fleet.starts()[long]) == 2, timeout=20, what="another process starts the task"
        )
    assert site.fleet.starts()[long][1]["pid"] == other.pid


async def test_a_process_that_is_killed_while_it_drains_holds_the_other_up_for_a_lease_only(
    site: Site, tmp_path: Path
) -> None:
    ids = [line["id"] for line in await anyio.to_thread.run_sync(_submitted, site, tmp_path, 400)]
    killed, other = (site.fleet.start("--drain", "--json") for _ in range(2))
    await wait_until(
        lambda: any(line["pid"] == killed.pid for line in site.fleet.ledger()), timeout=NEVER_SEC, what="it works"
    )
    killed.kill()
    killed.wait()
    async with open_store(site.place.store, plugins=site.place.plugins, network=site.place.network) as store:
        await expire_leases(store, killed.pid)
    with anyio.fail_after(NEVER_SEC):
        await anyio.to_thread.run_sync(other.wait)
    assert other.returncode == 0, site.fleet.log_of(other)
    done = {
        task["id"]: task
        for task in await anyio.to_thread.run_sync(
            site.call, "tasks", "list", "--state", "completed", "--limit", "1000"
        )
    }
    assert set(done) == set(ids)
    again = {task: lines for task, lines in site.fleet.starts().items() if len(lines) > 1}
    assert {lines[0]["pid"] for lines in again.values()} <= {killed.pid}, (
        "a task of the living process was started again"
    )
    assert {lines[1]["pid"] for lines in again.values()} <= {other.pid}


async def _keys(store: Store, family: Family) -> list[tuple[Any, ...]]:
    (page,) = await store.scan([Range(family(), None, 1_000)])
    return [tuple(entry.key) for entry in page]
