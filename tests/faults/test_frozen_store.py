"""A store that takes calls and never answers: every call of a manager ends in time, and says what is known of it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import DiscoveryQuery, DiscoveryService, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import (
    Batch,
    Channel,
    Committed,
    Conflict,
    Durability,
    Entry,
    Key,
    Prefix,
    Range,
    Store,
    Take,
    Turned,
)
from converge.errors import InvalidValue, OutcomeUnknown, StoreError, StoreUnavailable
from converge.services.durable.agents import AgentRef, AgentRefs
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.testing.fixtures import wait_until

pytestmark = pytest.mark.timeout(60)

CALL_SEC, TIMEOUT_SEC, SLACK_SEC = 0.5, 0.1, 10.0
PATIENT_SEC = 20.0
"""`call_sec` where it is not what ends a call: while the store answers, a busy machine may take long for it."""

UNTIMED = {("TaskManager", "result"), ("AgentRef", "ask"), ("DiscoveryService", "follow")}
"""The timeout of `result` and `ask` is the wait; `follow` runs until it is cancelled."""

MANAGERS = (TaskManager, PoolManager, DiscoveryService, AgentRef)


class FreezingStore(Store):
    """A store that can be told to answer no more."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._thawed = anyio.Event()
        self.thaw()

    def freeze(self) -> None:
        self._thawed = anyio.Event()

    def thaw(self) -> None:
        self._thawed.set()

    @property
    def durability(self) -> Durability:  # type: ignore[override]  # the wrapped store decides
        return self._inner.durability

    async def _wait(self) -> None:
        await self._thawed.wait()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        await self._wait()
        return await self._inner.get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        await self._wait()
        return await self._inner.scan(ranges)

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        await self._wait()
        return await self._inner.count(prefixes)

    async def time(self) -> int:
        await self._wait()
        return await self._inner.time()

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        await self._wait()
        return await self._inner.commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        await self._wait()
        return await self._inner.turn(batches, take, wake=wake)

    async def facts(self) -> Mapping[str, str | int]:
        await self._wait()
        return await self._inner.facts()

    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        return self._inner.watch(channels)

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        return self._inner.reopen()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both loops."""
    return str(request.param)


@pytest.fixture
def call_sec() -> float:
    return PATIENT_SEC


hasty = pytest.mark.parametrize("call_sec", [CALL_SEC])


@pytest.fixture(params=["memory:", "file:"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, call_sec: float) -> AsyncIterator[FreezingStore]:
    url = request.param if request.param == "memory:" else f"file:{tmp_path / 'state.db'}"
    async with open_store(url) as inner:
        freezing = FreezingStore(inner)
        handle = StoreHandle.of(freezing, lease_settings=LeaseSettings(lease_sec=60.0, call_sec=call_sec))
        yield freezing
        freezing.thaw()
        await handle.close()


Calls = dict[tuple[str, str], Callable[..., Awaitable[Any]]]


async def every_call(store: Store) -> Calls:
    """Return a call of each public method that waits for the store, all prepared while it answers."""
    tasks, pools, discovery = TaskManager(store), PoolManager(store), DiscoveryService(store=store)
    virtual = AgentRefs(store).agent("k", pool="p")
    await pools.create_pool(Pool(id="p"))
    await pools.create_pool(Pool(id="listed", admission="allow"))
    ids = await tasks.submit_many([Task(pool_id="p") for _ in range(6)])
    claimed = await tasks.claim("a", ["p"], limit=5)
    await tasks.fail(claimed[4], "so that it can be retried", retry=False)
    await pools.join_pool("a", "p")
    return {
        ("TaskManager", "submit"): lambda **limit: tasks.submit(Task(pool_id="p"), **limit),
        ("TaskManager", "submit_many"): lambda **limit: tasks.submit_many([Task(pool_id="p")], **limit),
        ("TaskManager", "claim"): lambda **limit: tasks.claim("a", ["p"], **limit),
        ("TaskManager", "complete"): lambda **limit: tasks.complete(claimed[0], **limit),
        ("TaskManager", "fail"): lambda **limit: tasks.fail(claimed[1], "so", **limit),
        ("TaskManager", "release"): lambda **limit: tasks.release(claimed[2], **limit),
        ("TaskManager", "report"): lambda **limit: tasks.report("a", claimed[3].id, **limit),
        ("TaskManager", "cancel"): lambda **limit: tasks.cancel(ids[5], **limit),
        ("TaskManager", "retry"): lambda **limit: tasks.retry(claimed[4].id, **limit),
        ("TaskManager", "get"): lambda **limit: tasks.get(ids[0], **limit),
        ("TaskManager", "list"): lambda **limit: tasks.list(**limit),
        ("TaskManager", "signal"): lambda **limit: tasks.signal(ids[5], "go", **limit),
        ("TaskManager", "children"): lambda **limit: tasks.children(ids[5], **limit),
        ("PoolManager", "create_pool"): lambda **limit: pools.create_pool(Pool(id="q"), **limit),
        ("PoolManager", "get"): lambda **limit: pools.get("p", **limit),
        ("PoolManager", "pools"): lambda **limit: pools.pools(**limit),
        ("PoolManager", "set_paused"): lambda **limit: pools.set_paused("p", is_paused=True, **limit),
        ("PoolManager", "change_allowed"): lambda **limit: pools.change_allowed("listed", add=["b"], **limit),
        ("PoolManager", "join_pool"): lambda **limit: pools.join_pool("b", "p", **limit),
        ("PoolManager", "join_many"): lambda **limit: pools.join_many(["b"], "p", **limit),
        ("PoolManager", "leave_pool"): lambda **limit: pools.leave_pool("a", "p", **limit),
        ("PoolManager", "members"): lambda **limit: pools.members("p", **limit),
        ("DiscoveryService", "query"): lambda **limit: discovery.query(
            DiscoveryQuery(), refresh_from_store=True, **limit
        ),
        ("DiscoveryService", "refresh"): lambda **limit: discovery.refresh(**limit),
        ("AgentRef", "state"): lambda **limit: virtual.state(**limit),
        ("AgentRef", "forget"): lambda **limit: virtual.forget(**limit),
    }


WRITES = {"submit", "submit_many", "complete", "create_pool"}
"""Whose first call on a store that they have used before writes."""


async def test_every_call_of_a_manager_that_waits_for_the_store_has_a_timeout(store: FreezingStore) -> None:
    public = {
        (manager.__name__, name)
        for manager in MANAGERS
        for name, method in inspect.getmembers(manager)
        if not name.startswith("_") and inspect.iscoroutinefunction(method)
    }
    assert public - UNTIMED == set(await every_call(store))
    for manager in MANAGERS:
        for kind, name in public:
            if kind == manager.__name__:
                assert "timeout" in inspect.signature(getattr(manager, name)).parameters or (kind, name) in UNTIMED


@pytest.mark.parametrize(
    ("limit", "call_sec"),
    [({}, CALL_SEC), ({"timeout": TIMEOUT_SEC}, PATIENT_SEC), ({"timeout": 0}, PATIENT_SEC)],
    ids=["call_sec", "timeout", "none"],
)
async def test_a_frozen_store_keeps_no_caller(store: FreezingStore, limit: dict[str, float]) -> None:
    """Nor the callers beside it, who wait for the same store."""
    calls = await every_call(store)
    store.freeze()
    late: list[str] = []

    async def ends(name: tuple[str, str], call: Callable[..., Awaitable[Any]]) -> None:
        began = anyio.current_time()
        with anyio.move_on_after(30), pytest.raises((StoreUnavailable, OutcomeUnknown)) as raised:
            await call(**limit)
        lasted = anyio.current_time() - began
        if lasted > limit.get("timeout", 2 * CALL_SEC) + SLACK_SEC:
            late.append(f"{'.'.join(name)} ended after {lasted:.1f} s with {raised.value!r}")

    for name, call in calls.items():
        await ends(name, call)
    assert late == []


@hasty
async def test_a_submit_without_an_answer_says_how_to_go_on(store: FreezingStore) -> None:
    tasks = TaskManager(store)
    await PoolManager(store).create_pool(Pool(id="p"))
    await tasks.submit(Task(pool_id="p"))
    store.freeze()
    for limit in ({}, {"timeout": TIMEOUT_SEC}):
        with pytest.raises(OutcomeUnknown, match="submit it again with that id"):
            await tasks.submit(Task(pool_id="p"), **limit)
        with pytest.raises(OutcomeUnknown, match="submit the same again, which is safe"):
            await tasks.submit(Task(pool_id="p", dedup_key="d"), **limit)


async def test_a_short_timeout_is_no_other_callers(store: FreezingStore) -> None:
    """Each has its own, though the writes of one loop step share a call of the store."""
    tasks = TaskManager(store)
    await PoolManager(store).create_pool(Pool(id="p"))
    await tasks.submit(Task(pool_id="p"))
    done: list[str] = []

    async def submit(name: str, **limit: float) -> None:
        try:
            await tasks.submit(Task(pool_id="p", dedup_key=name), **limit)
            done.append(name)
        except StoreError as error:
            done.append(type(error).__name__)

    store.freeze()
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: submit("short", timeout=0.01))
        group.start_soon(lambda: submit("patient", timeout=20))
        await wait_until(lambda: len(done) == 1, what="the short timeout")
        store.thaw()
    assert sorted(done) in (["OutcomeUnknown", "patient"], ["StoreUnavailable", "patient"])


@hasty
async def test_a_node_ends_the_late_calls_of_its_store(store: FreezingStore) -> None:
    """Its watchdog does, so that no call needs a timer; once the node is left each has one again."""
    await PoolManager(store).create_pool(Pool(id="p"))
    async with Node(store=store, poll_sec=0.05, grace_sec=0.1, call_sec=CALL_SEC) as node:
        await node.tasks.submit(Task(pool_id="p"))
        store.freeze()
        with anyio.fail_after(10), pytest.raises(OutcomeUnknown, match="submit it again with that id"):
            await node.tasks.submit(Task(pool_id="p"))
        store.thaw()
    store.freeze()
    with anyio.fail_after(10), pytest.raises(StoreError):
        await TaskManager(store).submit(Task(pool_id="p"))


@pytest.mark.parametrize("timeout", [-1, "1", True, float("nan")], ids=str)
async def test_a_timeout_is_a_number_of_seconds(store: FreezingStore, timeout: Any) -> None:
    with pytest.raises(InvalidValue, match="timeout"):
        await TaskManager(store).list(timeout=timeout)
