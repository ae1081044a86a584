"""A task that cannot be read and that nobody claims, on every store: an operator who names it ends it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import attrs
import pytest

from converge import Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Batch, Store
from converge.errors import TornRecord
from converge.ids import id_bytes
from converge.model.keys import ACTIVE, DEDUP, DONE, HELD, KEY, LATER, ORDER, READY, STATE, TASK, TORN, Family
from converge.operations import doctor_store
from converge.operations.doctor_store import check_standing
from converge.operations.tasks import Purging, purge, retry_all
from converge.services.store.pages import read_all

pytestmark = pytest.mark.timeout(60)
STORES = ["memory", "file", "redis", "sql"]
TORN_RECORD = b'{"no": "record"}'


async def one_in_each_place(store: Store) -> dict[str, str]:
    """Return a task of each place in which nobody holds it, by the family that it stands in; and one that is held."""
    tasks, plain = TaskManager(store), Task(pool_id="p", inputs={"n": 1})
    held, ended = await tasks.submit_many([attrs.evolve(plain, max_attempts=1)] * 2)
    first, second = await tasks.claim("agent", ["p"], limit=2)
    assert {first.id, second.id} == {held, ended}
    await tasks.fail(second, "so that it has ended")
    later = attrs.evolve(plain, not_before=datetime.now(UTC) + timedelta(hours=1))
    keyed = attrs.evolve(plain, ordering_key="k")
    ready, parked, active, waiting = await tasks.submit_many(
        [attrs.evolve(plain, dedup_key="d"), later, keyed, attrs.evolve(keyed, dedup_key="behind")]
    )
    return {READY: ready, LATER: parked, ORDER: waiting, DONE: second.id, ACTIVE: active, HELD: first.id}


async def listed(store: Store) -> set[str]:
    """Return what doctor says to do about tasks that stand unread."""
    return {one.mend.split()[3].rstrip(",") for one in await check_standing(store)}


@pytest.mark.parametrize("family", [TASK, STATE])
@pytest.mark.parametrize("place", STORES, indirect=True)
async def test_a_torn_task_that_nobody_claims_is_listed_and_ended_by_who_names_it(
    place: tuple[str, list[str], str], family: Family
) -> None:
    url, plugins, network = place
    async with open_store(url, plugins=plugins, network=network) as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        stand = await one_in_each_place(store)
        await store.commit([Batch((), [(family(id_bytes("id", id_)), TORN_RECORD) for id_ in stand.values()])])
        held = stand.pop(HELD)  # its holder ends it
        assert await listed(store) == set(stand.values())
        with pytest.raises(TornRecord, match=held):
            await retry_all(store, [held])
        if family is STATE:  # what was submitted is whole
            copies = await retry_all(store, list(stand.values()))
            assert {one.state for one in copies} <= {"PENDING"}
        else:
            for id_ in stand.values():
                with pytest.raises(TornRecord, match=id_):
                    await TaskManager(store).retry(id_)
            assert {entry.key[1] for entry in await read_all(store, TORN())} == {
                id_bytes("id", id_) for id_ in stand.values()
            }
            await purge(store, Purging(), is_dry_run=False)
        assert await listed(store) == set()
        assert await store.count([TORN(), DEDUP(), DONE()]) == [0] * 3
        keyed = [0, 0, 0] if family is TASK else [1, 1, 1]  # the copies have that ordering key
        assert await store.count([KEY(), ACTIVE(), ORDER()]) == keyed
        records = [one(id_bytes("id", id_)) for one in (TASK, STATE) for id_ in stand.values()]
        assert await store.get(records) == [None] * len(records)


@pytest.mark.parametrize("place", STORES, indirect=True)
async def test_a_place_whose_record_is_missing_is_listed_and_ended_by_who_names_it(
    place: tuple[str, list[str], str],
) -> None:
    """It counts as a task, so that it must show somewhere before somebody claims it."""
    url, plugins, network = place
    async with open_store(url, plugins=plugins, network=network) as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        stand = await one_in_each_place(store)
        del stand[HELD]
        await store.commit([Batch((), (), [TASK(id_bytes("id", id_)) for id_ in stand.values()])])
        assert await listed(store) == set(stand.values())
        for id_ in stand.values():
            with pytest.raises(TornRecord, match="purge it"):
                await TaskManager(store).retry(id_)
        await purge(store, Purging(), is_dry_run=False)
        assert await listed(store) == set()
        assert await store.count([TORN(), DONE(), READY(), ORDER()]) == [0] * 4


async def test_doctor_looks_behind_the_first_thousand_tasks() -> None:
    async with open_store("memory:") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        *_, last = await TaskManager(store).submit_many([Task(pool_id="p")] * 1_200)
        await store.commit([Batch((), [(TASK(id_bytes("id", last)), TORN_RECORD)])])
        assert await listed(store) == {last}


async def test_a_look_that_takes_too_long_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_store, "LOOK_SEC", 0.0)
    async with open_store("memory:") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        await TaskManager(store).submit_many([Task(pool_id="p")] * 300)
        (finding,) = await check_standing(store)
        assert "200 tasks" in finding.text
