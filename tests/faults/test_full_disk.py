"""A disk that is full: nothing is acknowledged that is not stored, everything can be read, and work goes on when there
is room again.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Store
from converge.errors import StoreFull
from converge.services.store.handle import StoreHandle
from converge.services.tasks.purge import purge
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, until_started

pytestmark = pytest.mark.timeout(90)

SIZE_KB = 2_048
RESUME_SEC = 2.3 if os.environ.get("FULL_TESTS") == "1" else 20.0
"""What the table of events promises where a store is back, and a poll interval; more on a machine that runs other
tests, too.
"""


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own in memory, small enough to be filled; its size is `SIZE_KB` or the test's parameter."""
    size_kb = getattr(request, "param", SIZE_KB)
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0 and os.geteuid() != 0:
        pytest.skip(f"only root may mount a file system that can be filled: {mounted.stderr.strip()}")
    assert mounted.returncode == 0, mounted.stderr
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def fleet(disk: Path, tmp_path: Path) -> Iterator[Fleet]:
    """Processes whose store is on that disk, and whose logs are elsewhere."""
    made = Fleet(
        tmp_path, f"file:{disk / 'state.db'}", agent="worker_agents:Worker", agents_folder=Path(__file__).parent,
        pool="faults",
        network="converge", plugins=[],
    )  # fmt: skip
    try:
        yield made
    finally:
        made.kill_all()


@pytest.fixture
async def tasks(fleet: Fleet) -> AsyncIterator[TaskManager]:
    """A task manager of the test's own process."""
    async with open_store(fleet.url) as store:
        await PoolManager(store).create_pool(Pool(id=fleet.pool))
        yield TaskManager(store, poll_sec=0.3)


def fill(disk: Path) -> Path:
    """Write until there is no room; return the file to remove."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                pass
    return filler


async def test_a_full_disk_refuses_writes_lets_reads_pass_and_work_goes_on_when_there_is_room(
    disk: Path, fleet: Fleet, tasks: TaskManager
) -> None:
    """A process works meanwhile; what it has finished is not lost, and nobody restarts it."""
    process = fleet.start(agents=4, lease_sec=10.0)
    running = await tasks.submit_many([Task(pool_id=fleet.pool, inputs={"sleep": 1.5}) for _ in range(4)])
    waiting = await tasks.submit_many([Task(pool_id=fleet.pool) for _ in range(20)])
    await until_started(fleet, 4)
    filler = fill(disk)
    acknowledged, refused = list[str](), 0
    with anyio.fail_after(20):
        while refused < 3:  # the write-ahead log may have some room left
            try:
                acknowledged.append(await tasks.submit(Task(pool_id=fleet.pool, inputs={"text": "x" * 20_000})))
            except StoreFull as error:
                refused += 1
                assert "room" in str(error)
    assert {(await tasks.get(task_id)).state for task_id in running} <= {TaskState.ASSIGNED, TaskState.COMPLETED}
    assert len(await tasks.list(pool_id=fleet.pool)) == len(running) + len(waiting) + len(acknowledged), (
        "a refused submit has left something"
    )
    await wait_until(lambda: "full" in fleet.log_of(process), timeout=15, what="the process tells of its disk")
    assert process.poll() is None
    filler.unlink()
    back = time.monotonic()
    first = await tasks.submit(Task(pool_id=fleet.pool))
    await wait_until(lambda: waiting[0] in fleet.starts(), timeout=RESUME_SEC, what="claims resume")
    print(f"claims resumed {time.monotonic() - back:.2f} s after there was room")  # noqa: T201 - shown when the test fails
    with anyio.fail_after(40):
        ended = [await tasks.result(task_id) for task_id in [*running, *waiting, *acknowledged, first]]
    assert {task.state for task in ended} == {TaskState.COMPLETED}
    assert {len(lines) for lines in fleet.starts().values()} == {1}, "a task ran again though its process lived"
    assert process.poll() is None


async def test_a_disk_that_is_full_from_the_start_starts_nothing(disk: Path, fleet: Fleet) -> None:
    """One line that says so, and the code for a store that cannot be used; a second start, with room, works."""
    filler = fill(disk)
    process = fleet.start(agents=1)
    with anyio.fail_after(15):
        assert await anyio.to_thread.run_sync(process.wait) == 4, fleet.log_of(process)
    assert "Traceback" not in fleet.log_of(process)
    filler.unlink()
    await fleet.until_running(fleet.start(agents=1))


@pytest.mark.parametrize("disk", [32_768], indirect=True)
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "opened when full"])
async def test_what_makes_room_works_on_a_full_disk(disk: Path, is_open: bool) -> None:
    """Ended tasks can be purged though not one byte is free; then there is room for new ones."""
    url, inputs = f"file:{disk / 'state.db'}", {"text": "x" * 3_000}
    async with open_store(url) as store:
        tasks = TaskManager(store)
        await PoolManager(store).create_pool(Pool(id="p"))
        ids = await tasks.submit_many([Task(pool_id="p", inputs=inputs) for _ in range(100)])
        for id_ in ids:
            await tasks.cancel(id_)
        if is_open:
            fill(disk)
            await until_full(tasks, inputs)
            assert await purged(store) == len(ids)
            await tasks.submit(Task(pool_id="p", inputs=inputs))
    if not is_open:
        fill(disk)
        async with open_store(url) as store:
            await until_full(TaskManager(store), inputs)
            assert await purged(store) == len(ids)
            await TaskManager(store).submit(Task(pool_id="p", inputs=inputs))


async def until_full(tasks: TaskManager, inputs: dict[str, str]) -> None:
    """Submit until there is no room for it."""
    with anyio.fail_after(20):
        while True:
            try:
                await tasks.submit(Task(pool_id="p", inputs=inputs))
            except StoreFull:
                return


async def purged(store: Store) -> int:
    """Remove all that has ended; return how many tasks that were."""
    found = purge(StoreHandle.of(store), ["p"], [TaskState.CANCELLED], None, is_dry_run=False)
    return sum([page.count async for page in found])
