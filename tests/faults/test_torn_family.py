"""A record of a task's family that cannot be read keeps nobody else's children, signals and ends waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest

from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.codec import FORMAT, encode
from converge.contracts.store import Batch, Key, Store
from converge.errors import SchemaTooNew, StoreError, TornRecord
from converge.ids import id_bytes
from converge.machines.durable import FOREVER, PARKED
from converge.model.keys import CHILD, CUT, ENDED, KEPT, LATER, OUTBOX, POOL, READY, SIGNALS, STATE, TASK, TOLD, TORN
from converge.model.task import DURABLE, Ended, Spec, State, Wait
from converge.services.durable import children
from converge.services.durable.durable import Durable
from converge.services.durable.signals import Sent
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import read_all

TORN_RECORD = b'{"no": "record"}'
NEWER_RECORD = f'{{"v": {FORMAT + 1}}}'.encode()
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SPOILED = {"torn": TORN_RECORD, "newer": NEWER_RECORD}
TOGETHER, CROWD = 20, 25
"""What a page of a chore holds here; more than that."""


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FAMILY_BATCH", TOGETHER)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """A store with a pool."""
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    yield store
    await StoreHandle.of(store).close()


async def put(store: Store, *puts: tuple[Key, bytes]) -> None:
    """Write past the library; one batch, so one revision."""
    await store.commit([Batch((), puts)])


async def parked(store: Store, count: int) -> list[bytes]:
    """Return tasks that wait for one child each, whose end nobody has told them."""
    tasks = TaskManager(store)
    ids = [id_bytes("id", id_) for id_ in await tasks.submit_many([Task(pool_id="p") for _ in range(count)])]
    for id_ in ids:
        (raw,) = await store.get([TASK(id_)])
        assert raw is not None
        spec = msgspec.json.decode(raw.value, type=Spec)
        state = State("PENDING", 0, FOREVER, spec.rank, wait=Wait((), 1, 0, "a child"), has_children=True, v=DURABLE)
        await store.commit(
            [
                Batch(
                    (),
                    [
                        (STATE(id_), encode(state)),
                        (LATER(FOREVER, id_), encode(spec.lane + PARKED)),
                        (ENDED(id_, id_), encode(Ended("COMPLETED"))),
                        (TOLD(id_, id_), b""),
                    ],
                    [READY(bytes.fromhex(spec.lane), spec.rank, id_)],
                )
            ]
        )
    return ids


async def chores(store: Store) -> None:
    """Carry out what is to be carried out, until nothing is."""
    durable = Durable(StoreHandle.of(store))
    sweep = durable.sweep()
    for _ in range(20):
        if not await sweep.page():
            return
    raise AssertionError("there was always something to do")


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("family", [TASK, STATE, SIGNALS])
async def test_a_parent_that_cannot_be_read_keeps_no_other_parent_waiting(
    store: Store, family: type, spoiled: str
) -> None:
    ids = await parked(store, CROWD + 1)
    await put(store, *((family(id_), SPOILED[spoiled]) for id_ in ids[:CROWD]))
    await chores(store)
    (state,) = await store.get([STATE(ids[-1])])
    assert state is not None and msgspec.json.decode(state.value, type=State).wait is None, "it still waits"
    torn = {entry.key[1] for entry in await read_all(store, TORN())}
    assert torn == (set(ids[:CROWD]) if spoiled == "torn" else set()), "what is torn was not set aside, once"
    left = CROWD if spoiled == "newer" else 0
    assert await store.count([TOLD(), LATER()]) == [left, left]


@pytest.mark.parametrize("spoiled", SPOILED)
async def test_a_child_that_cannot_be_read_keeps_no_other_child_in_the_outbox(store: Store, spoiled: str) -> None:
    (parent,) = await parked(store, 1)
    (raw,) = await store.get([TASK(parent)])
    assert raw is not None
    spec = msgspec.json.decode(raw.value, type=Spec)
    good, bad = b"\xff" * 16, [number.to_bytes(16, "big") for number in range(CROWD)]
    await put(store, (OUTBOX(good), encode(msgspec.structs.replace(spec, ordering_key="k"))))
    await put(store, *((OUTBOX(id_), SPOILED[spoiled]) for id_ in bad), *((CHILD(parent, id_), b"") for id_ in bad))
    await chores(store)
    task, waiting = await store.get([TASK(good), OUTBOX(good)])
    assert task is not None and waiting is None, "it was not submitted"
    assert await store.count([OUTBOX(), TORN()]) == ([0, CROWD] if spoiled == "torn" else [CROWD, 0])


@pytest.mark.parametrize("spoiled", SPOILED)
async def test_a_child_that_cannot_be_read_keeps_no_other_child_from_being_cancelled(
    store: Store, spoiled: str
) -> None:
    tasks = TaskManager(store)
    parent, *texts = await tasks.submit_many([Task(pool_id="p") for _ in range(CROWD + 2)])
    ids = [id_bytes("id", text) for text in texts]
    await put(store, (CUT(id_bytes("id", parent)), b""), *((CHILD(id_bytes("id", parent), id_), b"") for id_ in ids))
    await put(store, *((TASK(id_), SPOILED[spoiled]) for id_ in ids[:CROWD]))
    await chores(store)
    assert (await tasks.get(texts[-1])).state == "CANCELLED"


async def test_the_parent_of_a_task_that_was_set_aside_is_told(store: Store) -> None:
    """Else it would wait for ever for what nobody can finish."""
    (parent,) = await parked(store, 1)
    await store.commit([Batch((), (), [ENDED(parent, parent), TOLD(parent, parent)])])
    child = (2).to_bytes(16, "big")
    await put(store, (OUTBOX(child), TORN_RECORD), (CHILD(parent, child), b""))
    await chores(store)
    (ended, state) = await store.get([ENDED(parent, child), STATE(parent)])
    assert ended is not None and state is not None
    assert msgspec.json.decode(ended.value, type=Ended).state == "FAILED"
    assert msgspec.json.decode(state.value, type=State).wait is None, "it still waits"


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("family", [TASK, STATE, SIGNALS])
async def test_a_signal_to_a_task_that_cannot_be_read_takes_no_other_signal_with_it(
    store: Store, family: type, spoiled: str
) -> None:
    box = Durable(StoreHandle.of(store)).box
    bad, good = [id_bytes("id", id_) for id_ in await TaskManager(store).submit_many([Task(pool_id="p")] * 2)]
    await put(store, (family(bad), SPOILED[spoiled]))
    raised: list[StoreError] = []

    async def send_bad() -> None:
        try:
            await box.send(Sent(bad, "go", b"1", ""))
        except StoreError as error:
            raised.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(send_bad)
        group.start_soon(box.send, Sent(good, "go", b"1", ""))
    assert [type(error) for error in raised] == [TornRecord if spoiled == "torn" else SchemaTooNew]
    assert await store.count([SIGNALS(good), KEPT(good)]) == [1, 1]


@pytest.mark.parametrize("spoiled", SPOILED)
async def test_a_pool_that_cannot_be_read_hides_no_other(
    store: Store, spoiled: str, caplog: pytest.LogCaptureFixture
) -> None:
    await PoolManager(store).create_pool(Pool(id="a"))
    await put(store, (POOL("a"), SPOILED[spoiled]))
    assert [pool.id for pool in await PoolManager(store).pools()] == ["p"]
    assert "pool a" in caplog.text


async def test_what_is_to_be_carried_out_stops_no_sweep(store: Store) -> None:
    """Retention comes after it."""
    await PoolManager(store).create_pool(Pool(id="brief", keep_completed_sec=0.0, dedup_window_sec=0.0))
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="brief"))
    (claimed,) = await tasks.claim("agent", ["brief"])
    await tasks.complete(claimed)
    (parent,) = await parked(store, 1)
    await put(store, (TASK(parent), NEWER_RECORD), (OUTBOX(bytes(16)), NEWER_RECORD))
    await chores(store)
    (gone,) = await store.get([TASK(id_bytes("id", claimed.id))])
    assert gone is None, "the sweep never came to it"
