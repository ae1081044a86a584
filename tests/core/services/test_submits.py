"""Submitting many at once: repeats within one call, ordering keys, and what a lost answer means."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

import anyio
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Entry, Key
from converge.errors import ConvergeError, DedupConflict, InvalidValue, OutcomeUnknown, StoreUnavailable, TornRecord
from converge.ids import id_bytes, id_text
from converge.machines.lane import LANES
from converge.model.keys import KEY, TASK
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
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
    await tasks._handle.close()


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


async def test_one_conflict_after_a_part_was_stored_is_no_reason_to_give_up(
    tasks: TaskManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, looks = tasks._store, 0
    get = store.get

    async def disturbed(keys: Sequence[Key]) -> Sequence[Entry | None]:
        nonlocal looks
        entries = await get(keys)
        if KEY("p", "k") in keys:
            looks += 1
            if looks == 2 and (row := entries[list(keys).index(KEY("p", "k"))]) is not None:
                await store.commit([Batch((), [(row.key, row.value)])])  # another process was faster
        return entries

    monkeypatch.setattr(store, "get", disturbed)
    ids = await tasks.submit_many([Task(pool_id="p", ordering_key="k") for _ in range(300)])
    assert looks == 3 and len(set(ids)) == 300


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
    monkeypatch.setattr("converge.services.tasks.submitting.submit.LANES_SEEN", 0)  # each call begins by forgetting all
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
    await tasks._handle.close()


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "names in another order": (
        {"inputs": {"x": 1, "y": {"a": 1, "b": 2}}},
        {"inputs": {"y": {"b": 2, "a": 1}, "x": 1}},
    ),
    "a whole number with a fraction": ({"inputs": {"n": [5, 2.5]}}, {"inputs": {"n": [5.0, 2.5]}}),
    "a timeout": ({"timeout_sec": 5}, {"timeout_sec": 5.0}),
    "a delay": ({"retry_delay_sec": 2}, {"retry_delay_sec": 2.0}),
    "capabilities": ({"required_capabilities": ["a", "b"]}, {"required_capabilities": ("b", "a", "a")}),
}


@pytest.mark.parametrize("by", [{"id": ONE_ID}, {"dedup_key": "d"}], ids=["id", "dedup key"])
@pytest.mark.parametrize("what", SAME)
async def test_the_same_submit_is_known_however_it_is_written(
    tasks: TaskManager, what: str, by: dict[str, Any]
) -> None:
    first, again = (Task(pool_id="p", **by, **content) for content in SAME[what])
    assert await tasks.submit(again) == await tasks.submit(first)


@pytest.mark.parametrize("other", [{"n": True}, {"n": 1.5}, {"n": "1"}, {"m": 1}], ids=str)
async def test_content_that_only_looks_the_same_is_another(tasks: TaskManager, other: dict[str, object]) -> None:
    await tasks.submit(Task(pool_id="p", dedup_key="d", inputs={"n": 1}))
    with pytest.raises(DedupConflict):
        await tasks.submit(Task(pool_id="p", dedup_key="d", inputs=other))


@pytest.mark.parametrize("by", [{"id": ONE_ID}, {"dedup_key": "d"}], ids=["id", "dedup key"])
async def test_the_same_submit_is_known_after_its_deadline(tasks: TaskManager, by: dict[str, Any]) -> None:
    """The key is looked up first: whoever submits again after a lost answer wants the id, however late."""
    task = Task(pool_id="p", deadline=datetime.now(UTC) + timedelta(seconds=0.2), **by)
    first = await tasks.submit(task)
    with pytest.raises(InvalidValue, match="deadline"):
        while True:  # until that moment has come for the store, too
            await tasks.submit(Task(pool_id="p", deadline=task.deadline))
    assert await tasks.submit(task) == first
    with pytest.raises(DedupConflict):
        await tasks.submit(Task(pool_id="p", deadline=task.deadline, priority=1, **by))


async def test_the_same_submit_is_known_where_its_pool_has_no_room_for_its_lane(tasks: TaskManager) -> None:
    task = Task(pool_id="p", dedup_key="d", type="gone")
    first = await tasks.submit(task)
    (claimed,) = await tasks.claim("a", ["p"], types=["gone"])
    await tasks.complete(claimed)
    lane = tasks._submits._lanes.popitem()[0]
    await tasks._store.commit([Batch((), (), [lane])])  # as one who closes lanes that are empty
    await tasks.submit_many([Task(pool_id="p", type=f"t{number}") for number in range(LANES - 1)])
    assert await tasks.submit(task) == first


async def test_a_task_that_cannot_be_read_is_the_only_one_of_its_call_to_be_refused(tasks: TaskManager) -> None:
    await tasks.submit(Task(pool_id="p", id=ONE_ID))
    await tasks._store.commit([Batch((), [(TASK(id_bytes("id", ONE_ID)), b'"torn"')])])
    with pytest.raises(TornRecord) as refused:
        await tasks.submit_many([Task(pool_id="p"), Task(pool_id="p", id=ONE_ID), Task(pool_id="p")])
    first, none, last = refused.value.ids  # type: ignore[attr-defined]  # as of every error of this call
    assert none is None and (await tasks.get(first)).id == first and (await tasks.get(last)).id == last


class Strange(tzinfo):
    """A zone that fails."""

    def utcoffset(self, dt: datetime | None) -> timedelta:
        raise ValueError("no offset")

    def dst(self, dt: datetime | None) -> None:
        return None

    def tzname(self, dt: datetime | None) -> str:
        return "strange"


WEST, EAST = timezone(timedelta(hours=-23)), timezone(timedelta(hours=23))
FAR = [
    datetime.max.replace(tzinfo=WEST),
    datetime.max.replace(tzinfo=UTC),
    datetime(9999, 1, 2, tzinfo=EAST),
    datetime(2030, 1, 1),  # that is the case
    "2030-01-01",
    float("nan"),
    datetime(2030, 1, 1, tzinfo=Strange()),
]


@pytest.mark.parametrize("name", ["deadline", "not_before"])
@pytest.mark.parametrize("moment", FAR, ids=range(len(FAR)))
async def test_a_moment_that_cannot_be_given_back_is_refused(tasks: TaskManager, name: str, moment: Any) -> None:
    with pytest.raises(ConvergeError, match=name):
        await tasks.submit(Task(pool_id="p", **{name: moment}))


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=EAST), datetime(9998, 12, 31, tzinfo=UTC)], ids=str)
async def test_what_is_accepted_is_given_back(tasks: TaskManager, moment: datetime) -> None:
    task_id = await tasks.submit(Task(pool_id="p", not_before=moment))
    (one,) = [task for task in await tasks.list(pool_id="p") if task.id == task_id]
    assert one.not_before in (None, moment)


UNSTORED = "a\udcffb\0c"
"""As `os.fsdecode` gives a name that is no UTF-8."""


async def test_text_for_people_is_escaped_on_the_way_in(tasks: TaskManager) -> None:
    task = Task(pool_id="p", trace={UNSTORED: UNSTORED}, max_attempts=9, retry_delay_sec=0.0, type="t")
    task_id = await tasks.submit(task)
    (claimed,) = await tasks.claim("a", ["p"], types=["t"])
    assert claimed.trace == {"a\\udcffb\\x00c": "a\\udcffb\\x00c"}
    await tasks.release(claimed, UNSTORED)
    (claimed,) = [one for one in await tasks.claim("a", ["p"], types=["t"], limit=9) if one.id == task_id]
    await tasks.fail(claimed, UNSTORED)
    await tasks.fail(claimed, UNSTORED)  # said again
    await tasks.cancel(task_id, by=UNSTORED, why=UNSTORED)
    whys = [(one.by, one.why) for one in (await tasks.get(task_id)).history]
    assert whys == [("a", "a\\udcffb\\x00c"), ("a", "a\\udcffb\\x00c"), ("a\\udcffb\\x00c", "a\\udcffb\\x00c")]


async def test_a_reason_that_is_no_text_is_refused(tasks: TaskManager) -> None:
    task_id = await tasks.submit(Task(pool_id="p"))
    with pytest.raises(InvalidValue, match="why"):
        await tasks.cancel(task_id, why=5)  # type: ignore[arg-type]  # that is the test
