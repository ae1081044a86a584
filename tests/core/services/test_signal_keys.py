"""What the key of a signal promises: a repeat changes nothing, as long as the signal has not been consumed."""

from __future__ import annotations

import anyio
import pytest

from converge import MemoryStore, Pool
from converge.contracts.store import Batch
from converge.errors import TornRecord
from converge.ids import id_bytes
from converge.machines.durable import SIGNAL_KEYS
from converge.model.keys import SIGNAL
from converge.testing._task.base import POOL, another
from converge.testing._task.durable import begun


async def test_the_key_of_an_unread_signal_is_known_behind_any_number_that_were_consumed() -> None:
    async with another(MemoryStore()) as one:
        await one.pools.create_pool(Pool(id=POOL))
        work = await begun(one)
        assert await one.tasks.signal(work.task.id, "a", 1, key="k")
        for number in range(SIGNAL_KEYS):
            assert await one.tasks.signal(work.task.id, "b", number, key=f"b{number}")
            assert await work.attempt.wait_for(("b",), None) == number
        assert await one.tasks.signal(work.task.id, "a", 1, key="k"), "its task has not ended"
        assert await work.attempt.wait_for(("a",), None) == 1
        assert await work.parks(work.attempt.wait_for(("a",), None)), "the repeat was another signal"


async def test_a_signal_that_cannot_be_read_keeps_none_from_other_tasks() -> None:
    async with another(MemoryStore()) as one:
        await one.pools.create_pool(Pool(id=POOL))
        torn, good = await begun(one), await begun(one)
        for number in range(SIGNAL_KEYS + 1):
            assert await one.tasks.signal(torn.task.id, "b", number, key=f"b{number}")
        await one.store.commit([Batch((), [(SIGNAL(id_bytes("id", torn.task.id), 3), b"torn")])])
        async with anyio.create_task_group() as group:
            group.start_soon(one.tasks.signal, good.task.id, "go", 1)
            with pytest.raises(TornRecord):
                await one.tasks.signal(torn.task.id, "b", key="another")
        assert await good.attempt.wait_for(("go",), None) == 1
