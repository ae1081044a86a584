"""Following a task: whatever the store does, a reader is told by the error itself, and goes on behind its cursor."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Entry, Range
from converge.errors import StoreUnavailable
from converge.model.keys import CHUNK
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager


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
