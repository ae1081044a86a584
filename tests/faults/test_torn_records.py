"""A record that is damaged, or another program's, is an error that names it, never "no such task"; whoever works beside
it goes on.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from uuid import UUID

import anyio
import attrs
import pytest

from converge import Agent, DiscoveryQuery, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.codec import FORMAT
from converge.contracts.store import Batch, Key, Range, Store
from converge.errors import NoSuchPool, NoSuchTask, SchemaTooNew, TornRecord
from converge.ids import id_bytes
from converge.model.keys import (
    ACTIVE,
    AGENT,
    DEAD,
    DEDUP,
    EXPIRY,
    FAMILIES,
    HELD,
    KEY,
    LANE,
    LEASE,
    MEMBER,
    NOTICE,
    ORDER,
    POOL,
    READY,
    STATE,
    TASK,
    TORN,
    Family,
)
from converge.operations.tasks import Purging, purge
from converge.services.store.handle import POOL_FRESH_SEC, StoreHandle
from converge.services.store.pages import read_all
from converge.testing.fixtures import wait_until
from converge.testing.fleet import COMMAND, expire_leases

pytestmark = pytest.mark.timeout(60)

DAMAGES: dict[str, bytes] = {
    "empty": b"",
    "zeros": b"\0" * 40,
    "not UTF-8": b'{"pool":"\xff\xfe"}',
    "a number": b"17",
    "null": b"null",
    "another program's": b'{"job_id": 17, "status": "queued", "payload": {"to": "a@example.org"}}',
    "deep": b"[" * 20_000 + b"]" * 20_000,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The store's file."""
    return tmp_path / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """A store with two pools."""
    async with open_store(f"file:{path}") as store:
        pools = PoolManager(store)
        for pool in ("faults", "beside"):
            await pools.create_pool(Pool(id=pool))
        yield store


class Doubler(Agent):
    """Works on whatever comes."""

    async def on_task(self, task: Task) -> int:
        return int(task.inputs["n"]) * 2


def damage(path: Path, family: Family, value: bytes, **parts: object) -> None:
    """Write over the value of one row, past the library."""
    where = " and ".join(f'"{name}" = ?' for name in parts) or "1"
    connection = sqlite3.connect(path)
    try:
        with connection:
            changed = connection.execute(
                f"update f_{family} set v = cast(? as text) where {where}", (value, *parts.values())
            ).rowcount
            assert changed == 1, f"{changed} rows were damaged"
    finally:
        connection.close()


def torn(raw: bytes, what: str) -> bytes:
    """Return the record as a torn write, or a flipped bit, leaves it; or what never was one of ours."""
    if what == "cut short":
        return raw[: random.Random(raw).randrange(1, len(raw))]
    if what == "a byte flipped":
        at = raw.index(b'"') + 1
        return raw[:at] + bytes([raw[at] ^ 0x80]) + raw[at + 1 :]
    return DAMAGES[what]


async def value_of(store: Store, key: Key) -> bytes:
    """Return the value of a key that is there."""
    (entry,) = await store.get([key])
    assert entry is not None
    return entry.value


async def good_ones_complete(node: Node, pools: tuple[str, ...] = ("faults", "beside")) -> None:
    """Submit tasks and see them done: the agents still work."""
    for pool in pools:
        ids = await node.tasks.submit_many([Task(pool_id=pool, inputs={"n": n}) for n in range(5)])
        assert [(await node.tasks.result(task_id, timeout=10)).result for task_id in ids] == [0, 2, 4, 6, 8]


def node_of(path: Path) -> Node:
    """A node that sweeps often."""
    return Node(store=f"file:{path}", poll_sec=0.05, grace_sec=0.2)


ALL = ["cut short", "a byte flipped", *DAMAGES]


@pytest.mark.parametrize("what", ALL)
@pytest.mark.parametrize("family", [TASK, STATE])
async def test_a_torn_record_of_a_task_is_told_and_the_others_are_worked_on(
    path: Path, store: Store, family: Family, what: str
) -> None:
    """It is claimed like any other, since a claim reads nothing; then it is set aside, and nobody dies of it."""
    tasks = TaskManager(store)
    victim = await tasks.submit(
        Task(pool_id="faults", inputs={"n": 1}, priority=10, max_attempts=9, retry_delay_sec=0.0)
    )
    (claimed,) = await tasks.claim("earlier", ["faults"])
    await tasks.fail(claimed, "so that it has a state")
    id_ = bytes.fromhex(victim.replace("-", ""))
    damage(path, family, torn(await value_of(store, family(id_)), what), id=id_)
    with pytest.raises(TornRecord, match=victim):
        await tasks.get(victim)
    async with node_of(path) as node:
        await node.spawn(Doubler, pool=["faults", "beside"])
        await good_ones_complete(node)
        for call in (node.tasks.get, node.tasks.result, node.tasks.cancel):
            with pytest.raises(TornRecord, match=victim):
                await call(victim)
        assert [entry.key for entry in await read_all(store, TORN())] == [TORN(id_)]
        if family is STATE:  # what was submitted is whole
            assert (await node.tasks.result(await node.tasks.retry(victim), timeout=10)).result == 2
            assert await store.get([TORN(id_), TASK(id_), STATE(id_)]) == [None, None, None]
        else:
            with pytest.raises(TornRecord, match=victim):
                await node.tasks.retry(victim)
        await good_ones_complete(node)
    with pytest.raises(NoSuchTask):
        await tasks.get("01990000-0000-7000-8000-000000000000")


@pytest.mark.parametrize("what", ["cut short", "a byte flipped", "another program's", "deep"])
async def test_a_torn_record_of_a_pool_is_told_and_the_other_pools_are_worked_on(
    path: Path, store: Store, what: str
) -> None:
    """Agents that are members of both pools go on with the other one; nobody takes the torn pool for one that is not
    there.
    """
    async with node_of(path) as node:
        await node.spawn(Doubler, pool=["faults", "beside"])
        await good_ones_complete(node)
        damage(path, POOL, torn(await value_of(store, POOL("faults")), what), id="faults")
        tasks = TaskManager(store)
        await anyio.sleep(POOL_FRESH_SEC)  # a record that was read lately is not read again
        with pytest.raises(TornRecord, match="pool faults"):
            await PoolManager(store).get("faults")
        with pytest.raises(TornRecord, match="pool faults"):
            await tasks.submit(Task(pool_id="faults"))
        assert await PoolManager(store).create_pool(Pool(id="faults")) is False, (
            "a pool whose record is torn was taken for one that is not there"
        )
        await good_ones_complete(node, ("beside",))


async def test_a_pool_that_is_gone_is_told_once_and_the_other_pools_are_worked_on(
    path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Its record was deleted by hand."""
    async with node_of(path) as node:
        await node.spawn(Doubler, pool=["faults", "beside"])
        await good_ones_complete(node)
        await store.commit([Batch(deletes=[POOL("faults")])])
        await wait_until(lambda: 'pool "faults" does not exist' in caplog.text)
        for _ in range(5):
            await good_ones_complete(node, ("beside",))
        with pytest.raises(NoSuchPool):
            await TaskManager(store).claim("someone", ["faults", "beside"])
    assert caplog.text.count('pool "faults" does not exist') == 1


@pytest.mark.parametrize("family", [AGENT, EXPIRY, LEASE, MEMBER])
@pytest.mark.parametrize("what", ["cut short", "another program's", "not UTF-8"])
async def test_torn_records_of_another_process_harm_nobody(path: Path, store: Store, family: Family, what: str) -> None:
    """Its descriptor is not listed; the others are, and their work goes on."""
    async with Node(store=store, poll_sec=0.05, grace_sec=0.2) as torn_one:
        (listed,) = await torn_one.spawn(Doubler, pool="beside")
        lease = (await torn_one.handle.lease()).id
        keys: list[Key] = [AGENT(lease, listed.id), EXPIRY(lease), LEASE(lease), MEMBER("beside", listed.id)]
        (key,) = [key for key in keys if key[0] is family]
        parts = dict(zip(family.parts, key[1:], strict=True))
        damage(path, family, torn(await value_of(store, key), what), **parts)
        async with node_of(path) as node:
            (mine,) = await node.spawn(Doubler, pool=["faults", "beside"])
            await good_ones_complete(node, ("faults",))
            ids = {
                agent.id
                for agent in await node.discovery.query(DiscoveryQuery(pool_id="faults"), refresh_from_store=True)
            }
            assert ids == {mine.id}
            await good_ones_complete(node, ("faults",))


@pytest.mark.parametrize(
    "what",
    ["another program's", "not UTF-8", "empty"] if os.environ.get("FULL_TESTS") == "1" else ["another program's"],
)
@pytest.mark.parametrize(
    "family",
    [
        "task",
        "state",
        "lane",
        "later",
        "ready",
        "held",
        "key",
        "order",
        "limit",
        "dedup",
        "notice",
        "done",
        "dead",
        "joined",
    ],
)
async def test_a_torn_row_of_any_family_stops_nobody(path: Path, store: Store, family: str, what: str) -> None:
    """One row of each family that a task may have around it, one of them damaged; then the holder dies, and a node
    takes all of it up.
    """
    whole = await everything_around(store)
    key = (await rows(store, FAMILIES[family]))[0]
    value = await value_of(store, key)
    damage(
        path,
        key[0],
        torn(value, what) if value or what != "cut short" else b"x",
        **dict(zip(key[0].parts, key[1:], strict=True)),
    )
    async with node_of(path) as node:
        await node.spawn(Doubler, pool=["faults", "beside"])
        await good_ones_complete(node, ("beside",))
        if family != "lane":  # that one is its own
            assert (await node.tasks.result(whole, timeout=10)).result == 2, (
                "what the dead process held beside it did not come back"
            )
        await good_ones_complete(node)


async def everything_around(store: Store) -> str:
    """Tasks in each place that there is, claimed by a process that has died; return one of those that it held."""
    async with store.reopen() as handle:
        opened = StoreHandle.of(handle)
        tasks = TaskManager(handle)
        kind = Task(pool_id="faults", inputs={"n": 1}, topic="stays", retry_delay_sec=600.0)
        keyed = attrs.evolve(kind, ordering_key="k")
        late = attrs.evolve(kind, deadline=datetime.now(UTC) + timedelta(seconds=600))
        ids = await tasks.submit_many([attrs.evolve(keyed, dedup_key="d"), keyed, keyed, late, kind, kind, kind])
        await PoolManager(handle).join_pool("earlier", "faults")
        claimed = await tasks.claim("earlier", ["faults"], topics=["stays"], limit=4)
        await tasks.complete(claimed[2])
        await tasks.fail(claimed[3], "later")
        lease = await opened.lease()
        await handle.commit([Batch((), [(NOTICE(lease.id, bytes(16)), b""), (DEAD(bytes(15) + b"x"), b"")])])
        lease.abandon()
        await expire_leases(handle)
        handle.shared = None  # nobody is left who would end it
    return ids[3]


async def rows(store: Store, family: Family) -> list[Key]:
    """Return the keys of a family."""
    (page,) = await store.scan([Range(family(), None, 100)])
    return [entry.key for entry in page]


@pytest.mark.parametrize("family", [TASK, STATE, POOL, LANE, KEY])
async def test_a_record_of_a_newer_release_is_told_as_one(store: Store, family: Family) -> None:
    """Not as a torn one: there is nothing to mend but the version of this process, which leaves it as it is."""
    await everything_around(store)
    tasks = TaskManager(store)
    key = (await rows(store, family))[0]
    newer = {**json.loads(await value_of(store, key)), "v": FORMAT + 1, "what_it_added": [1, 2]}
    await store.commit([Batch((), [(key, json.dumps(newer).encode())])])
    await anyio.sleep(POOL_FRESH_SEC)  # a record that was read lately is not read again
    with pytest.raises(SchemaTooNew, match="newer release"):
        if family in (TASK, STATE):
            await tasks.get(str(UUID(bytes=key[1])))
        elif family is POOL:
            await PoolManager(store).get(key[1])
        else:
            await tasks.submit(Task(pool_id="faults", topic="stays", ordering_key="k"))
            await TaskManager(store).claim("another", ["faults"])
    assert json.loads(await value_of(store, key)) == newer


@pytest.mark.parametrize("family", [TASK, STATE])
@pytest.mark.parametrize("where", ["active", "waiting"])
async def test_a_torn_task_of_an_ordering_key_lets_the_others_of_its_key_go_on(
    store: Store, family: Family, where: str
) -> None:
    """Whether it stands before them or between them; it is set aside once, and an operator ends it."""
    tasks = TaskManager(store, poll_sec=0.05)
    ids = await tasks.submit_many([Task(pool_id="faults", ordering_key="k", dedup_key=f"d{n}") for n in range(3)])
    torn_id = ids[0 if where == "active" else 1]
    key = family(id_bytes("id", torn_id))
    await store.commit([Batch((), [(key, b'{"no": "record"}')])])
    done: list[str] = []
    with anyio.fail_after(20):
        while len(done) < 2:
            for task in await tasks.claim("agent", ["faults"]):
                done.append(task.id)
                await tasks.complete(task)
    assert done == [task_id for task_id in ids if task_id != torn_id]
    assert [entry.key[1] for entry in await read_all(store, TORN())] == [id_bytes("id", torn_id)]
    wanted = Purging()
    assert [(one.state, one.count) for one in await purge(store, wanted, is_dry_run=True)][-1] == ("unreadable", 1)
    await purge(store, wanted, is_dry_run=False)
    assert await store.count([TORN(), DEDUP(), KEY(), ACTIVE(), ORDER()]) == [0] * 5
    records = [family(id_bytes("id", task_id)) for family in (TASK, STATE) for task_id in ids]
    assert await store.get(records) == [None] * 6  # of families that are never counted


async def test_a_torn_task_is_told_once_listed_by_doctor_and_ended_by_the_command(
    path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = TaskManager(store)
    victims = await tasks.submit_many([Task(pool_id="faults", priority=10) for _ in range(2)])
    damage(path, TASK, b"torn", id=id_bytes("id", victims[0]))
    for victim in victims[1:]:
        await store.commit([Batch((), [(STATE(id_bytes("id", victim)), b'"torn"')])])
    async with node_of(path) as node:
        await node.spawn(Doubler, pool="faults")
        await good_ones_complete(node, ("faults",))
        await good_ones_complete(node, ("faults",))
    assert sorted(victim for victim in victims for line in said(caplog) if f"retry {victim}" in line) == victims
    doctor = await command("doctor", "--store", f"file:{path}", "--json")
    assert all(victim in doctor.stdout.decode() for victim in victims)
    retried = await command("tasks", "retry", victims[1], "--store", f"file:{path}", "--json")
    copy_id = json.loads(retried.stdout)["retry_id"]
    assert (await tasks.get(copy_id)).trace["retry_of"] == victims[1]
    purged = await command("tasks", "purge", "--all-pools", "--yes", "--json", "--store", f"file:{path}")
    assert "unreadable" in purged.stdout.decode()
    assert await read_all(store, TORN()) == []


async def test_a_claimed_record_of_a_newer_format_goes_back_uncounted_and_its_lane_is_left_alone(
    path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """By this process: one of a newer release, which it wakes, can work on it. Other lanes go on."""
    tasks = TaskManager(store)
    newer = await tasks.submit(Task(pool_id="faults", topic="newer", inputs={"n": 1}, priority=10))
    id_ = id_bytes("id", newer)
    record = {**json.loads(await value_of(store, TASK(id_))), "v": FORMAT + 1, "what_it_added": [1, 2]}
    await store.commit([Batch((), [(TASK(id_), json.dumps(record).encode())])])
    (ready,) = await rows(store, READY)
    async with node_of(path) as node:
        await node.spawn(Doubler, pool=["faults", "beside"])
        await good_ones_complete(node)
        await good_ones_complete(node)
    (line,) = said(caplog)
    assert "newer release" in line
    assert await rows(store, READY) == [ready]
    assert await store.count([HELD(), TORN()]) == [0, 0] and await store.get([STATE(id_)]) == [None]
    assert json.loads(await value_of(store, TASK(id_))) == record


async def command(*words: str) -> CompletedProcess[bytes]:
    """Run the command."""
    return await anyio.run_process([str(COMMAND), *words], check=False)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged of tasks that cannot be read."""
    return [record.getMessage() for record in caplog.records if record.name == "converge.torn"]


async def test_a_store_of_a_newer_release_is_not_opened(path: Path) -> None:
    """Nothing is written to it, and the command says so with the code for a configuration that cannot work."""
    async with open_store(f"file:{path}") as store:
        await store.time()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(SchemaTooNew, match="99"):
        async with open_store(f"file:{path}"):
            pass
    command = [str(COMMAND), "run", "worker_agents:Worker", "--store", f"file:{path}", "--pool", "faults"]
    ran = await anyio.run_process(command, cwd=Path(__file__).parent, check=False)
    assert ran.returncode not in (0, 1), "it started, or failed as nobody foresaw"
    assert "SchemaTooNew" not in ran.stderr.decode() and "upgrade" in ran.stderr.decode()
