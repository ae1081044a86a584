"""Many agents start in pages: a call of the store serves hundreds, others run meanwhile, and an idle agent has no task
of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import anyio
import pytest
from anyio.lowlevel import checkpoint

from converge.builtin.memory import MemoryStore
from converge.contracts.store import LIMITS, Batch, Channel, Committed, Conflict, Range
from converge.errors import InvalidValue, OutcomeUnknown, Undeliverable
from converge.model.descriptor import DiscoveryQuery
from converge.model.keys import AGENT, LEASE
from converge.model.message import Message
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.network.publishing import SIGNED_TOGETHER
from converge.runtime.node import MADE_BEFORE_YIELD, Node


class Idle(Agent):
    """Has nothing to do."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return self.id


async def test_two_thousand_agents_cost_the_store_few_calls_and_are_members_and_listed_all_the_same(
    calls_of: Callable[..., Counter[str]],
) -> None:
    store = MemoryStore()
    calls = calls_of(store, "get", "scan", "commit")
    async with Node(store=store, poll_sec=10.0) as node:
        await node.spawn(Idle, pool="p")
        before = calls.total()
        agents = await node.spawn(Idle, count=2_000, pool="p")
        assert calls.total() - before <= 100
        assert len(await node.pools.members("p")) == 2_001
        found = await node.discovery.query(DiscoveryQuery(pool_id="p"), refresh_from_store=True)
        assert {one.id for one in agents} < {one.id for one in found}


class Touched(MemoryStore):
    """Has the lease written again just before many join."""

    is_untouched = True

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        if len(batches) == LIMITS.batches and self.is_untouched:
            self.is_untouched = False
            ((lease,),) = await super().scan([Range(LEASE(), None, 1)])
            await super().commit([Batch([], [(lease.key, lease.value)])])
        return await super().commit(batches, wake=wake)


async def test_a_lease_that_is_written_while_many_join_is_looked_at_once(
    calls_of: Callable[..., Counter[str]],
) -> None:
    store = Touched()
    calls = calls_of(store, "get", "scan", "commit")
    async with Node(store=store, poll_sec=10.0) as node:
        before = calls.total()
        await node.spawn(Idle, count=LIMITS.batches, pool="p")
        assert not store.is_untouched and calls.total() - before <= 100
        assert len(await node.pools.members("p")) == LIMITS.batches


async def test_others_run_while_many_agents_start() -> None:
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with Node() as node, anyio.create_task_group() as group:
        group.start_soon(watch)
        await node.spawn(Idle, count=3_000, pool="p")
        group.cancel_scope.cancel()
    assert turns >= 3_000 / MADE_BEFORE_YIELD + 3_000 / SIGNED_TOGETHER


async def test_an_idle_agent_has_no_task_of_its_own() -> None:
    async with Node() as node:
        await node.spawn(Idle, pool="p")
        before = _tasks()
        await node.spawn(Idle, count=500, pool="p")
        assert _tasks() - before < 10


def _tasks() -> int:
    return len(anyio.get_running_tasks())


@pytest.mark.parametrize("count", [0, -1, True, 1.0])
async def test_a_count_that_cannot_be_meant_is_refused(count: int) -> None:
    async with Node() as node:
        with pytest.raises(InvalidValue, match=r"^count: "):
            await node.spawn(Idle, count=count)


async def test_agents_that_could_not_be_published_get_no_messages_and_are_listed_no_more() -> None:
    class Away(MemoryStore):
        is_away = False

        async def commit(
            self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
        ) -> Sequence[Committed | Conflict]:
            if self.is_away and any(key[0] is AGENT for batch in batches for key, _ in batch.puts):
                await super().commit(batches, wake=wake)
                raise OutcomeUnknown("its answer was lost")
            return await super().commit(batches, wake=wake)

    started = list[str]()

    class Hears(Agent):
        capabilities = ("hears",)

        async def on_start(self) -> None:
            started.append(self.id)

        async def on_message(self, message: Message) -> None:
            """Hear it."""

    store = Away()
    async with Node(store=store) as node:
        store.is_away = True
        with pytest.raises(OutcomeUnknown):
            await node.spawn(Hears, pool="p")
        store.is_away = False
        with pytest.raises(Undeliverable):
            await node.send(started[0], "hello", timeout=5)
        assert await node.pools.members("p") == []
        (agent,) = await node.spawn(Hears, pool="p")
        found = await node.discovery.query(DiscoveryQuery(capabilities=("hears",)), refresh_from_store=True)
        assert [one.id for one in found] == [agent.id]
