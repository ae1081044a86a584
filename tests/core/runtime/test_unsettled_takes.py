"""A take whose answer was lost is settled, whoever takes next, whatever fails or is cancelled meanwhile; a returned
result is stored though its node's block is cancelled; nothing begins under a lease that was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch, Channel, Entry, Key, Store, Take, Taken, Turned
from converge.errors import LeaseEnded, OutcomeUnknown, StoreUnavailable
from converge.model.keys import KEY, LEASE, ORDER
from converge.model.place import Held
from converge.runtime import stopping
from converge.services.store.handle import StoreHandle
from converge.testing.faults import FaultPlan, FaultyStore
from converge.testing.fixtures import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop waits for its store for as long as that takes: what a busy machine leaves undone is not the question."""
    for name in ("RELEASE_SEC", "SETTLE_SEC"):
        monkeypatch.setattr(stopping, name, 30.0)


@pytest.fixture(params=["memory", "file"])
async def inner(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store with the pool."""
    async with open_store("memory:" if request.param == "memory" else f"file:{tmp_path}/state.db") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        yield store


class Cut(FaultyStore):
    """Loses the answer of the next take that takes something; then it refuses to read the lease while it is away."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner, FaultPlan(seed=0, likelihood={}))
        self.is_armed = self.is_away = False
        self.is_cut, self.may_answer = anyio.Event(), anyio.Event()
        self.is_late = False

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if self.is_away and keys[0][0] is LEASE:
            raise StoreUnavailable("it is away")
        return await super().get(keys)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        turned = await super().turn(batches, take, wake=wake)
        if self.is_armed and isinstance(turned.taken, Taken) and turned.taken.rests:
            self.is_armed = False
            self.is_cut.set()
            if not self.is_late:
                self.is_away = True
                raise OutcomeUnknown("the connection was cut before the reply")
            await self.may_answer.wait()
        return turned


@asynccontextmanager
async def cut_of(inner: Store) -> AsyncIterator[Cut]:
    """Another handle on the store, which can be cut."""
    async with inner.reopen() as other:
        cut = Cut(other)
        try:
            yield cut
        finally:
            if isinstance(cut.shared, StoreHandle):
                await cut.shared.close()


async def state_of(store: Store, task_id: str) -> tuple[str, int]:
    """The task's state, and how many attempts were counted."""
    task = await TaskManager(store).get(task_id)
    return task.state, task.attempts


async def _is_in(store: Store, task_id: str, state: TaskState, attempts: int) -> bool:
    return await state_of(store, task_id) == (state, attempts)


async def test_another_manager_of_the_handle_settles_what_a_claim_could_not(inner: Store) -> None:
    async with cut_of(inner) as cut:
        one, two = TaskManager(cut), TaskManager(cut)
        task_id = await one.submit(Task(pool_id="p", max_attempts=1))
        cut.is_armed = True
        with pytest.raises(OutcomeUnknown):
            await one.claim("a", ["p"])
        assert await state_of(inner, task_id) == (TaskState.ASSIGNED, 1)
        with pytest.raises(StoreUnavailable):
            await two.claim("b", ["p"], types=["none"])
        cut.is_away = False
        assert await two.claim("b", ["p"], types=["none"]) == []
        assert await state_of(inner, task_id) == (TaskState.PENDING, 0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_settling_meets_takes_the_place_of_no_cancellation(inner: Store, anyio_backend: str) -> None:
    async with cut_of(inner) as cut:
        tasks = TaskManager(cut)
        await tasks.submit(Task(pool_id="p"))
        cut.is_armed = cut.is_late = True
        claim = asyncio.ensure_future(tasks.claim("a", ["p"]))
        await cut.is_cut.wait()
        cut.is_away = True
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
        cut.is_away = False
        cut.may_answer.set()
        assert len(await tasks.claim("a", ["p"])) == 1


class Worker(Agent):
    """Holds its only slot until it is let go."""

    gate: anyio.Event
    began: anyio.Event

    async def on_task(self, task: Task) -> str:
        """See the class."""
        self.began.set()
        await self.gate.wait()
        return "done"


def worker(cls: type[Worker] = Worker) -> type[Worker]:
    """A class of agents of this test's own."""
    return type(cls.__name__, (cls,), {"gate": anyio.Event(), "began": anyio.Event()})


async def test_a_node_whose_slots_are_busy_settles_too(inner: Store) -> None:
    busy = worker()
    async with cut_of(inner) as cut, Node(store=cut, poll_sec=0.1) as node:
        await node.spawn(busy, pool="p")
        await node.tasks.submit(Task(pool_id="p"))
        await busy.began.wait()
        task_id = await node.tasks.submit(Task(pool_id="p", max_attempts=1))
        cut.is_armed = True
        with pytest.raises(OutcomeUnknown):
            await node.tasks.claim("a", ["p"])
        cut.is_away = False
        await wait_until(lambda: _is_in(inner, task_id, TaskState.PENDING, 0), what="the task went back, uncounted")
        busy.gate.set()


async def test_a_graceful_stop_settles_its_last_takes_before_the_lease_ends(inner: Store) -> None:
    quick = worker()
    async with cut_of(inner) as cut, Node(store=cut, poll_sec=0.5) as node:
        await node.spawn(quick, pool="p")
        cut.is_armed = True
        task_id = await TaskManager(inner).submit(Task(pool_id="p", max_attempts=1))
        await cut.is_cut.wait()
        async with anyio.create_task_group() as group:
            group.start_soon(node.stop)
            await anyio.sleep(0.1)  # the store is away when the stop begins, and back before anything times out
            cut.is_away = False
        assert not quick.began.is_set()
        assert await state_of(inner, task_id) == (TaskState.PENDING, 0)


class Across(FaultyStore):
    """As any store across a network: a read waits, and can be cancelled there."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner, FaultPlan(seed=0, likelihood={}))
        self.is_finishing = anyio.Event()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if any(key[0] in (KEY, ORDER) for key in keys):
            self.is_finishing.set()
        await anyio.sleep(0.02)
        return await super().get(keys)


async def test_a_result_on_its_way_is_stored_though_the_block_of_its_node_is_cancelled(inner: Store) -> None:
    quick = worker()
    quick.gate.set()
    async with inner.reopen() as other:
        across = Across(other)
        tasks = TaskManager(inner)
        ids = await tasks.submit_many([Task(pool_id="p", ordering_key="k", max_attempts=1) for _ in range(2)])
        with anyio.CancelScope() as scope:
            async with Node(store=across, poll_sec=0.2, grace_sec=5) as node:
                across.is_finishing = anyio.Event()
                await node.spawn(quick, pool="p")
                await quick.began.wait()
                await across.is_finishing.wait()
                scope.cancel()
                await anyio.sleep_forever()
        states = [await state_of(inner, task_id) for task_id in ids]
        assert states[0] == (TaskState.COMPLETED, 1), states
        assert states[1] in [(TaskState.COMPLETED, 1), (TaskState.PENDING, 0)], states


class Tidy(Worker):
    """Ends its work whoever cancels it."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        with anyio.CancelScope(shield=True):
            await super().on_task(task)
        return "done"


async def test_a_result_that_comes_after_the_block_was_cancelled_is_stored(inner: Store) -> None:
    tidy = worker(Tidy)
    tasks = TaskManager(inner)
    task_id = await tasks.submit(Task(pool_id="p", max_attempts=1))

    async def let_go(scope: anyio.CancelScope) -> None:
        await tidy.began.wait()
        scope.cancel()
        await anyio.sleep(0.2)  # by then the stop has nothing left to do but to wait for this handler
        tidy.gate.set()

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with Node(store=inner, poll_sec=0.2, grace_sec=5) as node:
                await node.spawn(tidy, pool="p")
                group.start_soon(let_go, scope)
                await anyio.sleep_forever()
    assert await state_of(inner, task_id) == (TaskState.COMPLETED, 1)


async def test_a_take_that_is_answered_after_the_lease_was_lost_starts_no_handler_under_it(inner: Store) -> None:
    quick = worker()
    async with cut_of(inner) as cut, Node(store=cut, poll_sec=0.1, grace_sec=0.2) as node:
        await node.spawn(quick, pool="p")
        lease = await node.handle.lease()
        cut.is_armed = cut.is_late = True
        task_id = await TaskManager(inner).submit(Task(pool_id="p", max_attempts=3))
        await cut.is_cut.wait()
        lease.give_up("the test says so")
        await wait_until(lambda: node.handle.lease_opened not in (lease, None), timeout=30, what="another lease")
        cut.may_answer.set()
        await quick.began.wait()
        task = await TaskManager(inner).get(task_id)
        (other,) = [slot.current for feed in node.feeds for slot in feed.slots.slots if slot.current is not None]
        assert isinstance(other.place, Held)
        assert other.place.token == task.token, "it runs under a claim that has gone back"
        quick.gate.set()
        assert (await node.tasks.result(task_id, timeout=10)).state == TaskState.COMPLETED


async def test_a_claim_that_is_answered_after_the_lease_was_lost_says_so_and_holds_nothing(inner: Store) -> None:
    async with cut_of(inner) as cut:
        tasks = TaskManager(cut)
        task_id = await tasks.submit(Task(pool_id="p", max_attempts=1))
        lease = await StoreHandle.of(cut).lease()
        cut.is_armed = cut.is_late = True

        async def lose() -> None:
            await cut.is_cut.wait()
            lease.give_up("the test says so")
            cut.may_answer.set()

        async with anyio.create_task_group() as group:
            group.start_soon(lose)
            with pytest.raises(LeaseEnded):
                await tasks.claim("a", ["p"])
        assert await state_of(inner, task_id) == (TaskState.PENDING, 0)
        assert [task.id for task in await tasks.claim("a", ["p"])] == [task_id]
