"""An explanation names what is in the way of a claim, and agrees with what claims do."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from converge.builtin.memory import MemoryStore
from converge.machines.explain import Explanation
from converge.model.batch import Batch
from converge.model.descriptor import AgentDescriptor
from converge.model.keys import POOL
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.store.handle import StoreHandle
from converge.services.tasks.explain import explain_task

NEVER = datetime(2099, 1, 1, tzinfo=UTC)


def agent(*capabilities: str, topics: tuple[str, ...] = (), pool: str = "p", name: str = "A") -> AgentDescriptor:
    """What an agent says of itself."""
    return AgentDescriptor(
        id=f"cv1{name}", public_key="", name=name, capabilities=capabilities, topics=topics, pools=(pool,)
    )


class World:
    """A pool on a store, with its managers."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.handle = StoreHandle.of(self.store)
        self.pools, self.tasks = PoolManager(self.store), TaskManager(self.store)

    async def explained(self, task_id: str, *agents: AgentDescriptor) -> Explanation:
        """The explanation of the task among these agents."""
        return await explain_task(self.handle, task_id, agents)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.pools.create_pool(Pool(id="p"))
    yield world
    await world.handle.close()


async def test_the_explanation_agrees_with_the_claim_for_every_mix_of_needs_and_abilities(world: World) -> None:
    names = [(), ("a",), ("a", "b")]
    topics: list[tuple[str, ...]] = [(), ("t",), ("u", "v")]
    for needs, topic, has, takes in itertools.product(names, ("", "t"), names, topics):
        id_ = await world.tasks.submit(Task(pool_id="p", required_capabilities=needs, topic=topic))
        explanation = await world.explained(id_, agent(*has, topics=takes))
        claimed = await world.tasks.claim("x", ["p"], has, takes or None)
        assert [task.id for task in claimed] == ([id_] if explanation.is_claimable else []), (needs, topic, has, takes)
        assert (explanation.verdicts[0].refusal is None) == explanation.is_claimable == (not explanation.reasons)
        await world.tasks.cancel(id_)


async def test_groups_of_like_agents_of_the_pool_each_get_a_verdict(world: World) -> None:
    id_ = await world.tasks.submit(Task(pool_id="p", required_capabilities=["a"]))
    explanation = await world.explained(id_, agent("a"), agent("a"), agent("b", name="B"), agent("a", pool="q"))
    assert [(one.group.name, one.group.count, one.refusal) for one in explanation.verdicts] == [
        ("A", 2, None),
        ("B", 1, "it lacks the capabilities a"),
    ]
    assert (await world.explained(id_, agent("a", pool="q"))).reasons == ('no agent that is listed is in pool "p"',)
    assert (await world.explained(id_, agent("b"))).reasons == ('none of the agents listed in pool "p" may take it',)


async def test_a_paused_and_a_removed_pool_are_in_the_way(world: World) -> None:
    id_ = await world.tasks.submit(Task(pool_id="p"))
    await world.pools.set_paused("p", is_paused=True)
    paused = await world.explained(id_, agent())
    assert (paused.is_claimable, paused.place, paused.reasons) == (False, "ready", ('its pool "p" is paused',))
    await world.store.commit([Batch((), (), [POOL("p")])])
    assert (await world.explained(id_, agent())).reasons == ('its pool "p" does not exist any more',)


async def test_a_task_that_is_not_due_or_waits_for_its_retry_says_how_long(world: World) -> None:
    id_ = await world.tasks.submit(Task(pool_id="p", not_before=NEVER))
    later = await world.explained(id_, agent())
    assert (later.is_claimable, later.place) == (False, "later")
    assert later.reasons[0].startswith("it is due in ")
    retried = await world.tasks.submit(Task(pool_id="p", retry_delay_sec=200_000.0))
    (claimed,) = await world.tasks.claim("x", ["p"])
    await world.tasks.fail(claimed, "no")
    assert (await world.explained(retried, agent())).reasons[0].startswith("it is tried again in ")


async def test_a_task_behind_its_ordering_key_names_the_active_one(world: World) -> None:
    first, second = [await world.tasks.submit(Task(pool_id="p", ordering_key="k")) for _ in range(2)]
    behind = await world.explained(second, agent())
    assert (behind.place, behind.reasons) == ("waiting", (f'it waits behind task {first} of its ordering key "k"',))
    assert (await world.explained(first, agent())).is_claimable


async def test_a_held_task_tells_whose_claim_it_is_and_an_ended_one_that_it_has_ended(world: World) -> None:
    id_ = await world.tasks.submit(Task(pool_id="p"))
    (claimed,) = await world.tasks.claim("x", ["p"])
    held = await world.explained(id_)
    assert (held.state, held.place, len(held.reasons)) == ("ASSIGNED", "held", 1)
    lease = (await world.handle.lease()).id.hex()
    assert f"lease {lease[:12]}, token {claimed.token}" in held.reasons[0] and "ended" not in held.reasons[0]
    await world.handle.close()
    assert "that lease has ended: the next sweep puts the task back" in (await world.explained(id_)).reasons[0]
    await world.tasks.cancel(id_, why="enough")
    done = await world.explained(id_, agent())
    assert (done.state, done.place, done.reasons) == (
        "CANCELLED",
        "done",
        ("it has ended and is never claimed again: enough",),
    )
