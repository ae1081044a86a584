"""A pool's allow-list: who is taken off it is out at once."""

from __future__ import annotations

from typing import Any

import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Range
from converge.errors import InvalidName, InvalidValue, PoolClosed
from converge.model.keys import JOINED
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import REMOVED, PoolManager
from converge.services.store.handle import StoreHandle


async def test_an_agent_that_is_taken_off_the_list_claims_nothing_more_and_cannot_come_back() -> None:
    store = MemoryStore()
    pools, tasks = PoolManager(store), TaskManager(store)
    await pools.create_pool(Pool(id="p", admission="allow", allow=("a", "b")))
    await pools.join_many(["a", "b"], "p")
    await tasks.submit_many([Task(pool_id="p") for _ in range(3)])
    (held,) = await tasks.claim("a", ["p"])
    assert await pools.change_allowed("p", remove=["a"])
    with pytest.raises(PoolClosed):
        await tasks.claim("a", ["p"])
    with pytest.raises(PoolClosed):
        await pools.join_pool("a", "p")
    assert len(await tasks.claim("b", ["p"])) == 1
    await tasks.complete(held)
    assert await pools.members("p") == ["b"]
    assert await pools.change_allowed("p", add=["a"]) and await pools.join_pool("a", "p")
    await StoreHandle.of(store).close()


async def test_more_members_than_fit_into_one_step_are_all_removed() -> None:
    store = MemoryStore()
    pools = PoolManager(store)
    agents = [f"a{at}" for at in range(REMOVED + 5)]
    await pools.create_pool(Pool(id="p", admission="allow", allow=tuple(agents)))
    await pools.join_many(agents, "p")
    assert await pools.change_allowed("p", remove=agents[1:])
    lease = await StoreHandle.of(store).lease()
    (joined,) = await store.scan([Range(JOINED(lease.id), None, 10)])
    assert (await pools.members("p"), [entry.key[-1] for entry in joined]) == (["a0"], ["a0"])
    assert not await pools.change_allowed("p", remove=agents[1:])
    await StoreHandle.of(store).close()


async def test_a_list_that_would_not_count_and_a_bad_name_are_refused() -> None:
    store = MemoryStore()
    pools = PoolManager(store)
    await pools.create_pool(Pool(id="p"))
    with pytest.raises(InvalidValue, match="would not count"):
        await pools.change_allowed("p", add=["a"])
    with pytest.raises(InvalidName):
        await pools.change_allowed("p", add=["a b"])
    await StoreHandle.of(store).close()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"id": "p", "admision": "open"}, 'did you mean "admission"'),
        ({"admission": "open"}, "pool.id"),
        ({"id": "p", "admission": "closed"}, "open, allow or secret"),
        ({"id": "p", "is_paused": "no"}, "True or False"),
        ({"id": "p", "admission": "allow", "allow": "agent-1"}, "a sequence of agent ids"),
        ({"id": "p", "dedup_window_sec": -1}, "from 0 to a year"),
        ({"id": "p", "require_durability": "D9"}, "D0, D1, D2 or D3"),
        ({"id": "p", "require_durability": None}, "D0, D1, D2 or D3"),
        ("p", "a Pool, or a mapping"),
    ],
)
async def test_a_pool_that_says_what_cannot_be_meant_is_refused_by_name(given: Any, text: str) -> None:
    pools = PoolManager(MemoryStore())
    with pytest.raises(InvalidValue, match=text):
        await pools.create_pool(given)
    assert await pools.pools() == []
