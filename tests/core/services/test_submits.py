"""Submitting many at once: repeats within one call, ordering keys, and what a lost answer means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import anyio
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Entry, Key
from converge.errors import DedupConflict, OutcomeUnknown, StoreUnavailable
from converge.ids import id_text
from converge.model.keys import KEY
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.pools import PoolManager
from converge.services.tasks.manager import TaskManager
from converge.services.tasks.surroundings import read_task
from converge.testing.checked import CheckedStore
from converge.testing.faults import Fault, FaultPlan, FaultyStore

ONE_ID = id_text(bytes(15) + b"\1")


@pytest.fixture
def plan() -> FaultPlan:
    return FaultPlan(seed=1, likelihood={})


@pytest.fixture
async def tasks(plan: FaultPlan) -> AsyncIterator[TaskManager]:
    store = CheckedStore(FaultyStore(MemoryStore(), plan))
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="p", ordering_key="other"))  # opens the lane
    yield tasks
    await tasks._opened.close()


@pytest.mark.parametrize("ordering_key", [None, "k"])
async def test_a_dedup_key_named_twice_in_one_call_is_one_task(tasks: TaskManager, ordering_key: str | None) -> None:
    ids = await tasks.submit_many([Task(pool_id="p", dedup_key="d", ordering_key=ordering_key) for _ in range(3)])
    assert len(ids) == 3 and len(set(ids)) == 1
    assert len(await tasks.list(pool_id="p")) == 2


@pytest.mark.parametrize("ordering_key", [None, "k"])
async def test_an_id_named_twice_in_one_call_is_one_task(tasks: TaskManager, ordering_key: str | None) -> None:
    ids = await tasks.submit_many([Task(pool_id="p", id=ONE_ID, ordering_key=ordering_key) for _ in range(2)])
    assert ids == [ONE_ID, ONE_ID]
    claimed = await tasks.claim("agent", ["p"], limit=10)
    await tasks.complete(next(task for task in claimed if task.id == ONE_ID))
    assert await tasks.claim("agent", ["p"], limit=10) == []


@pytest.mark.parametrize("ordering_key", [None, "k"])
async def test_other_content_under_a_key_of_the_same_call_is_refused(
    tasks: TaskManager, ordering_key: str | None
) -> None:
    with pytest.raises(DedupConflict) as refused:
        await tasks.submit_many(
            [Task(pool_id="p", dedup_key="d", inputs={"n": n}, ordering_key=ordering_key) for n in range(2)]
        )
    first, second = refused.value.ids  # type: ignore[attr-defined]
    assert first is not None and second is None


async def test_more_tasks_of_one_ordering_key_than_a_batch_holds_keep_their_order(tasks: TaskManager) -> None:
    two = TaskManager(tasks._store)
    async with anyio.create_task_group() as group:

        async def disturb() -> None:
            for _ in range(5):
                await two.submit(Task(pool_id="p", ordering_key="k"))

        group.start_soon(disturb)
        ids = await tasks.submit_many([Task(pool_id="p", ordering_key="k") for _ in range(600)])
    numbers = [(await read_task(tasks._store, bytes.fromhex(id_.replace("-", ""))))[0].number for id_ in ids]
    assert numbers == sorted(numbers)
    assert len(set(numbers)) == 600


async def test_a_lost_answer_ends_as_one_task(tasks: TaskManager, plan: FaultPlan) -> None:
    plan.script([Fault.LOSE_REPLY, Fault.LOSE_REPLY])
    task_id = await tasks.submit(Task(pool_id="p", dedup_key="d"))
    assert [task.id for task in await tasks.list(pool_id="p") if task.dedup_key] == [task_id]


async def test_a_submit_that_may_have_been_stored_is_never_called_not_applied(
    tasks: TaskManager, plan: FaultPlan
) -> None:
    plan.script([Fault.LOSE_REPLY, Fault.FAIL_BEFORE])
    with pytest.raises(OutcomeUnknown):
        await tasks.submit(Task(pool_id="p", id=ONE_ID))
    assert (await tasks.get(ONE_ID)).id == ONE_ID


async def test_a_submit_that_never_reached_the_store_is_not_applied(tasks: TaskManager, plan: FaultPlan) -> None:
    plan.script([Fault.FAIL_BEFORE])
    with pytest.raises(StoreUnavailable):
        await tasks.submit(Task(pool_id="p", id=ONE_ID))


class Interrupted(MemoryStore):
    """Lets something else happen, once, while the row of an ordering key is read."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        entries = await super().get(keys)
        if self.meanwhile is not None and KEY("p", "k") in keys:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return entries


async def test_a_lane_that_another_call_forgets_meanwhile_is_opened_again_and_order_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("converge.services.tasks.submit.LANES_SEEN", 0)  # each call begins by forgetting all
    store = Interrupted()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    store.meanwhile = lambda: tasks.submit(Task(pool_id="p", type="b"))
    ids = await tasks.submit_many([Task(pool_id="p", type=kind, ordering_key="k") for kind in ("a", "b", "a")])
    assert store.meanwhile is None, "nothing happened meanwhile"
    claimed = []
    while some := await tasks.claim("agent", ["p"], limit=10):
        claimed += [task.id for task in some if task.ordering_key == "k"]
        for task in some:
            await tasks.complete(task)
    assert claimed == ids
    await tasks._opened.close()
