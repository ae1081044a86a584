"""One ordering key that everybody uses: submits and finishes get on beside each other, on every store."""

from __future__ import annotations

import os
from collections import defaultdict

import anyio
import pytest

from converge import Agent, Node, Pool, PoolManager, Task, TaskManager, open_store
from converge.contracts.store import Store
from converge.services.store.handle import StoreHandle

SUBMITTERS, WORKERS, HANDLES = 50, 4, 10
EACH = 3 if os.environ.get("FULL_TESTS") == "1" else 2
STORES = ["memory", "file", "redis", "sql"]


async def submit_some(tasks: TaskManager, who: int) -> None:
    for number in range(EACH):
        await tasks.submit(Task(pool_id="p", ordering_key="k", inputs={"who": who, "number": number}))


async def work(store: Store, name: str, seen: list[tuple[int, int]]) -> None:
    async with store.reopen() as own:
        tasks = TaskManager(own)
        while len(seen) < SUBMITTERS * EACH:
            claimed = await tasks.claim(name, ["p"], limit=4)
            for task in claimed:
                seen.append((task.inputs["who"], task.inputs["number"]))
                await tasks.complete(task, 1)
            if not claimed:
                await anyio.sleep(0.005)  # the one task of the key that may be claimed is another worker's
        await StoreHandle.of(own).close()


@pytest.mark.parametrize("place", STORES, indirect=True)
async def test_fifty_submitters_and_four_workers_of_one_key_all_get_on(place: tuple[str, list[str], str]) -> None:
    url, plugins, network = place
    seen: list[tuple[int, int]] = []
    with anyio.fail_after(120):
        async with open_store(url, plugins=plugins, network=network) as store:
            await PoolManager(store).create_pool(Pool(id="p"))
            async with anyio.create_task_group() as group:
                for at in range(WORKERS):
                    group.start_soon(work, store, f"worker-{at}", seen)
                for at in range(HANDLES):
                    group.start_soon(submit_from_a_handle, store, range(at, SUBMITTERS, HANDLES))
    numbers: dict[int, list[int]] = defaultdict(list)
    for who, number in seen:
        numbers[who].append(number)
    assert numbers == {who: list(range(EACH)) for who in range(SUBMITTERS)}


async def submit_from_a_handle(store: Store, submitters: range) -> None:
    async with store.reopen() as own, anyio.create_task_group() as group:
        for who in submitters:
            group.start_soon(submit_some, TaskManager(own), who)


BACKLOG = 50
"""Ordered tasks that wait, at most: on a store without a server they are submitted faster than they end."""


class Quick(Agent):
    room: anyio.Semaphore

    async def on_task(self, task: Task) -> int:
        if task.type == "ordered":
            self.room.release()
        return 1


@pytest.mark.parametrize("place", STORES, indirect=True)
async def test_a_stream_of_submits_to_one_key_starves_no_finish_of_the_feed(place: tuple[str, list[str], str]) -> None:
    url, plugins, network = place
    async with open_store(url, plugins=plugins, network=network) as store, store.reopen() as own:
        await PoolManager(store).create_pool(Pool(id="q"))
        tasks, is_over, room = TaskManager(store), anyio.Event(), anyio.Semaphore(BACKLOG)

        async def submitter() -> None:
            async with store.reopen() as mine:
                while not is_over.is_set():
                    await room.acquire()
                    await TaskManager(mine).submit(Task(pool_id="q", ordering_key="k", type="ordered"))

        async with Node(store=own, poll_sec=0.2, grace_sec=5.0) as node, anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(submitter)
            await node.spawn(type("Mine", (Quick,), {"room": room}), count=4, pool="q")
            with anyio.fail_after(60):
                for _ in range(20):  # each ends though ordered ones end and are submitted beside it
                    await tasks.result(await tasks.submit(Task(pool_id="q", type="plain")), timeout=20)
                is_over.set()
                await tasks.result(await tasks.submit(Task(pool_id="q", ordering_key="k")), timeout=40)
