"""Following a task: whatever the store does, a reader is told by the error itself, and goes on behind its cursor."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import LIMITS, Entry, Range
from converge.errors import StoreUnavailable
from converge.model.keys import CHUNK, READER
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.testing._store.outages import Outages, OutageStore
from converge.testing._task.base import POOL, another
from converge.testing._task.durable import begun
from converge.testing.fixtures import wait_until


class Away(MemoryStore):
    """A memory store that is away from the so manieth read of output on."""

    reads_left = 1_000_000

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        if ranges[0].prefix[0] is CHUNK:
            self.reads_left -= 1
            if self.reads_left < 0:
                raise StoreUnavailable("away")
        return await super().scan(ranges)


@pytest.mark.parametrize("reads", [0, 1, 2])
async def test_a_reader_is_told_that_the_store_is_away_by_its_own_error(reads: int) -> None:
    store = Away()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store, poll_sec=0.1)
    reader = tasks.watch(await tasks.submit(Task(pool_id="p")))
    assert (await anext(reader)).data == "PENDING"
    store.reads_left = reads
    with pytest.raises(StoreUnavailable, match="away"):
        await anext(reader)
    store.reads_left = 1_000_000
    await reader.aclose()
    await tasks._handle.close()


async def test_a_reader_goes_on_behind_a_cursor_that_lies_some_pages_on() -> None:
    async with another(MemoryStore()) as one:
        await one.pools.create_pool(Pool(id=POOL))
        work = await begun(one)
        count = LIMITS.keys + 2  # of which a call of the store reads no more
        async with anyio.create_task_group() as group:
            for number in range(count):
                group.start_soon(work.attempt.emit, number)
        await work.complete()
        read = [piece async for piece in one.tasks.watch(work.task.id) if piece.kind == "data"]
        assert sorted(piece.data for piece in read) == list(range(count))
        last = [piece async for piece in one.tasks.watch(work.task.id, after=read[-2].cursor) if piece.kind == "data"]
        assert [(piece.data, piece.missing) for piece in last] == [(read[-1].data, 0)]


async def test_a_reader_that_leaves_takes_its_key_along() -> None:
    async with another(MemoryStore()) as one:
        await one.pools.create_pool(Pool(id=POOL))
        reader = one.tasks.watch((await begun(one)).task.id)
        await anext(reader)

        async def is_known() -> bool:
            return await one.store.count([READER()]) == [1]

        async with anyio.create_task_group() as group:
            group.start_soon(anext, reader)  # it waits for output, which never comes
            await wait_until(is_known, timeout=30)
            group.cancel_scope.cancel()
        await reader.aclose()
        assert await one.store.count([READER()]) == [0]


async def test_who_follows_no_more_is_not_deaf() -> None:
    outages = Outages()
    outages.is_deaf = True
    async with another(OutageStore(outages)) as one:
        await one.pools.create_pool(Pool(id=POOL))
        reader = one.tasks.watch((await begun(one)).task.id)
        await anext(reader)
        deaf = one.tasks._handle.watch_outage
        async with anyio.create_task_group() as group:
            group.start_soon(anext, reader)
            await wait_until(lambda: deaf.since is not None, timeout=30)
            group.cancel_scope.cancel()
        assert deaf.since is None
        await reader.aclose()
