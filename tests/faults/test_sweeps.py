"""F3: whoever dies while it takes work back from the dead leaves nothing that the next one does not find."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import preloaded
import pytest

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Range, Store
from converge.model.keys import AGENT, DEAD, EXPIRY, HELD, JOINED, LEASE, MEMBER
from converge.runtime.reaper import Reaper
from converge.services.store.handle import StoreHandle
from converge.testing.fixtures import wait_until
from converge.testing.fleet import expire_leases

SLOW_SEC = 0.0 if os.environ.get("FULL_TESTS") == "1" else 20.0
"""What a machine may add that runs other tests, too."""
CLAIMS = 50
SCRIPT = Path(__file__).with_name("sweeper.py")


async def die_with_claims(url: str) -> list[str]:
    """A process of which nothing is left but what it has in the store: 50 claims, a membership, a descriptor, a lease
    that has expired.

    Returns:
        The tasks that it held.
    """
    async with open_store(url) as store:
        opened = StoreHandle.of(store)
        pools, tasks = PoolManager(store), TaskManager(store)
        await pools.create_pool(Pool(id="faults"))
        await pools.join_pool("holder", "faults")
        ids = await tasks.submit_many([Task(pool_id="faults") for _ in range(CLAIMS)])
        assert len(await tasks.claim("holder", ["faults"], limit=CLAIMS)) == CLAIMS
        lease = await opened.lease()
        await store.commit([Batch((), [(AGENT(lease.id, "cv1dead"), b'"a descriptor"')])])
        lease.abandon()
        await expire_leases(store)
        store.shared = None  # nobody is left who would end it
        return ids


async def left_of_the_dead(store: Store) -> list[str]:
    """What still names a lease: nothing, once all was taken back."""
    families = [AGENT, DEAD, EXPIRY, HELD, JOINED, LEASE, MEMBER]
    pages = await store.scan([Range(family(), None, 1_000) for family in families])
    return [f"{family}: {len(page)}" for family, page in zip(families, pages, strict=True) if page]


def sweep_and_be_killed(url: str, number: int, when: str) -> bool:
    """Run a sweep in a process that is killed at a commit; tell whether it got so far."""
    ran = preloaded.run(
        [sys.executable, str(SCRIPT), url, str(number), when], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
    return ran.returncode != 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    ("number", "when"),
    [(1, "before"), (1, "after"), (2, "after"), (3, "before"), (4, "after"), (5, "after"), (6, "after")],
)
async def test_f3_what_a_killed_sweep_began_the_next_process_ends_within_two_leases(
    tmp_path: Path, number: int, when: str
) -> None:
    """The commits of the sweep: the end of the lease, three pages of claims, what else names the lease, and its last
    key.
    """
    url = f"file:{tmp_path / 'state.db'}"
    ids = await die_with_claims(url)
    async with open_store(url) as store:
        opened = StoreHandle.of(store)
        assert await anyio.to_thread.run_sync(sweep_and_be_killed, url, number, when), (
            "the sweep has fewer commits, so the test shows nothing"
        )
        tasks = TaskManager(store)

        async def is_all_back() -> bool:
            return not await left_of_the_dead(store) and len(await tasks.list(state="PENDING", limit=100)) == CLAIMS

        async with anyio.create_task_group() as group:
            group.start_soon(Reaper(opened, 0.3).run)
            await wait_until(is_all_back, timeout=4.0 + SLOW_SEC, what="all is taken back")
            group.cancel_scope.cancel()
        found = [await tasks.get(task_id) for task_id in ids]
        assert [[line.what for line in task.history] for task in found] == [["lease ended"]] * CLAIMS, (
            "a claim was taken back twice, or not at all"
        )
