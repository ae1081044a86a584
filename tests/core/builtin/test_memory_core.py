"""What is special to the store in memory: its index beside a plain sorted list, what it forgets, who it wakes in other
threads.
"""

from __future__ import annotations

import gc
import random
import secrets
import threading
import weakref
from collections.abc import AsyncGenerator
from itertools import islice
from typing import cast

import anyio
import anyio.to_thread
import pytest

from converge.builtin.memory.core import Core
from converge.builtin.memory.ordered import CHUNK, SWEEP, Ordered
from converge.builtin.memory.store import MemoryStore, _Waiter
from converge.contracts.store import Batch, Key, Range, Take
from converge.model.keys import DEDUP, HELD, KEY, ORDER, POOL, READY

LANE = bytes(16)


def key_of(number: int) -> Key:
    return READY(LANE, number, LANE)


class Model:
    """An index beside what it should say."""

    def __init__(self) -> None:
        self.live: dict[Key, None] = {}
        self.index = Ordered(self.live)

    def put(self, key: Key) -> None:
        if key not in self.live:
            self.index.add(key)
            self.live[key] = None

    def delete(self, key: Key) -> None:
        if key in self.live:
            del self.live[key]
            self.index.died()

    def check(self, dice: random.Random, reach: int) -> None:
        expected = sorted(self.live)
        assert self.index.alive == len(expected)
        assert list(self.index.walk()) == expected
        after = key_of(dice.randrange(-1, reach))
        assert list(islice(self.index.walk(after), 50)) == [key for key in expected if key > after][:50]
        prefix = after[:3]
        assert list(islice(self.index.walk(prefix=prefix), 50)) == [key for key in expected if key >= prefix][:50]


@pytest.mark.parametrize("reach", [20, 3 * CHUNK, 20 * CHUNK])
def test_the_index_says_what_a_sorted_list_says(reach: int) -> None:
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")  # noqa: T201  # a failure can be played again
    dice, model = random.Random(seed), Model()
    for _ in range(60):
        match dice.randrange(4):
            case 0:
                first = dice.randrange(reach)
                for number in range(first, min(reach, first + dice.randrange(3 * CHUNK))):
                    model.put(key_of(number))
            case 1:
                for _ in range(dice.randrange(2 * CHUNK)):
                    model.put(key_of(dice.randrange(reach)))
            case 2:
                for key in list(islice(model.index.walk(), dice.randrange(2 * CHUNK))):
                    model.delete(key)
            case 3:
                for _ in range(dice.randrange(2 * CHUNK)):
                    model.delete(key_of(dice.randrange(reach)))
        if dice.random() < 0.7:
            model.check(dice, reach)
    model.check(dice, reach)


def test_what_was_deleted_takes_no_memory_though_nobody_looks() -> None:
    core = Core()
    for number in range(20 * SWEEP):
        keys = [
            DEDUP("docs", str(number)),
            KEY("docs", str(number)),
            ORDER("docs", str(number), 1),
            HELD(LANE, number, LANE, LANE),
        ]
        core.apply([Batch(puts=[(key, b"") for key in keys])])
        core.apply([Batch(deletes=keys)])
    core.apply([Batch(puts=[(DEDUP("docs", "first"), b"")])])
    for number in range(20 * SWEEP):
        core.apply(
            [
                Batch(puts=[(DEDUP("docs", str(number)), b"")]),
                Batch(deletes=[DEDUP("docs", str(number - 1))] if number else []),
            ]
        )
    indexes = [index for _, indexes in core._families.values() for index in indexes.values()]
    assert len(indexes) == 1
    assert indexes[0]._size + len(indexes[0]._added) <= SWEEP + 4
    assert len(core.entries) == 2


async def test_a_wake_crosses_threads_and_loops(anyio_backend_name: str) -> None:
    told, is_watching = threading.Event(), threading.Event()

    async with MemoryStore.open() as store:
        opened = store.reopen()

        async def elsewhere() -> None:
            async with opened as other:
                watch = cast("AsyncGenerator[None, None]", other.watch(["lane.x"]))
                await anext(watch)
                is_watching.set()
                with anyio.fail_after(10):
                    await anext(watch)
                (entry,) = await other.get([POOL("docs")])
                if entry is not None:
                    told.set()
                await watch.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, lambda: anyio.run(elsewhere, backend=anyio_backend_name))
            await anyio.to_thread.run_sync(is_watching.wait, 10)
            await store.commit([Batch(puts=[(POOL("docs"), b"{}")])], wake=["lane.x"])
        assert told.is_set()


async def test_a_watch_whose_loop_has_ended_does_not_swallow_wakes(anyio_backend_name: str) -> None:
    async with MemoryStore.open() as store:

        async def elsewhere() -> None:
            store._bell.add(["lane.x"], _Waiter())  # as a thread leaves it that ended without closing its watch

        await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=anyio_backend_name))
        watch = cast("AsyncGenerator[None, None]", store.watch(["lane.x"]))
        await anext(watch)
        await store.commit([], wake=["lane.x"])
        with anyio.fail_after(30):
            await anext(watch)
        await watch.aclose()


async def test_a_wake_tells_one_watcher_and_the_next_wake_another() -> None:
    async with MemoryStore.open() as store:
        watches = [cast("AsyncGenerator[None, None]", store.watch(["lane.x"])) for _ in range(3)]
        for watch in watches:
            await anext(watch)
        await store.commit([], wake=["lane.x"])
        await store.commit([], wake=["lane.x"])
        told: list[int] = []

        async def wait(number: int) -> None:
            await anext(watches[number])
            told.append(number)

        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        for watch in watches:
            await watch.aclose()
        assert len(told) == 2


async def test_a_watch_that_ends_before_it_looks_passes_its_wake_on() -> None:
    async with MemoryStore.open() as store:
        first, second = (cast("AsyncGenerator[None, None]", store.watch(["lane.x"])) for _ in range(2))
        await anext(first)
        await store.commit([], wake=["lane.x"])
        await anext(second)
        await first.aclose()
        with anyio.fail_after(30):
            await anext(second)
        await second.aclose()


def test_a_store_that_nobody_holds_leaves_no_work_to_the_collector() -> None:
    core = Core()
    core.apply([Batch(puts=[(READY(LANE, number, LANE), b"") for number in range(10)])])
    core.take(Take([Range(READY(LANE))], 3, HELD(LANE), (LANE,)))
    gone = weakref.ref(core)
    is_on = gc.isenabled()
    gc.disable()
    try:
        del core
        assert gone() is None
    finally:
        if is_on:
            gc.enable()
