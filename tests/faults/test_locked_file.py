"""Another program holds the lock of the state file: calls say so by their deadline, nothing is written, and work goes
on when it lets go.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from converge import Task, TaskManager, TaskState, open_store
from converge.errors import NotApplied, StoreBusy
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, until_started

pytestmark = [pytest.mark.timeout(90), pytest.mark.parametrize("fleet", ["file"], indirect=True)]

BUSY_SEC = 1.0
SQLITE_SEC = 5.0
"""SQLite's own wait, once a call has its turn."""
SLOW_SEC = 2.0 if os.environ.get("FULL_TESTS") == "1" else 20.0
"""What a machine may add that runs other tests, too."""


@contextmanager
def locked(fleet: Fleet, how: str = "exclusive") -> Iterator[None]:
    """A plain SQLite client that holds the lock."""
    connection = sqlite3.connect(fleet.url.removeprefix("file:"), isolation_level=None)
    try:
        connection.execute(f"begin {how}")
        yield
        connection.execute("rollback")
    finally:
        connection.close()


async def test_calls_on_a_locked_file_end_by_their_deadline_and_have_changed_nothing(
    fleet: Fleet, tasks: TaskManager
) -> None:
    """The first waits for SQLite, the others for their turn; reads do not wait at all."""
    before = await tasks.submit(Task(pool_id=fleet.pool))
    async with open_store(fleet.url, options={"file": {"busy_sec": BUSY_SEC}}) as store:
        mine = TaskManager(store)
        await mine.get(before)
        took: list[float] = []

        async def refused() -> None:
            began = time.monotonic()
            with pytest.raises(StoreBusy) as raised:
                await mine.submit(Task(pool_id=fleet.pool))
            assert isinstance(raised.value, NotApplied)
            took.append(time.monotonic() - began)

        with locked(fleet):
            began = time.monotonic()
            assert (await mine.get(before)).state == TaskState.PENDING
            assert time.monotonic() - began < SQLITE_SEC, "a read waited for a lock of writers"
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(refused)
                    await anyio.sleep(0.05)
        assert max(took) < SQLITE_SEC + BUSY_SEC + SLOW_SEC, took
        after = await mine.submit(Task(pool_id=fleet.pool))
        assert {task.id for task in await mine.list(pool_id=fleet.pool)} == {before, after}, (
            "a refused submit has left something"
        )


async def test_a_process_whose_file_is_locked_keeps_its_work_and_goes_on_when_it_is_free(
    fleet: Fleet, tasks: TaskManager
) -> None:
    """For less than a lease: what runs ends, is told to the store afterwards, and nothing runs twice."""
    process = fleet.start(agents=4, lease_sec=20.0)
    gate = fleet.folder / "gate"
    running = await tasks.submit_many([Task(pool_id=fleet.pool, inputs={"gate": str(gate)}) for _ in range(4)])
    waiting = await tasks.submit_many([Task(pool_id=fleet.pool) for _ in range(20)])
    await until_started(fleet, 4)
    with locked(fleet):
        gate.touch()
        await anyio.sleep(SQLITE_SEC + 1)  # longer than SQLite waits
        assert process.poll() is None
        assert {(await tasks.get(task_id)).state for task_id in running} == {TaskState.ASSIGNED}
    await wait_until(lambda: waiting[0] in fleet.starts(), timeout=2.0 + SLOW_SEC, what="claims resume")
    with anyio.fail_after(10 + SLOW_SEC):
        ended = [await tasks.result(task_id) for task_id in [*running, *waiting]]
    assert {task.state for task in ended} == {TaskState.COMPLETED}
    assert {len(lines) for lines in fleet.starts().values()} == {1}
    assert process.poll() is None


async def test_a_file_that_is_locked_for_longer_than_the_lease_costs_an_attempt_and_no_result(
    fleet: Fleet, tasks: TaskManager
) -> None:
    """The handler is cancelled before its lease is over; when the file is free the same process takes the work again,
    without a restart.
    """
    gate = fleet.folder / "gate"
    process = fleet.start(agents=1, lease_sec=5.0)
    task_id = await tasks.submit(Task(pool_id=fleet.pool, inputs={"gate": str(gate)}))
    await until_started(fleet, 1)
    with locked(fleet):
        await anyio.sleep(7.0)  # the lock outlasts the lease
    await until_started(fleet, 2, timeout=5 + SLOW_SEC)
    gate.touch()
    task = await tasks.result(task_id, timeout=15 + SLOW_SEC)
    assert (task.state, task.attempts) == (TaskState.COMPLETED, 2)
    first, second = fleet.starts()[task_id]
    ends = [line for line in fleet.ledger() if line["what"] == "end"]
    assert [line["token"] for line in ends] == [second["token"]], "the handler ran to its end though its lease was over"
    assert second["token"] > first["token"]
    assert process.poll() is None


async def test_a_start_on_a_locked_file_ends_with_the_code_for_a_store_that_is_away(
    fleet: Fleet, tasks: TaskManager
) -> None:
    """By the deadline, in one line."""
    with locked(fleet):
        process = fleet.start()
        with anyio.fail_after(SQLITE_SEC + 3 + SLOW_SEC):
            assert await anyio.to_thread.run_sync(process.wait) == 4
    lines = fleet.log_of(process).splitlines()
    assert len(lines) == 1 and "lock" in lines[0], lines
