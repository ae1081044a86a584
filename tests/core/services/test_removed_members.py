"""Whoever is removed from a pool claims nothing there any more, whoever removes it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Store
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An embedded store."""
    async with open_store("memory:" if request.param == "memory" else f"file:{tmp_path / 'state.db'}") as store:
        yield store


class One(Agent):
    """Says who worked."""

    async def on_task(self, task: Task) -> str:
        return self.id


async def test_an_agent_that_was_removed_by_another_process_claims_nothing_more(store: Store) -> None:
    pools, tasks = PoolManager(store), TaskManager(store)
    await pools.create_pool(Pool(id="docs", admission="secret"), secret="s3cret-of-docs")
    async with store.reopen() as other, Node(store=other, poll_sec=0.1) as node:
        (agent,) = await node.spawn(One, pool="docs", secret="s3cret-of-docs")
        await tasks.result(await tasks.submit(Task(pool_id="docs")), timeout=10)
        assert await pools.leave_pool(agent.id, "docs")
        id_ = await tasks.submit(Task(pool_id="docs"))
        await wait_until(lambda: "docs" not in agent.pools, what="the node has found out")
        assert (await tasks.get(id_)).state is TaskState.PENDING


async def test_a_removal_changes_the_pool_which_each_claim_checks(store: Store) -> None:
    pools = PoolManager(store)
    await pools.create_pool(Pool(id="docs", admission="allow", allow=("worker",)))
    await pools.join_pool("worker", "docs")
    (before,) = await store.get([POOL("docs")])
    assert await pools.leave_pool("worker", "docs")
    (after,) = await store.get([POOL("docs")])
    assert before is not None and after is not None and after.revision > before.revision
    assert after.value == before.value
    assert not await pools.leave_pool("worker", "docs")


async def test_an_open_pool_is_not_changed_by_who_comes_and_goes(store: Store) -> None:
    pools = PoolManager(store)
    await pools.create_pool(Pool(id="docs"))
    (before,) = await store.get([POOL("docs")])
    await pools.join_pool("worker", "docs")
    assert await pools.leave_pool("worker", "docs")
    assert (await store.get([POOL("docs")]))[0] == before
