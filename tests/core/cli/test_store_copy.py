"""`converge store copy`: everything of a network goes to another store, or the destination stays closed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch, Range, Store
from converge.env import SYSTEM
from converge.errors import (
    ConfigError,
    CopyRefused,
    DedupConflict,
    PoolClosed,
    StoreRefused,
    StoreUnavailable,
    StoreUnfinished,
)
from converge.model.keys import AGENT, DEAD, EXPIRY, LEASE, TASK, TORN
from converge.operations.store_copy import copy
from converge.runtime.config.config import Config
from converge.services.store import copy as copying
from converge.services.store.opening import NETWORK
from converge.testing.fixtures import wait_until

Converge = Callable[..., Any]

LEFT = b"\xaa" * 16
"""The lease of a process that was killed."""

TORN_ID, TORN_RECORD, SECRET = b"\xbb" * 16, b'{"pool": "docs"', "open sesame, please"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # the drivers of both servers run on nothing else


async def fill(store: Store) -> dict[str, Any]:
    """Put something of every kind into the store; return ids by what they are, and a token."""
    pools, tasks, ids = PoolManager(store), TaskManager(store), dict[str, Any]()
    await pools.create_pool(Pool(id="docs", keep_completed_sec=3_600.0))
    await pools.create_pool(Pool(id="work"))
    await pools.create_pool(Pool(id="closed", admission="secret"), secret=SECRET)
    await pools.join_pool("a", "work")
    ids["done"] = await tasks.submit(Task(pool_id="work", inputs={"n": 1}))
    await tasks.complete((await tasks.claim("a", ["work"]))[0], {"n": 2})
    ids["failed"] = await tasks.submit(Task(pool_id="work", max_attempts=1))
    await tasks.fail((await tasks.claim("a", ["work"]))[0], "bad")
    ids["cancelled"] = await tasks.submit(Task(pool_id="work"))
    await tasks.cancel(ids["cancelled"])
    ids["held"] = await tasks.submit(Task(pool_id="work", inputs={"text": "\u00e9\n"}))
    ids["token"] = (await tasks.claim("a", ["work"]))[0].token
    ids["deduped"] = await tasks.submit(Task(pool_id="work", dedup_key="once"))
    later = datetime.now(UTC) + timedelta(hours=2)
    ids["later"] = await tasks.submit(Task(pool_id="docs", not_before=later, deadline=later + timedelta(hours=1)))
    for number in range(3):
        await tasks.submit(Task(pool_id="docs", ordering_key="k", inputs={"n": number}))
    torn = [(TORN(TORN_ID), b'{"pool": "docs", "why": "x", "at": 5}'), (TASK(TORN_ID), TORN_RECORD)]
    left = [(LEASE(LEFT), b"{}"), (EXPIRY(LEFT), b"5"), (AGENT(LEFT, "a" * 20), b"{}")]
    await store.commit([Batch((), [*torn, *left])])
    return ids


async def test_a_record_that_is_no_text_any_more_is_copied_and_is_as_torn_as_it_was(tmp_path: Path) -> None:
    """Some stores keep any bytes, some only text."""
    async with open_store("memory:") as source, open_store(f"file:{tmp_path}/state.db") as target:
        await source.commit([Batch((), [(TORN(TORN_ID), b"{}"), (TASK(TORN_ID), b'{"pool": "\xff\0')])])
        await copying.copy_store(source, target, "memory:", SYSTEM)
        (entry,) = await target.get([TASK(TORN_ID)])
    assert entry is not None and entry.value == rb'{"pool": "\xff\x00'


@pytest.fixture
def urls(tmp_path: Path, redis_url: str, postgres_url: str) -> list[str]:
    """Places to go to, one after another."""
    return [f"file:{tmp_path}/first.db", redis_url, postgres_url, f"file:{tmp_path}/last.db"]


def config(network: str) -> Config:
    return Config(network=network, plugins=("redis", "sql"))


async def test_a_network_goes_from_a_file_through_both_servers_and_back_whole(urls: list[str], namespace: str) -> None:
    async with open_store(urls[0]) as store:
        ids = await fill(store)
    done = [await copy(config(namespace), source, target) for source, target in pairwise(urls)]
    assert {one.digest for one in done} == {done[0].digest} and [one.leases for one in done] == [1, 0, 0]
    assert {one.keys["done"] for one in done} == {3} and done[0].keys["task"] == 10
    async with open_store(urls[-1]) as store:
        await check_copy(store, ids)


async def check_copy(store: Store, ids: dict[str, Any]) -> None:
    """What is in the copy goes on as it would have on the source."""
    tasks, pools = TaskManager(store), PoolManager(store)
    states = {name: (await tasks.get(ids[name])).state for name in ("done", "failed", "cancelled")}
    assert states == {"done": TaskState.COMPLETED, "failed": TaskState.FAILED, "cancelled": TaskState.CANCELLED}
    assert (await tasks.get(ids["done"])).result == {"n": 2}
    assert await tasks.submit(Task(pool_id="work", dedup_key="once")) == ids["deduped"]
    with pytest.raises(DedupConflict):
        await tasks.submit(Task(pool_id="work", dedup_key="once", inputs={"other": 1}))
    with pytest.raises(PoolClosed):
        await pools.join_pool("b", "closed", secret="wrong")
    await pools.join_pool("b", "closed", secret=SECRET)
    await pools.join_pool("b", "work")
    await pools.join_pool("b", "docs")
    claimed: list[Task] = []
    while len(claimed) < 3:  # the first claim sweeps, which puts back what the stopped process held
        claimed += await tasks.claim("b", ["work", "docs"], limit=10)
    found = {one.id: one for one in claimed}
    assert found.keys() >= {ids["held"], ids["deduped"]} and len(found) == 3
    assert found[ids["held"]].token > ids["token"]  # through three stores that began at revision 1
    assert found[ids["held"]].inputs == {"text": "\u00e9\n"}
    assert [one.inputs for one in claimed if one.ordering_key] == [{"n": 0}]  # the others wait behind it
    (record,) = await store.get([TASK(TORN_ID)])
    assert record is not None and record.value == TORN_RECORD
    assert (await store.scan([Range(AGENT(LEFT)), Range(DEAD(LEFT))])) == [[], []]


class Records(Agent):
    """Records a step, puts out, spawns, waits; is told so as a virtual agent, too."""

    concurrency = 10

    async def on_task(self, task: Task) -> Any:
        await task.step("first", abs, -1)
        await task.emit("out")
        if not task.parent_id:
            await task.spawn(Task(pool_id="p"))
        return await task.wait_for("go")

    async def on_ask(self, state: Any, message: Any) -> tuple[Any, Any]:
        return message, message


async def test_tasks_that_wait_are_copied_with_all_they_recorded_and_resumed_there(
    tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the keys are cut into commits: what stands in one revision on the source does so in the copy."""
    first, second = f"file:{tmp_path}/first.db", f"file:{tmp_path}/second.db"
    monkeypatch.setattr(copying, "PUT_OPS", 5)
    async with open_store(first) as store, Node(store=store, poll_sec=0.2) as node:
        await node.spawn(Records, pool="p")
        assert await node.agent("a", pool="p").ask(7) == 7
        for _ in range(3):
            await node.tasks.submit(Task(pool_id="p"))

        async def are_waiting() -> bool:
            return [one.state for one in await node.tasks.list(limit=20)].count(TaskState.WAITING) == 6

        await wait_until(are_waiting, timeout=60)
        (one, *_) = await node.tasks.list(state=TaskState.WAITING, limit=20)
        assert await node.tasks.signal(one.id, "another")
    done = await copy(config(namespace), first, second)
    counts = {name: done.keys.get(name) for name in ("step", "chunk", "child", "actor", "signal", "kept")}
    assert counts == {"step": 15, "chunk": 6, "child": 3, "actor": 1, "signal": 1, "kept": 6}
    async with open_store(second) as store:
        tasks = TaskManager(store)
        for one in await tasks.list(state=TaskState.WAITING, limit=20):
            assert await tasks.signal(one.id, "go")
            assert (await tasks.get(one.id)).state == TaskState.PENDING, "its signal has not resumed it"


class Travels(Agent):
    """Goes on in each store from where it was in the one before."""

    concurrency = 10
    steps: ClassVar[list[str]] = []

    async def on_task(self, task: Task) -> Any:
        if task.type == "child":
            return await task.wait_for("go")
        if task.type == "sleeper":
            return await task.sleep(task.inputs["sec"])
        child, came = await task.spawn(Task(pool_id="p", type="child")), list[Any]()
        for name in ("a", "b", "c"):
            await task.step(name, self.steps.append, name)
            await task.step(f"say {name}", task.emit, name)
            came.append(await task.wait_for(name, timeout=3_600))
        return [*came, *await task.gather(child)]

    async def on_ask(self, state: Any, message: Any) -> tuple[Any, Any]:
        return [*(state or ()), message], state


async def test_a_run_goes_on_in_one_store_after_another(urls: list[str], namespace: str) -> None:
    """Steps, signals, children, timers, output and its cursor, virtual agents: all is there behind each copy."""
    Travels.steps.clear()
    ids, said, cursor = list[str](), list[Any](), ""
    for number, url in enumerate(urls):
        if number:
            await copy(config(namespace), urls[number - 1], url)
        network = NETWORK if url.startswith("file:") else namespace
        async with open_store(url, plugins=["redis", "sql"], network=network) as store, Node(store=store) as node:
            await node.spawn(Travels, pool="p")
            if not number:
                for fields in ({}, {"type": "sleeper", "inputs": {"sec": 0.5}}, {"type": "sleeper"}):
                    ids.append(await node.tasks.submit(Task(pool_id="p", **({"inputs": {"sec": 900.0}} | fields))))
                assert await node.tasks.signal(ids[0], "c", "early", key="k")
            else:
                assert await node.tasks.signal(ids[0], "c", "again", key="k"), "a repeat is harmless, also in the copy"
                (child,) = await node.tasks.children(ids[0])
                await node.tasks.signal(*[(ids[0], "a", 1), (ids[0], "b", 2), (child.id, "go", 3)][number - 1])
            async for output in node.tasks.watch(ids[0], after=cursor):
                said, cursor = said + [output.data] * (output.kind == "data"), output.cursor
                if len(said) == min(number + 1, 3):
                    break
            assert await node.agent("v", pool="p").ask(number, timeout=60) == (list(range(number)) or None)
            if number == 3:
                done = [await node.tasks.result(id_, timeout=60) for id_ in ids[:2]]
                assert [one.result for one in done] == [[1, 2, "early", 3], None]

                async def waits(tasks: TaskManager = node.tasks) -> bool:
                    return (await tasks.get(ids[2])).state == TaskState.WAITING

                await wait_until(waits, timeout=60)
    assert (Travels.steps, said) == (["a", "b", "c"], ["a", "b", "c"])


async def test_what_is_copied_is_refused_where_it_cannot_be_whole(tmp_path: Path, namespace: str) -> None:
    first, second = f"file:{tmp_path}/first.db", f"file:{tmp_path}/second.db"
    with pytest.raises(ConfigError, match="both source and destination"):
        await copy(config(namespace), first, first)
    with pytest.raises(ConfigError, match="memory"):
        await copy(config(namespace), first, "memory:")
    with pytest.raises(StoreRefused, match="there is no store"):
        await copy(config(namespace), first, second)
    async with open_store(first) as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        await PoolManager(store).join_pool("a", "p")
        with pytest.raises(CopyRefused, match="1 process may still use the source; stop them first"):
            await copy(config(namespace), first, second)
    await copy(config(namespace), first, second)
    with pytest.raises(CopyRefused, match=r"the destination is not empty \(it has keys of"):
        await copy(config(namespace), first, second)


async def test_an_empty_network_is_not_copied_onto_itself_by_another_name(tmp_path: Path) -> None:
    first = tmp_path / "first.db"
    async with open_store(f"file:{first}"):
        pass
    with pytest.raises(CopyRefused, match="are one store"):
        await copy(config(NETWORK), f"file:{first}", f"sqlite:///{first}")
    async with open_store(f"file:{first}") as store:  # it is as it was
        await PoolManager(store).create_pool(Pool(id="p"))


async def test_a_copy_that_breaks_off_is_closed_until_it_is_begun_anew(
    tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = f"file:{tmp_path}/first.db", f"file:{tmp_path}/second.db"
    async with open_store(first) as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        ids = await TaskManager(store).submit_many([Task(pool_id="p") for _ in range(300)])
    whole, calls = copying._commit, list[int]()

    async def breaking(target: Store, batch: Batch) -> None:
        calls.append(len(batch.puts))
        if len(calls) == 4:
            raise StoreUnavailable("the server is gone")
        await whole(target, batch)

    monkeypatch.setattr(copying, "_commit", breaking)
    monkeypatch.setattr(copying, "PUT_OPS", 100)
    with pytest.raises(StoreUnavailable):
        await copy(config(namespace), first, second)
    with pytest.raises(StoreUnfinished, match=r"a copy of file:.*first\.db that was not finished"):
        async with open_store(second):
            pass
    with pytest.raises(CopyRefused, match="an unfinished copy of"):
        await copy(config(namespace), f"file:{await other(tmp_path)}", second)
    async with open_store(first) as store:  # goes on meanwhile
        await TaskManager(store).cancel(ids[0])
    assert (await copy(config(namespace), first, second)).keys["ready"] == 299
    assert 2 <= calls.count(0) <= 6, "what was copied goes in commits of many keys, too"
    async with open_store(second) as store:
        assert (await TaskManager(store).get(ids[0])).state == TaskState.CANCELLED


async def other(folder: Path) -> Path:
    async with open_store(f"file:{folder}/third.db") as store:
        await PoolManager(store).create_pool(Pool(id="p"))
    return folder / "third.db"


async def test_a_source_that_is_written_to_meanwhile_leaves_the_copy_closed(
    tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = f"file:{tmp_path}/first.db", f"file:{tmp_path}/second.db"
    async with open_store(first) as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        compare = copying.contents

        async def late(of: Store) -> Any:
            await TaskManager(store).submit(Task(pool_id="p", id=str(uuid.uuid4())))
            return await compare(of)

        monkeypatch.setattr(copying, "contents", late)
        with pytest.raises(CopyRefused, match="differ in lane, ready, task: did something write"):
            await copy(config(namespace), first, second)
        with pytest.raises(StoreUnfinished):
            async with open_store(second):
                pass


def test_the_command_copies_and_says_what(
    converge: Converge, folder: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch, namespace: str
) -> None:
    assert converge("pools", "create", "docs", "--store", "file:state.db").code == 0
    assert converge("submit", "--pool", "docs", "--store", "file:state.db").code == 0
    refused = converge("store", "copy", "file:state.db", "redis://me:hunter2@127.0.0.1:1/0")
    assert refused.code != 0 and "hunter2" not in refused.err and "env:MY_STORE" in refused.err
    assert converge("store", "copy", "file:state.db", "env:NOT_SET").code == 3
    monkeypatch.setenv("MY_STORE", redis_url)
    flags = ("--network", namespace, "--plugin", "redis")
    done = converge("store", "copy", "file:state.db", "env:MY_STORE", *flags, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["keys"] == {"lane": 1, "pool": 1, "ready": 1, "task": 1} | told["keys"] and len(told["digest"]) == 32
    back = converge("store", "copy", "env:MY_STORE", "file:back.db", *flags)
    assert back.code == 0 and told["digest"] in back.out
