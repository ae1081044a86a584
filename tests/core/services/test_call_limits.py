"""Core keeps to the limits of a call, and a store that refuses a call is no endless loop."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.contracts.store import LIMITS, Batch, Committed, Conflict, Store, Take, Turned
from converge.errors import InvalidValue
from converge.model.keys import TASK
from converge.services.store.grouping import split
from converge.services.store.handle import StoreHandle


class Strict(MemoryStore):
    """Refuses what is over the limits; its turn is the inherited one."""

    turn, count = Store.turn, Store.count

    async def commit(self, batches: Sequence[Batch], *, wake: Collection[str] = ()) -> Sequence[Committed | Conflict]:
        for checks, puts, deletes, _ in batches:
            if len(checks) + len(puts) + len(deletes) > LIMITS.batch_ops:
                raise InvalidValue("batch", len(checks), "fewer operations")
        return await super().commit(batches, wake=wake)


async def test_the_largest_claim_is_within_the_limits_of_a_batch() -> None:
    store = Strict()
    await PoolManager(store).create_pool(Pool(id="docs"))
    tasks = TaskManager(store)
    await tasks.submit_many([Task(pool_id="docs") for _ in range(1_000)])
    claimed = [len(await tasks.claim("worker", ["docs"], limit=1_000)) for _ in range(3)]
    assert claimed == [LIMITS.taken, LIMITS.taken, 1_000 - 2 * LIMITS.taken]
    await StoreHandle.of(store).close()


class Refusing(MemoryStore):
    """Takes nothing."""

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[str] = ()) -> Turned:
        raise InvalidValue("take", "anything", "nothing")


async def test_a_take_that_the_store_refuses_is_an_error_at_once() -> None:
    store = Refusing()
    await PoolManager(store).create_pool(Pool(id="docs"))
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="docs"))
    with pytest.raises(InvalidValue):
        await tasks.claim("worker", ["docs"])
    await StoreHandle.of(store).close()


def batch(number: int, *, puts: int = 1, size: int = 0) -> Batch:
    """Return a batch that touches no key of another number."""
    keys = [TASK((number * 10_000 + at).to_bytes(16, "big")) for at in range(puts)]
    return Batch((), [(key, b"x" * size) for key in keys])


def test_a_call_is_split_by_its_operations() -> None:
    groups = split([batch(number, puts=1_000) for number in range(50)], None)
    assert [len(group) for group in groups] == [20, 20, 10]


def test_a_call_is_split_by_its_bytes() -> None:
    groups = split([batch(number, size=2**20) for number in range(40)], None)
    assert [len(group) for group in groups] == [16, 16, 8]


def test_a_batch_that_is_over_the_bytes_of_a_call_goes_alone() -> None:
    large = batch(1, puts=20, size=2**20)
    assert split([batch(0), large, batch(2)], None) == [[0, 2], [1]]
