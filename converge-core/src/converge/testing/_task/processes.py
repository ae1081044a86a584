"""T-3, T-4, T-10 between processes: three that claim and complete, one of which is killed with claims in its hands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from converge.contracts.store import Batch, Feature
from converge.machines.task import TaskState
from converge.model.keys import EXPIRY
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.pools import PoolManager
from converge.services.tasks.manager import TaskManager
from converge.testing._processes.peers import END_SEC, Peer, begin, end, peers_on
from converge.testing._store.base import Opening
from converge.testing._task.base import TaskCase
from converge.testing.clauses import expect, expect_equal

TASKS = 60
CLAIMED = 10
"""Claims of the first process before it is killed: by then it has completed some, and holds some."""

WORK_SEC = 60.0


class TaskProcessClauses(TaskCase):
    """What a lease, a token and a finish mean between real processes."""

    def test_processes_that_work_complete_each_task_once(self, url: str, options: Any, opening: Opening) -> None:
        """T-4: each task is completed once, tokens rise from process to process (T-3), and what a killed one held is
        done by the others (T-10).
        """
        if Feature.SHARED not in self.backend.features:
            pytest.skip("not applicable: the store does not declare SHARED")
        ids = anyio.run(_submit, opening)
        with peers_on(self, url, options, "work", WORK_SEC) as peers:
            begin(peers, ahead_sec=WORK_SEC)
            told = peers[0].wait_for(lambda said: len(said) > CLAIMED, WORK_SEC)
            peers[0].kill()
            failed = peers[0].end(END_SEC)
            expect("T-4", told, f"the first process claimed too little in {WORK_SEC:g} s: {failed}")
            tasks = anyio.run(_ended, opening, ids, peers[0])
            failed = end(peers)
        expect("T-4", not failed, f"a process failed: {failed}")
        self._check([row for peer in peers for row in peer.said[1:]], tasks)

    def _check(self, rows: Sequence[Sequence[Any]], tasks: Sequence[Task]) -> None:
        claimed = [(row[1], row[2]) for row in rows if row[0] == "claimed"]
        done = [(row[1], row[2]) for row in rows if row[0] == "acknowledged"]
        twice = len(done) - len({id_ for id_, _ in done})
        expect("T-4", not twice, f"{twice} of {TASKS} tasks were completed twice")
        expect("T-3", len(claimed) == len(set(claimed)), "two claims of one task had the same token")
        left = [task.id for task in tasks if task.state != TaskState.COMPLETED]
        expect("T-10", not left, f"{len(left)} of {TASKS} tasks have not ended after a process was killed")
        kept = {task.id: task.result for task in tasks}
        other = [id_ for id_, token in done if kept[id_] != token]
        expect_equal("T-4", other, [], "tasks that keep another result than the one that was acknowledged")
        late = [id_ for id_, token in claimed if token > kept[id_]]
        expect_equal("T-3", late, [], "tasks that were claimed at a token above that of their completion")


async def _submit(opening: Opening) -> list[str]:
    async with opening() as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        return await TaskManager(store).submit_many([Task(pool_id="p") for _ in range(TASKS)])


async def _ended(opening: Opening, ids: Sequence[str], killed: Peer) -> list[Task]:
    """Let the lease of who was killed pass, wait until the others have done all, and return the tasks."""
    async with opening() as store:
        leases = {bytes.fromhex(row[3]) for row in killed.said[1:] if row[0] == "claimed"}
        await store.commit([Batch((), [(EXPIRY(lease), b"1") for lease in leases])])
        tasks = TaskManager(store)
        with anyio.move_on_after(WORK_SEC):
            for id_ in ids:
                await tasks.result(id_)
        return [await tasks.get(id_) for id_ in ids]
