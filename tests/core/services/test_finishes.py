"""Claims that are handed back together."""

from __future__ import annotations

from typing import cast

from converge import Task, TaskManager, TaskState
from converge.contracts.store import Store, Turned
from converge.errors import StaleClaim
from converge.machines.events import Completed, Event, Released
from converge.machines.match import Claimer
from converge.model.place import Held
from converge.runtime.claiming.finishing import Finishing
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import Claims
from converge.services.tasks.finish import Finishes


async def test_claims_handed_back_together_are_ready_uncounted_and_a_stale_one_is_named(store: Store) -> None:
    tasks = TaskManager(store)
    ids = await tasks.submit_many(
        [Task(pool_id="docs", type=f"t{n % 3}", ordering_key="k" if n == 0 else None) for n in range(30)]
    )
    claimed = await tasks.claim("a", ["docs"], limit=30)
    found = [tasks._held[bytes.fromhex(task.id.replace("-", ""))][0] for task in claimed]
    await tasks.complete(claimed[4], 1)
    answers = await Finishes(StoreHandle.of(store)).finish_all([(each, Released("a", "it stops")) for each in found])
    assert [isinstance(answer, StaleClaim) for answer in answers] == [at == 4 for at in range(30)]
    states = [(await tasks.get(task_id)).state for task_id in ids]
    assert states.count(TaskState.PENDING) == 29
    again = await tasks.claim("b", ["docs"], limit=30)
    assert {task.id for task in again} == set(ids) - {claimed[4].id}
    assert {task.attempts for task in again} == {1}
    assert all(isinstance(each.place, Held) for each in found)


async def test_claims_handed_back_twice_are_handed_back_once(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit_many([Task(pool_id="docs") for _ in range(3)])
    claimed = await tasks.claim("a", ["docs"], limit=3)
    releases = [
        (tasks._held[bytes.fromhex(task.id.replace("-", ""))][0], Released("a", "it stops")) for task in claimed
    ]
    finishes = Finishes(StoreHandle.of(store))
    assert await finishes.finish_all(releases) == [None] * 3
    assert await finishes.finish_all(releases) == [None] * 3
    assert [len(task.history) for task in await tasks.list(pool_id="docs")] == [1, 1, 1]


async def test_an_end_that_nobody_can_encode_holds_up_no_other(store: Store) -> None:
    tasks = TaskManager(store)
    await tasks.submit_many([Task(pool_id="docs") for _ in range(3)])
    claimed = await tasks.claim("a", ["docs"], limit=3)
    found = [tasks._held[bytes.fromhex(task.id.replace("-", ""))][0] for task in claimed]
    handle = StoreHandle.of(store)
    finishing = Finishing(handle, Claims(handle, "a", ["docs"], Claimer()))
    ends: list[Event] = [Completed(b"1", "a"), Completed(cast(bytes, object()), "a"), Completed(b"3", "a")]
    finishing.waiting = list(zip(found, ends, strict=True))
    while finishing.waiting:
        plan = await finishing.plan(finishing.remove_all())
        outcomes = await (await handle.commits()).commit(plan.batches)
        await finishing.sent(plan, Turned(outcomes, None))
    ended = [await tasks.get(task.id) for task in claimed]
    assert [task.state for task in ended] == [TaskState.COMPLETED, TaskState.PENDING, TaskState.COMPLETED]
    assert "TypeError" in ended[1].history[-1].why
