"""A process that stood still between reading a parent and telling it of an end writes nothing of what was removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from converge import MemoryStore, Pool, Task
from converge.contracts.store import Range
from converge.model.keys import DONE, STATE, TASK
from converge.testing._task.base import POOL, another
from converge.testing._task.durable import OF_TASKS, begun


async def test_nothing_of_a_parent_that_was_removed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    async with another(store) as one, another(store) as late:
        await one.pools.create_pool(Pool(id=POOL, keep_completed_sec=0.0, keep_failed_sec=0.0))
        work = await begun(one)
        await work.attempt.spawn(Task(pool_id=POOL, type="child"), "c")
        await one.tasks.complete(await one.claim_one())
        box = late.tasks.durable.box
        read = box._read

        async def read_and_stand_still(ids: Sequence[bytes]) -> Any:
            seen = await read(ids)
            monkeypatch.undo()
            await work.complete()
            await one.sweep_all()
            return seen

        monkeypatch.setattr(box, "_read", read_and_stand_still)
        (chore, *_) = late.tasks.durable.chores
        await chore.page()
        await one.sweep_all()
        left = await store.scan([Range(family(), None, 10) for family in (*OF_TASKS, TASK, STATE, DONE)])
        assert not [entry.key for page in left for entry in page]
        assert not await one.tasks.list(limit=10)
