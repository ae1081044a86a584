"""This release and the one before on one store: up, beside each other, back, and when there is no way back."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, ClassVar

import pytest
from release_steps import AGENT, KEY, POOL, WAITING, drain, ended, ordered, plain

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.codec import FORMAT, encode
from converge.contracts.store import Batch, Store
from converge.errors import SchemaTooNew
from converge.model.keys import FORMAT as RECORD
from converge.model.place import SPLIT_KEYS
from converge.services.store.formats import read_format
from converge.testing.fixtures import wait_until

Run = Callable[..., list[Any]]
Running = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]


@asynccontextmanager
async def opened(place: tuple[str, str]) -> AsyncIterator[tuple[Store, TaskManager]]:
    """The store as this release opens it."""
    url, network = place
    async with open_store(url, plugins=[] if url.startswith("file:") else ["sql"], network=network) as store:
        await PoolManager(store).create_pool(Pool(id=POOL))
        yield store, TaskManager(store)


async def test_what_the_release_before_stored_is_there_and_goes_on(place: tuple[str, str], old: Run) -> None:
    ((filled),) = old("fill")
    async with opened(place) as (_, tasks):
        states = {state: len(await tasks.list(state=state)) for state in TaskState}
        assert (states[TaskState.COMPLETED], states[TaskState.FAILED], states[TaskState.CANCELLED]) == (1, 1, 1)
        assert states[TaskState.PENDING] + states[TaskState.ASSIGNED] == 2 + 2 + WAITING
        (done,) = await tasks.list(state=TaskState.COMPLETED)
        assert done.result == {"words": 3, "raw": b"\x00\xff"}
        assert (await tasks.get(filled["held"])).inputs == {"n": 3}
        again = await tasks.submit(Task(pool_id=POOL, type="once", dedup_key="d", inputs={"text": "é"}))
        assert (await tasks.get(again)).dedup_key == "d" and len(await tasks.list(pool_id=POOL)) == 7 + WAITING
        more = await ordered(tasks, 1)
        assert await drain(tasks, WAITING + 1) == [*range(WAITING), 0]
        assert (await tasks.get(more[0])).state == TaskState.COMPLETED


async def test_both_releases_work_beside_each_other(place: tuple[str, str], old: Run, old_running: Running) -> None:
    with old_running("plain=2", "wait", "plain=5", "ordered=2") as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline()) == 2
        async with opened(place) as (store, tasks):
            assert await plain(tasks, 5) == 5
            print("go on", file=process.stdin, flush=True)
            process.stdout.readline()
            assert json.loads(process.stdout.readline()) == 5
            assert len(json.loads(process.stdout.readline())) == 2
            # Its ordering keys go on as they are while only ends of tasks come from here.
            assert await drain(tasks, 1) == [0]
            assert (await read_format(store)).number == 1
    assert old("drain=1", "plain=1") == [[1], 1]


async def test_the_release_before_opens_a_store_of_this_one_that_has_used_nothing_new(
    place: tuple[str, str], old: Run
) -> None:
    async with opened(place) as (_, tasks):
        assert await plain(tasks, 3) == 3
        await tasks.submit(Task(pool_id=POOL, type="nothing"))
        (claimed,) = await tasks.claim(AGENT, [POOL], types=["nothing"])
        await tasks.complete(claimed)
        waiting = await tasks.submit(Task(pool_id=POOL, type="plain"))
        here = await ended(tasks)
        assert [one[-1] for one in here] == [False, False, False, True] and {one[1] for one in here} == {AGENT}
    assert old("ended", "plain=4") == [here, 3]  # it works on the one that waited, too
    async with opened(place) as (_, tasks):
        assert (await tasks.get(waiting)).state == TaskState.COMPLETED


async def test_the_release_before_refuses_a_store_in_which_something_newer_is_used(
    place: tuple[str, str], old: Run, old_running: Running
) -> None:
    with old_running("plain=1", "wait", "ordered=1") as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline()) == 1
        async with opened(place) as (store, tasks):
            await ordered(tasks, 2)
            assert (await read_format(store)).number == SPLIT_KEYS
            (refused,) = old("plain=1", fails=True)
            assert re.match(rf"SchemaTooNew: .* version {SPLIT_KEYS}, .* knows 1\b", refused)
            # One that runs already meets the newer record, and leaves it alone.
            print("go on", file=process.stdin, flush=True)
            process.stdout.readline()
            assert re.match(rf"SchemaTooNew: .*format {SPLIT_KEYS} .* up to 1\b", json.loads(process.stdout.readline()))
            assert await drain(tasks, 2) == [0, 1]
            assert [task.ordering_key for task in await tasks.list(pool_id=POOL) if task.type == "ordered"] == [KEY] * 2


class Waits(Agent):
    """Records a step, and waits: for a time, for a signal, or for a child that waits."""

    steps: ClassVar[list[str]] = []

    async def on_task(self, task: Task) -> Any:
        await task.step("once", self.steps.append, task.type)
        if task.type == "parent":
            return await task.gather(await task.spawn(Task(pool_id=POOL, type="child"), "c"))
        if task.type != "time":
            return await task.wait_for("go")
        await task.sleep(0.5)
        return "slept"


async def test_tasks_that_wait_are_left_alone_by_a_running_process_of_the_release_before(
    place: tuple[str, str], old_running: Running
) -> None:
    """It sweeps, and claims some that have been resumed: they go on when it has stopped."""
    Waits.steps.clear()
    with old_running("plain=1", "wait", "claims=3") as process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline()) == 1
        async with opened(place) as (store, tasks):
            async with Node(store=store, poll_sec=0.1) as node:
                await node.spawn(Waits, pool=POOL)
                ids = [await tasks.submit(Task(pool_id=POOL, type=type_)) for type_ in ("time", "signal", "parent")]

                async def are_parked() -> bool:
                    return [one.parks for one in await tasks.list(pool_id=POOL) if one.type != "plain"] == [1] * 4

                await wait_until(are_parked, timeout=60)
            (child,) = await tasks.children(ids[2])
            assert await tasks.signal(ids[1], "go", "came") and await tasks.signal(child.id, "go", "child")
            process.stdin.close()
            assert [json.loads(line) for line in process.stdout] == ["", []], "it was given one of them"
            async with Node(store=store, poll_sec=0.1) as node:
                await node.spawn(Waits, pool=POOL)
                results = [(await tasks.result(id_, timeout=60)).result for id_ in ids]
            assert results == ["slept", "came", ["child"]]
    assert sorted(Waits.steps) == ["child", "parent", "signal", "time"]


async def test_a_format_of_a_later_release_is_refused_with_what_knows_it(place: tuple[str, str]) -> None:
    async with opened(place) as (store, _):
        value = encode({"number": FORMAT + 1, "oldest": "7.0.0", "more": "of it"})
        await store.commit([Batch((), [(RECORD(), value)])])
    with pytest.raises(SchemaTooNew, match=rf"format {FORMAT + 1}, which converge-core 7\.0\.0 .* knows {FORMAT}"):
        async with opened(place):
            raise AssertionError("it was opened")
