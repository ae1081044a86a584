"""F8, F9: a process that is told to stop ends in time and with code 0, and leaves nothing that others have to wait
for.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from converge import Task, TaskManager, TaskState, open_store
from converge.contracts.store import Range
from converge.model.keys import AGENT, EXPIRY, HELD, JOINED, LEASE, MEMBER
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, expire_leases, until_started

# How a node stops does not hang on its store; how long that may be away is the file's own matter.
pytestmark = [pytest.mark.timeout(180), pytest.mark.parametrize("fleet", ["file"], indirect=True)]

Lateness = Callable[[], AbstractAsyncContextManager[list[float]]]

OVERHEAD_SEC = 5.0 if os.environ.get("FULL_TESTS") == "1" else 20.0
"""What a stop may take beyond the grace time: what Kubernetes leaves (30 s) less the default (25 s), on a machine that
runs other tests several times as long.
"""


async def ended(process: subprocess.Popen[bytes], *, grace_sec: float) -> int:
    """Return the exit code; it must come within the grace time and what a stop may take beyond it."""
    began = time.monotonic()
    await wait_until(lambda: process.poll() is not None, timeout=grace_sec + OVERHEAD_SEC, what="the process has ended")
    print(f"ended after {time.monotonic() - began:.2f} s")  # noqa: T201 - shown when the test fails
    return process.wait()


async def ends_with(
    fleet: Fleet, process: subprocess.Popen[bytes], *codes: int, grace_sec: float, lateness: Lateness
) -> None:
    """Wait for its end, with one of these codes. Of what a stop may take a store that is away leaves a second: where
    the machine stood still for longer, the process has to end as it stands.
    """
    async with lateness() as late:
        code = await ended(process, grace_sec=grace_sec)
    log = fleet.log_of(process)
    if code == 128 + signal.SIGTERM and sum(late) > 1.0:
        return
    assert code in codes and "Traceback" not in log, log


async def left_behind(fleet: Fleet) -> dict[str, int]:
    """What a process has under its lease: descriptors, memberships, claims, the lease itself."""
    async with open_store(fleet.url) as store:
        families = [AGENT, EXPIRY, HELD, JOINED, LEASE, MEMBER]
        pages = await store.scan([Range(family(), None, 1_000) for family in families])
    return {str(family): len(page) for family, page in zip(families, pages, strict=True) if page}


async def expire(fleet: Fleet, process: subprocess.Popen[bytes]) -> None:
    """Let the lease of a process that has ended expire."""
    async with open_store(fleet.url) as store:
        await expire_leases(store, process.pid)


def has_open(process: subprocess.Popen[bytes], name: str) -> bool:
    """Tell whether the process has a file of that name open."""
    found = False
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            found = found or descriptor.readlink().name == name
    return found


@contextmanager
def locked(fleet: Fleet) -> Iterator[None]:
    """Another program holds the lock of the store's file."""
    connection = sqlite3.connect(fleet.url.removeprefix("file:"), isolation_level=None)
    try:
        connection.execute("begin exclusive")
        yield
        connection.execute("rollback")
    finally:
        connection.close()


async def test_f9_sigterm_lets_the_short_task_end_and_hands_the_long_one_back(fleet: Fleet, tasks: TaskManager) -> None:
    """Nobody waits for a lease: whoever asks after the exit gets the long task at once, as its first attempt."""
    gate = fleet.folder / "gate"
    process = fleet.start(agents=2, lease_sec=30.0, grace_sec=4.0)
    short, long = await tasks.submit_many(
        [Task(pool_id=fleet.pool, inputs=inputs) for inputs in ({"gate": str(gate)}, {"sleep": 600})]
    )
    await until_started(fleet, 2)
    process.send_signal(signal.SIGTERM)
    await wait_until(lambda: "stopping" in fleet.log_of(process), timeout=20, what="it drains")
    gate.touch()
    assert await ended(process, grace_sec=4.0) == 0, fleet.log_of(process)
    assert await left_behind(fleet) == {}
    with anyio.fail_after(10):  # a third of the lease
        while not (claimed := await tasks.claim("another", [fleet.pool])):  # noqa: ASYNC110 - what another process leaves tells nobody here
            await anyio.sleep(0.02)
    assert [(task.id, task.attempts) for task in claimed] == [(long, 1)], "the hand-back counted as an attempt"
    assert (await tasks.get(short)).state == TaskState.COMPLETED
    await tasks.release(claimed[0])


@pytest.mark.parametrize("delay_sec", [0.05, 0.25, 0.4, 0.5, 0.6, 0.8])
async def test_f9_sigterm_during_the_start_leaves_nothing(fleet: Fleet, tasks: TaskManager, delay_sec: float) -> None:
    """Before Python runs our code it ends by the signal itself, and nothing was opened; from then on with code 0."""
    await tasks.submit(Task(pool_id=fleet.pool, inputs={"sleep": 600}))
    process = fleet.start(lease_sec=30.0, grace_sec=0.2)
    await anyio.sleep(delay_sec)  # the moment of the signal
    process.send_signal(signal.SIGTERM)
    code = await ended(process, grace_sec=0.2)
    assert code in (0, -signal.SIGTERM), fleet.log_of(process)
    assert await left_behind(fleet) == {}
    assert len(await tasks.list(state=TaskState.PENDING)) == 1
    assert code == 0 or "running" not in fleet.log_of(process)
    assert "Traceback" not in fleet.log_of(process)


async def test_f9_sigterm_while_the_store_is_away_is_in_time_too(
    fleet: Fleet, tasks: TaskManager, lateness: Lateness
) -> None:
    """What cannot be handed back ends with the lease."""
    process = fleet.start(agents=1, grace_sec=0.5)
    task_id = await tasks.submit(Task(pool_id=fleet.pool, inputs={"sleep": 600}))
    await until_started(fleet, 1)
    with locked(fleet):
        process.send_signal(signal.SIGTERM)
        await ends_with(fleet, process, 0, grace_sec=0.5, lateness=lateness)
    await expire(fleet, process)
    other = fleet.start(agents=1)
    await until_started(fleet, 2)
    assert [line["pid"] for line in fleet.starts()[task_id]] == [process.pid, other.pid]


async def test_f9_sigterm_while_the_start_waits_for_the_store_is_in_time_too(
    fleet: Fleet, tasks: TaskManager, lateness: Lateness
) -> None:
    """The file is locked from before the start."""
    with locked(fleet):
        process = fleet.start(agents=1, grace_sec=2.0)
        await wait_until(lambda: has_open(process, "state.db"), timeout=30, what="it has opened the file")
        process.send_signal(signal.SIGTERM)
        await ends_with(fleet, process, 0, 4, grace_sec=2.0, lateness=lateness)
    assert await left_behind(fleet) == {}


@pytest.mark.parametrize("agent", ["worker_agents:Stuck"])
async def test_a_plain_handler_that_never_returns_keeps_no_process(fleet: Fleet, tasks: TaskManager) -> None:
    """Its thread is abandoned; the process ends in time with code 0, and its task goes back uncounted."""
    process = fleet.start(agents=1, lease_sec=30.0, grace_sec=0.5)
    task_id = await tasks.submit(Task(pool_id=fleet.pool))
    await until_started(fleet, 1)
    process.send_signal(signal.SIGTERM)
    assert await ended(process, grace_sec=0.5) == 0, fleet.log_of(process)
    task = await tasks.get(task_id)
    assert (task.state, task.attempts) == (TaskState.PENDING, 0)
    assert await left_behind(fleet) == {}


@pytest.mark.parametrize("agent", ["worker_agents:Waiting", "worker_agents:Clinging", "worker_agents:Broken"])
async def test_what_user_code_leaves_in_the_loop_keeps_no_process(fleet: Fleet, tasks: TaskManager) -> None:
    """The loop waits for the threads that it has lent, for its tasks and for its async generators, but not for ever."""
    process = fleet.start(agents=1, lease_sec=30.0, grace_sec=0.5)
    await tasks.submit(Task(pool_id=fleet.pool))
    await until_started(fleet, 1)
    process.send_signal(signal.SIGTERM)
    assert await ended(process, grace_sec=0.5) == 0, fleet.log_of(process)
    assert "Traceback" not in fleet.log_of(process)
    assert await left_behind(fleet) == {}


@pytest.mark.parametrize("flags", [(), ("--processes", "2")], ids=["one", "supervised"])
async def test_a_process_that_was_started_with_its_signals_blocked_hears_them(
    fleet: Fleet, tasks: TaskManager, flags: tuple[str, ...]
) -> None:
    """Its parent waits for signals by `sigwait`, say; the mask of a process is its children's, too."""
    blocks = (
        "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGCHLD]); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = fleet.start(*flags, agents=1, lease_sec=30.0, grace_sec=0.5, within=[sys.executable, "-c", blocks])
    await tasks.submit(Task(pool_id=fleet.pool))
    await until_started(fleet, 1)
    process.send_signal(signal.SIGTERM)
    assert await ended(process, grace_sec=0.5) == 0, fleet.log_of(process)


async def test_f8_a_draining_process_claims_nothing_and_a_restart_has_its_own_lease(
    fleet: Fleet, tasks: TaskManager
) -> None:
    """The twin that drains still works on a task when new ones come: only the new process takes them."""
    gate = fleet.folder / "gate"
    draining = fleet.start(agents=4, lease_sec=10.0, grace_sec=40.0)
    held = await tasks.submit(Task(pool_id=fleet.pool, inputs={"gate": str(gate)}))
    await until_started(fleet, 1)
    draining.send_signal(signal.SIGTERM)
    await wait_until(lambda: "stopping" in fleet.log_of(draining), timeout=20, what="it drains")
    new = await tasks.submit_many([Task(pool_id=fleet.pool) for _ in range(20)])
    restarted = fleet.start(agents=4, lease_sec=10.0)
    with anyio.fail_after(40):
        for task_id in [*new, held]:
            assert (await tasks.result(task_id)).state == TaskState.COMPLETED
            if task_id == new[-1]:
                gate.touch()
    starts = fleet.starts()
    assert {line["pid"] for task_id in new for line in starts[task_id]} == {restarted.pid}, (
        "the draining twin took work"
    )
    assert [line["pid"] for line in starts[held]] == [draining.pid], "what the draining twin held was taken from it"
    assert await ended(draining, grace_sec=0.0) == 0


async def test_f8_claims_of_a_killed_process_do_not_look_alive_to_its_restart(fleet: Fleet, tasks: TaskManager) -> None:
    """It is started again under the same name at once: its orphans come back once its lease is over, not never."""
    gate = fleet.folder / "gate"
    killed = fleet.start(agents=2)
    ids = await tasks.submit_many([Task(pool_id=fleet.pool, inputs={"gate": str(gate)}) for _ in range(2)])
    await until_started(fleet, 2)
    killed.kill()
    killed.wait()
    await expire(fleet, killed)
    fleet.start(agents=2)
    await until_started(fleet, 4)
    gate.touch()
    for task_id in ids:
        assert (await tasks.result(task_id, timeout=20)).attempts == 2
