"""Pools from an agent's side: joining, leaving and losing admission change what it claims at once, and nobody else's
work.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import anyio
import pytest

from converge.contracts.store import Batch, Committed
from converge.errors import LeaseEnded, NoSuchPool, PoolClosed
from converge.machines.breaker import Breaker
from converge.machines.task import TaskState
from converge.model.descriptor import DiscoveryQuery
from converge.model.keys import DEAD, EXPIRY, LEASE
from converge.model.pool import Pool
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.claiming.groups import Groups
from converge.runtime.node import Node
from converge.services.pools import PoolManager
from converge.services.store.lease import Lease
from converge.testing.fixtures import wait_until


class Worker(Agent):
    """Says who it is."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return self.id


@pytest.fixture
async def node(store_url: str) -> AsyncIterator[Node]:
    """A node that looks often."""
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            yield node


async def run(node: Node, pool_id: str, count: int = 1) -> set[str]:
    """Who did the work of that pool."""
    ids = await node.tasks.submit_many([Task(pool_id=pool_id) for _ in range(count)])
    return {(await node.tasks.result(one, timeout=10)).result for one in ids}


async def test_an_agent_that_joins_a_pool_claims_there_at_once_and_in_its_old_pools_as_before(node: Node) -> None:
    (agent,) = await node.spawn(Worker, pool="p")
    await node.pools.create_pool(Pool(id="q"))
    assert await agent.join("q") is True and await agent.join("q") is False
    assert await run(node, "q") == await run(node, "p") == {agent.id}
    assert agent.pools == ("p", "q") and await node.pools.members("q") == [agent.id]
    assert [one.id for one in await node.discovery.query(DiscoveryQuery(pool_id="q"), refresh_from_store=True)] == [
        agent.id
    ]


async def test_an_agent_that_leaves_a_pool_claims_nothing_there_and_the_others_go_on(node: Node) -> None:
    gone, stays = await node.spawn(Worker, count=2, pool=("p", "q"))
    assert await gone.leave("p") is True and await gone.leave("p") is False
    assert await run(node, "p", 20) == {stays.id}
    await stays.leave("q")
    assert await run(node, "q", 5) == {gone.id}
    assert gone.pools == ("q",) and await node.pools.members("p") == [stays.id]


async def test_what_runs_when_its_agent_leaves_the_pool_is_completed(node: Node) -> None:
    class Slow(Agent):
        gate = anyio.Event()
        began = False

        async def on_task(self, task: Task) -> str:
            type(self).began = True
            await self.gate.wait()
            return "done"

    (agent,) = await node.spawn(Slow, pool="p")
    task_id = await node.tasks.submit(Task(pool_id="p"))
    await wait_until(lambda: Slow.began)
    await agent.leave("p")
    later = await node.tasks.submit(Task(pool_id="p"))
    Slow.gate.set()
    assert (await node.tasks.result(task_id, timeout=10)).result == "done"
    await wait_until(lambda: not node.feeds, what="nothing is left of a group without agents")
    assert (await node.tasks.get(later)).state == TaskState.PENDING


async def test_what_was_claimed_for_an_agent_that_leaves_does_not_wait_for_the_others_of_its_group(node: Node) -> None:
    class Leaving(Agent):
        concurrency = 4
        gate = anyio.Event()
        began = 0

        async def on_task(self, task: Task) -> None:
            type(self).began += 1
            if self.began == 1:
                for one in node.agents.values():
                    if one.agent is not self:
                        node.feeds[0].remove(one)  # what waits for its slots has no worker yet
            await self.gate.wait()

    await node.pools.create_pool(Pool(id="p"))
    ids = await node.tasks.submit_many([Task(pool_id="p") for _ in range(8)])
    await node.spawn(Leaving, count=2, pool="p")
    feed = node.feeds[0]
    await wait_until(
        lambda: Leaving.began == feed.in_hand == Leaving.concurrency,
        what="all slots of the other are busy, and the rest is handed back",
    )
    found = [await node.tasks.get(one) for one in ids]
    assert sorted({task.state for task in found}) == [TaskState.ASSIGNED, TaskState.PENDING]
    assert {task.attempts for task in found if task.state == TaskState.PENDING} == {0}
    assert sum(task.state == TaskState.ASSIGNED for task in found) == Leaving.concurrency
    Leaving.gate.set()


async def test_agents_can_come_and_go_many_times_and_leave_nothing_behind(node: Node) -> None:
    (agent,) = await node.spawn(Worker, pool="p")
    await node.pools.create_pool(Pool(id="q"))
    tasks = len(anyio.get_running_tasks())
    for _ in range(10):
        await agent.join("q")
        assert await run(node, "q") == {agent.id}
        await agent.leave("q")
    assert await run(node, "p") == {agent.id}
    await wait_until(
        lambda: len(node.feeds) == 1 and len(anyio.get_running_tasks()) <= tasks + 2, what="old groups have ended"
    )


async def test_an_agent_can_join_pools_while_it_starts(node: Node) -> None:
    class Joining(Worker):
        async def on_start(self) -> None:
            await self.join("q")

    await node.pools.create_pool(Pool(id="q"))
    (agent,) = await node.spawn(Joining, pool="p")
    assert await run(node, "q") == await run(node, "p") == {agent.id}


async def test_a_pool_that_asks_for_a_secret_is_joined_with_it_only(node: Node) -> None:
    await node.pools.create_pool(Pool(id="s", admission="secret"), secret="open sesame")
    with pytest.raises(PoolClosed):
        await node.spawn(Worker, pool="s")
    assert node.feeds == ()
    (agent,) = await node.spawn(Worker, pool="s", secret="open sesame")
    assert await run(node, "s") == {agent.id}
    (other,) = await node.spawn(Worker, pool="p")
    with pytest.raises(PoolClosed):
        await other.join("s", secret="wrong")
    assert await other.join("s", secret="open sesame") is True


async def test_a_secret_for_a_pool_that_does_not_exist_creates_no_open_pool(node: Node) -> None:
    with pytest.raises(NoSuchPool):
        await node.spawn(Worker, pool="s", secret="open sesame")
    assert await node.pools.pools() == []


async def test_each_agent_of_a_group_needs_admission_of_its_own(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    one, two = await node.spawn(Worker, count=2, pool="p")
    await node.pools.create_pool(Pool(id="a", admission="allow", allow=(one.id, two.id)))
    for agent in (one, two):
        await agent.join("a")
    assert len(node.feeds) == 1
    await PoolManager(node.store).change_allowed("a", remove=[one.id])
    await wait_until(lambda: one.pools == ("p",), what="the agent that is not admitted any more is dropped")
    assert await run(node, "a", 20) == {two.id}
    assert one.id in await run(node, "p", 50), "it goes on where it may"
    assert "does not admit this agent any more" in caplog.text
    with pytest.raises(PoolClosed):
        await one.join("a")
    await node.pools.change_allowed("a", add=[one.id])
    assert await one.join("a") is True and one.pools == ("p", "a")


async def test_when_no_agent_of_a_group_is_admitted_any_more_nothing_is_claimed(node: Node) -> None:
    (agent,) = await node.spawn(Worker)
    await node.pools.create_pool(Pool(id="a", admission="allow", allow=(agent.id,)))
    await agent.join("a")
    assert await run(node, "a") == {agent.id}
    await node.pools.change_allowed("a", remove=[agent.id])
    await wait_until(lambda: agent.pools == ())
    task_id = await node.tasks.submit(Task(pool_id="a"))
    await anyio.sleep(0.2)  # several polls
    assert (await node.tasks.get(task_id)).state == TaskState.PENDING


async def test_after_a_lost_lease_agents_are_back_in_the_pools_that_ask_for_a_secret(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            for pool_id in ("s", "t"):
                await node.pools.create_pool(Pool(id=pool_id, admission="secret"), secret=f"open {pool_id}")
            started, (joined,) = (
                await node.spawn(Worker, count=2, pool="s", secret="open s"),
                await node.spawn(Worker, pool="p"),
            )
            await joined.join("t", secret="open t")
            lease = await _lose_lease(node)
            await wait_until(lambda: node.handle.lease_opened not in (None, lease), what="another lease", timeout=30)
            agents = {"s": sorted(one.id for one in started), "t": [joined.id], "p": [joined.id]}
            for pool_id, ids in agents.items():
                await wait_until(
                    partial(_are_members, node, pool_id, ids),
                    what="all are members again",
                )
                assert await run(node, pool_id, 5) <= set(ids)
            assert all(pool_id in node.agents[one].pools for pool_id, ids in agents.items() for one in ids)


async def _are_members(node: Node, pool_id: str, agents: list[str]) -> bool:
    return await node.pools.members(pool_id) == agents


async def _are_listed(node: Node, agents: list[str]) -> bool:
    return [one.id for one in await node.discovery.query(DiscoveryQuery(), refresh_from_store=True)] == agents


async def _lose_lease(node: Node) -> Lease:
    """Do what a reaper of another process does with a lease that was not renewed, and let the node find it out."""
    lease = node.handle.lease_opened
    assert lease is not None
    outcome: object = None
    while not isinstance(outcome, Committed):  # the node may write its record anew meanwhile
        (entry,) = await node.store.get([LEASE(lease.id)])
        assert entry is not None
        batch = Batch([(entry.key, entry.revision)], [(DEAD(lease.id), b"")], [entry.key, EXPIRY(lease.id)])
        (outcome,) = await node.store.commit([batch])
    with pytest.raises(LeaseEnded):
        await lease.touch()
    return lease


async def test_an_agent_that_joined_and_then_did_not_start_is_forgotten_when_others_rejoin(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Worker):
        async def on_start(self) -> None:
            await self.join("q")
            raise RuntimeError("it does not start")

    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            await node.pools.create_pool(Pool(id="q"))
            (agent,) = await node.spawn(Worker, pool="p")
            with pytest.raises(RuntimeError, match="it does not start"):
                await node.spawn(Failing, pool="p")
            lease = await _lose_lease(node)
            await wait_until(lambda: node.handle.lease_opened not in (None, lease), what="another lease", timeout=30)
            await wait_until(lambda: _are_members(node, "p", [agent.id]), what="the one that runs is a member again")
            assert await run(node, "p") == {agent.id} and await node.pools.members("q") == []


async def test_an_agent_that_retires_while_others_rejoin_keeps_none_of_them_away(
    store_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, gate = anyio.Event(), anyio.Event()
    join_many = PoolManager.join_many

    async def gated(self: PoolManager, agent_ids: Sequence[str], pool_id: str, **options: Any) -> list[bool]:
        joined = await join_many(self, agent_ids, pool_id, **options)
        began.set()
        await gate.wait()
        return joined

    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            gone, stays = await node.spawn(Worker, count=2, pool=("p", "q"))
            monkeypatch.setattr(PoolManager, "join_many", gated)
            await _lose_lease(node)
            await began.wait()
            await node.retire(gone)
            gate.set()
            for pool_id in ("p", "q"):
                await wait_until(
                    partial(_are_members, node, pool_id, [stays.id]),
                    what="the other is a member again, alone",
                )
            await wait_until(lambda: node.health().is_ready, what="the lease is no longer lost")
            await wait_until(lambda: _are_listed(node, [stays.id]), what="the other is listed again, alone")


async def test_what_nobody_expected_while_agents_rejoin_is_no_end_of_that(
    store_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejoin = Groups.rejoin

    async def failing(self: Groups) -> None:
        monkeypatch.setattr(Groups, "rejoin", rejoin)
        raise RuntimeError("as a library may")

    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            (agent,) = await node.spawn(Worker, pool="p")
            monkeypatch.setattr(Groups, "rejoin", failing)
            await _lose_lease(node)
            await wait_until(lambda: Groups.rejoin is rejoin, what="it has failed", timeout=20)
            await wait_until(lambda: _are_members(node, "p", [agent.id]), what="it is a member again")


class Counted(Agent):
    """Counts how many of its handlers run at a time."""

    concurrency = 2
    breaker = Breaker(on=(Exception,), failures=1, rest_sec=0.02)
    running = most = 0

    async def on_task(self, task: Task) -> None:
        """See the class."""
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if task.inputs["does"] == "join":
                await self.join("q")
            if task.inputs["does"] == "fail":
                raise RuntimeError("as told")
            await anyio.sleep(0.3)
        finally:
            self.running -= 1


@pytest.mark.parametrize("does", ["join", "fail"])
async def test_an_agent_works_on_no_more_than_its_concurrency_while_it_changes_pools_or_rests(
    node: Node, does: str
) -> None:
    await node.pools.create_pool(Pool(id="q"))
    (agent,) = await node.spawn(Counted, pool="p")
    assert isinstance(agent, Counted)
    tasks = [Task(pool_id="p", inputs={"does": "sleep"}), Task(pool_id="p", inputs={"does": does}, max_attempts=1)]
    tasks += [Task(pool_id="q" if does == "join" else "p", inputs={"does": "sleep"}) for _ in range(4)]
    for task_id in await node.tasks.submit_many(tasks):
        await node.tasks.result(task_id, timeout=10)
    assert agent.most == 2
    await wait_until(lambda: sum(feed.slots.free for feed in node.feeds) == 2, what="it has all its slots again")


async def test_an_agent_whose_start_outlasts_a_lost_lease_is_a_member_all_the_same(
    store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Worker):
        began, gate = anyio.Event(), anyio.Event()

        async def on_start(self) -> None:
            self.began.set()
            await self.gate.wait()

    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node, anyio.create_task_group() as group:
            await node.pools.create_pool(Pool(id="s", admission="secret"), secret="open s")
            group.start_soon(lambda: node.spawn(Slow, pool="s", secret="open s"))
            await Slow.began.wait()
            lease = await _lose_lease(node)
            await wait_until(lambda: node.handle.lease_opened not in (None, lease), what="another lease", timeout=30)
            Slow.gate.set()
            await wait_until(lambda: len(node.agents) == 1, what="it has started")
            await wait_until(
                lambda: _are_members(node, "s", [*node.agents]), what="it is a member under the other lease"
            )
            assert await run(node, "s") == {*node.agents}


async def test_the_first_task_of_a_kind_reaches_the_group_that_may_claim_it_without_a_poll(store_url: str) -> None:
    kinds = [type(f"Kind{number}", (Worker,), {"capabilities": (f"c{number}",)}) for number in range(4)]
    with anyio.fail_after(30):  # a task that waited for a poll would take a minute
        async with Node(
            store=store_url, poll_sec=60, options={"file": {"poll_sec": 60}} if store_url.startswith("file:") else {}
        ) as node:
            agents: list[Agent] = [(await node.spawn(kind, pool="p"))[0] for kind in kinds]
            for number in (3, 0, 2, 1, 3, 3, 1, 0):
                task = Task(pool_id="p", required_capabilities=(f"c{number}",), type=f"t{await _count(node)}")
                done = await node.tasks.result(await node.tasks.submit(task), timeout=None)
                assert done.result == agents[number].id


async def _count(node: Node) -> int:
    return len(await node.tasks.list(pool_id="p"))
