"""Whatever stands in a record, a call of a manager ends with an answer or an error of `converge.errors`, and a sweep
goes on: a store's values are data, never trusted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converge import Agent, DiscoveryQuery, DiscoveryService, MemoryStore, Node, Pool, PoolManager, Task, TaskManager
from converge.contracts.store import Batch, Channel, Conflict, Entry, Range, Store, Take, Turned
from converge.errors import ConvergeError, TornRecord
from converge.ids import id_bytes
from converge.model.keys import ALSO, EPOCH, EXPIRY, FAMILIES, LEASE, TASK, Family, Key
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.services.tasks.sweep import Sweep

pytestmark = pytest.mark.timeout(120)

EXAMPLES = 25 if os.environ.get("FULL_TESTS") == "1" else 5
WRITTEN = [family for family in FAMILIES.values() if family is not EPOCH]
"""A foreign epoch is another history, which has its own tests."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "zz" * 16, "AB" * 16, "ab" * 15, "ab " * 16, "a\0b", "p", "x" * 300, "COMPLETED"]),
    st.sampled_from([[], {}, [1, "a"], {"$bytes": "!"}, {"v": 2}]),
)


@st.composite
def spoiled(draw: st.DrawFn, values: list[bytes]) -> bytes:
    """Draw bytes, JSON, or one of the values with a field of it replaced."""
    kind = draw(st.sampled_from(["field", "bytes", "json"]))
    if kind == "bytes":
        return draw(st.binary(max_size=40))
    if kind == "json" or not values:
        return json.dumps(draw(SCALARS)).encode()
    value = draw(st.sampled_from(values))
    try:
        record = json.loads(value)
    except ValueError:
        return draw(st.binary(max_size=40))
    if isinstance(record, dict) and record:
        record[draw(st.sampled_from(sorted(record)))] = draw(SCALARS)
    elif isinstance(record, list) and record:
        record[draw(st.integers(0, len(record) - 1))] = draw(SCALARS)
    else:
        record = draw(SCALARS)
    return json.dumps(record).encode()


async def a_store() -> tuple[Store, list[str]]:
    """Return a store with tasks in every place, claimed by a process that has died."""
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    async with store.reopen() as dying:
        handle = StoreHandle.of(dying, lease_settings=LeaseSettings(node_key="ab" * 32))
        tasks = TaskManager(dying)
        late = datetime.now(UTC) + timedelta(seconds=0.3)
        plain = Task(pool_id="p", inputs={"n": 1}, topic="t", required_capabilities=("c",))
        keyed = attrs.evolve(plain, ordering_key="k")
        ids = await tasks.submit_many(
            [
                *(attrs.evolve(plain, dedup_key=f"d{number}") for number in range(3)),
                *(keyed, keyed, keyed),
                attrs.evolve(plain, deadline=late),
                attrs.evolve(plain, not_before=late),
            ]
        )
        await PoolManager(dying).join_pool("dead", "p")
        claimed = await tasks.claim("dead", ["p"], capabilities=["c"], limit=4)
        await tasks.complete(claimed[0], "so")
        await tasks.fail(claimed[1], "so")
        lease = await handle.lease()
        lease.abandon()
        await dying.commit([Batch((), [(EXPIRY(lease.id), b"1")])])
        dying.shared = None
    return store, ids


async def everything(store: Store, ids: list[str]) -> None:
    """Ask for everything that a process asks of a store; errors must be our own."""
    tasks, pools = TaskManager(store), PoolManager(store)
    sweep = Sweep(StoreHandle.of(store))
    calls: list[Callable[[], Awaitable[Any]]] = [
        sweep.page,
        sweep.paced_page,
        lambda: pools.pools(),
        lambda: pools.members("p"),
        lambda: pools.join_pool("a", "p"),
        lambda: tasks.list(),
        lambda: tasks.submit(Task(pool_id="p", topic="t", required_capabilities=("c",), ordering_key="k")),
        lambda: tasks.submit(Task(pool_id="p", topic="t", dedup_key="d0", inputs={"n": 1})),
        lambda: tasks.claim("a", ["p"], capabilities=["c"], limit=3),
        lambda: DiscoveryService(store=store).query(DiscoveryQuery(), refresh_from_store=True),
        *(lambda id_=id_: tasks.get(id_) for id_ in ids),
        lambda: tasks.retry(ids[0]),
        *(lambda id_=id_: tasks.cancel(id_) for id_ in ids),
        sweep.page,
    ]
    for call in calls:
        with suppress(ConvergeError):  # it says what it is
            await call()


async def entries(store: Store, family: Family, ids: list[str]) -> list[tuple[Key, bytes]]:
    """Return the keys and values of a family, of these tasks if it is one that is never scanned."""
    found: Sequence[Entry | None]
    if family in ALSO:
        found = await store.get([family(id_bytes("id", id_)) for id_ in ids])
    else:
        (found,) = await store.scan([Range(family(), None, 100)])
    return [(entry.key, entry.value) for entry in found if entry is not None]


@pytest.mark.parametrize("family", WRITTEN, ids=str)
def test_no_value_of_any_record_raises_more_than_our_own_errors(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What contradicts itself looks like what others change all the time, and is tried again as long.
    for module in ("submitting.submit", "finish"):
        monkeypatch.setattr(f"converge.services.tasks.{module}.PATIENCE_SEC", 0.5)
    monkeypatch.setattr("converge.services.tasks.surroundings.FIND_SEC", 0.05)

    async def prepared() -> list[bytes]:
        store, ids = await a_store()
        return [value for _, value in await entries(store, family, ids)]

    values = anyio.run(prepared)
    assert values or family not in ALSO, "there is nothing to spoil"

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(value=spoiled(values), at=st.integers(0, 5))
    def spoil(value: bytes, at: int) -> None:
        async def run() -> None:
            store, ids = await a_store()
            found = await entries(store, family, ids)
            for key, _ in found if at == 5 else found[at : at + 1] or found[:1]:
                await store.commit([Batch((), [(key, value)])])
            await everything(store, ids)
            if store.shared is not None:
                await StoreHandle.of(store).close()

        anyio.run(run)

    spoil()


@pytest.mark.parametrize("inputs", [[1, "a"], None, 7, {"$bytes": "aGk="}], ids=str)
async def test_inputs_that_are_no_mapping_are_torn(inputs: object) -> None:
    """Whoever shows a task, or works on it, asks them for names."""
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    bad, good = await tasks.submit_many([Task(pool_id="p"), Task(pool_id="p")])
    ((key, value),) = await entries(store, TASK, [bad])
    await store.commit([Batch((), [(key, json.dumps(json.loads(value) | {"inputs": inputs}).encode())])])
    with pytest.raises(TornRecord, match="its inputs are no mapping"):
        await tasks.get(bad)
    assert [task.id for task in await tasks.list(pool_id="p")] == [good]


class One(Agent):
    """Works on whatever comes."""

    async def on_task(self, task: Task) -> int:
        return 1


@pytest.mark.anyio
@pytest.mark.parametrize("junk", [b'"abc"', b"", b"null"], ids=str)
@pytest.mark.parametrize("family", [LEASE, EXPIRY], ids=str)
async def test_a_node_whose_lease_was_written_over_goes_on(family: Family, junk: bytes) -> None:
    """Under another lease, if need be: its claims check a record that is no longer its own."""
    store = MemoryStore()
    async with store.reopen() as other, Node(store=other, poll_sec=0.05, grace_sec=0.1) as node:
        await node.spawn(One, pool="p")
        tasks = TaskManager(store)
        await tasks.result(await tasks.submit(Task(pool_id="p")), timeout=10)
        lease = await node.handle.lease()
        await store.commit([Batch((), [(family(lease.id), junk)])])
        for _ in range(3):
            assert (await tasks.result(await tasks.submit(Task(pool_id="p")), timeout=20)).result == 1
        await StoreHandle.of(store).close()


class Refusing(MemoryStore):
    """A store that refuses every take for the sake of a key that nobody has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = 0
        self.is_refusing = False

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        if take is None or not self.is_refusing:
            return await super().turn(batches, take, wake=wake)
        self.takes += 1
        done = await super().turn(batches, None, wake=wake)
        return Turned(done.outcomes, Conflict((take.checks[0][0],)))


@pytest.mark.anyio
async def test_a_conflict_that_explains_nothing_is_met_less_and_less_often() -> None:
    store = Refusing()
    async with Node(store=store, poll_sec=0.05, grace_sec=0.1) as node:
        await node.spawn(One, pool="p")
        await node.tasks.result(await node.tasks.submit(Task(pool_id="p")), timeout=10)
        store.is_refusing = True
        task_id = await node.tasks.submit(Task(pool_id="p"))
        await anyio.sleep(1.0)  # as long as takes are counted
        assert 0 < store.takes < 60
        store.is_refusing = False
        assert (await node.tasks.result(task_id, timeout=20)).result == 1
