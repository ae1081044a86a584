"""A node through outages: it never looks healthy while it does nothing, works again by itself, and always ends in
time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Store
from converge.env import SYSTEM
from converge.errors import StoreUnavailable
from converge.machines.task import TaskState
from converge.model.descriptor import DiscoveryQuery
from converge.model.keys import POOL
from converge.model.pool import Pool
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.network.network import Network
from converge.runtime.node import Node
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.testing._store.outages import Outages, OutageStore
from converge.testing.fixtures import wait_until
from converge.testing.fleet import expire_leases

Lateness = Callable[[], AbstractAsyncContextManager[list[float]]]
LEASE_SEC = 15.0
LEFT_SEC = 0.3
"""What is left of a lease that is not renewed: no test waits for all of it."""


class Worker(Agent):
    """Answers at once, or when it is told to; logs what befalls it."""

    starts: list[str]
    cancels: dict[str, float]
    gate: anyio.Event

    async def on_task(self, task: Task) -> Any:
        """See the class."""
        kind = type(self)
        kind.starts.append(task.id)
        if task.inputs.get("waits"):
            try:
                await kind.gate.wait()
            except BaseException:
                kind.cancels[task.id] = SYSTEM.monotonic()
                raise
        return "done"


@pytest.fixture
def worker() -> type[Worker]:
    """A class of agents of this test's own."""
    return type("Worker", (Worker,), {"starts": [], "cancels": {}, "gate": anyio.Event()})


@pytest.fixture
def outage() -> Outages:
    return Outages()


@pytest.fixture
async def store(outage: Outages) -> AsyncIterator[OutageStore]:
    yield OutageStore(outage)


def node_on(store: Store, **settings: Any) -> Node:
    return Node(store=store, poll_sec=0.05, grace_sec=0.2, **settings)


async def test_after_an_outage_longer_than_the_lease_work_flows_again(
    store: OutageStore,
    outage: Outages,
    worker: type[Worker],
    lateness: Lateness,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(30):
        async with lateness() as late, node_on(store) as node:
            await node.spawn(worker, count=2, pool="p")
            first = node.handle.lease_opened
            long = await node.tasks.submit(Task(pool_id="p", inputs={"waits": True}))
            await wait_until(lambda: worker.starts == [long])
            outage.is_away = True
            assert first is not None
            first._deadline = SYSTEM.monotonic() + LEFT_SEC
            await wait_until(lambda: [*worker.cancels] == [long], what="the handler is cancelled")
            assert worker.cancels[long] < first.deadline + LEASE_SEC / 10 + sum(late), (
                "handlers are cancelled before the lease can end"
            )
            await wait_until(lambda: node.handle.lease_opened is not first, what="the lease is given up", timeout=10)
            await expire_leases(MemoryStore(core=store._core, bell=store._bell))
            await anyio.sleep(0.3)  # the outage goes on
            outage.is_away = False
            worker.gate.set()
            task = await node.tasks.result(await node.tasks.submit(Task(pool_id="p")), timeout=20)
            assert task.state == TaskState.COMPLETED
            assert (await node.tasks.result(long, timeout=20)).state == TaskState.COMPLETED
            await wait_until(lambda: _lists(node, 2), what="the agents are listed again")
            assert len(await node.pools.members("p")) == 2


async def _lists(node: Node, count: int) -> bool:
    return len(await node.discovery.query(DiscoveryQuery(pool_id="p"), refresh_from_store=True)) == count


async def test_a_silent_store_costs_the_handlers_their_time_before_the_lease_can_end(
    store: OutageStore,
    outage: Outages,
    worker: type[Worker],
    lateness: Lateness,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(30):
        async with lateness() as late, node_on(store) as node:
            await node.spawn(worker, pool="p")
            lease = node.handle.lease_opened
            assert lease is not None
            await node.tasks.submit(Task(pool_id="p", inputs={"waits": True}))
            await wait_until(lambda: len(worker.starts) == 1)
            outage.is_silent = True
            lease._deadline = SYSTEM.monotonic() + LEFT_SEC
            try:
                await wait_until(lambda: len(worker.cancels) == 1, what="the handler is cancelled")
            finally:
                outage.is_silent = False
            assert max(worker.cancels.values()) < lease.deadline + LEASE_SEC / 10 + sum(late)


async def test_a_finish_is_tried_again_until_the_store_is_back(
    store: OutageStore, outage: Outages, worker: type[Worker]
) -> None:
    with anyio.fail_after(30):
        async with Node(store=store, lease_sec=15.0, poll_sec=0.05) as node:
            await node.spawn(worker, pool="p")
            task_id = await node.tasks.submit(Task(pool_id="p", inputs={"waits": True}))
            await wait_until(lambda: len(worker.starts) == 1)
            outage.is_away = True
            worker.gate.set()
            await wait_until(lambda: node.feeds[0].error is not None)
            await anyio.sleep(0.2)  # the outage goes on
            outage.is_away = False
            task = await node.tasks.result(task_id, timeout=20)
            assert (task.state, task.attempts, worker.starts) == (TaskState.COMPLETED, 1, [task_id])


@pytest.mark.parametrize("kind", ["is_away", "is_silent"])
async def test_a_node_stops_in_time_during_an_outage(
    store: OutageStore, outage: Outages, worker: type[Worker], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    began = anyio.current_time()
    with anyio.fail_after(20):
        async with Node(store=store, lease_sec=15.0, poll_sec=0.05, grace_sec=0.2) as node:
            await node.spawn(worker, pool="p")
            await node.tasks.submit(Task(pool_id="p", inputs={"waits": True}))
            await wait_until(lambda: len(worker.starts) == 1)
            setattr(outage, kind, True)
    assert anyio.current_time() - began < 0.2 + 10
    assert worker.cancels, "what did not end in time was cancelled"


async def test_a_node_that_cannot_start_leaves_no_lease_behind(
    store: OutageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = []

    async def add_node(network: Network) -> None:
        leases.append(await network._handle.lease())
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(Network, "add_node", add_node)
    with anyio.fail_after(20), pytest.raises(StoreUnavailable, match="the store is away"):
        async with node_on(store):
            raise AssertionError("it has started")
    assert [lease.why_ended for lease in leases] == ["it was closed"]


async def test_claims_that_arrive_while_the_node_stops_go_back_uncounted(
    store: OutageStore, worker: type[Worker]
) -> None:
    outside = MemoryStore(core=store._core, bell=store._bell)
    with anyio.fail_after(20):
        async with node_on(store) as node:
            await node.spawn(worker, count=2, pool="p")
            ids = await node.tasks.submit_many([Task(pool_id="p", inputs={"waits": True}) for _ in range(6)])
            await wait_until(lambda: len(worker.starts) == 2)
        tasks = TaskManager(outside)
        found = [await tasks.get(task_id) for task_id in ids]
    assert {(task.state, task.attempts) for task in found} == {(TaskState.PENDING, 0)}


async def test_an_agent_that_may_no_longer_work_in_its_pool_stops_no_other(
    store: OutageStore, worker: type[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    outside = MemoryStore(core=store._core, bell=store._bell)
    with anyio.fail_after(20):
        async with node_on(store) as node:
            await node.spawn(worker, pool="p")
            await outside.commit([Batch((), (), (POOL("p"),))])
            await wait_until(lambda: 'pool "p" does not exist' in caplog.text, what="it is told that it cannot claim")
            await PoolManager(outside).create_pool(Pool(id="q"))
            await node.spawn(type("Other", (worker,), {"capabilities": ("x",)}), pool="q")
            task = await node.tasks.result(await node.tasks.submit(Task(pool_id="q")), timeout=20)
            assert task.state == TaskState.COMPLETED


async def test_a_hanging_on_stop_does_not_keep_a_node_from_ending(store: OutageStore) -> None:
    class Clinging(Agent):
        async def on_stop(self) -> None:
            await anyio.sleep_forever()

    began = anyio.current_time()
    with anyio.fail_after(20):
        async with node_on(store) as node:
            await node.spawn(Clinging)
    assert anyio.current_time() - began < 0.2 + 10
