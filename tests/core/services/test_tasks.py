"""The task manager refuses what it cannot do, before it touches the store."""

from __future__ import annotations

import pytest

from converge.builtin.memory import MemoryStore
from converge.errors import InvalidValue
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.pools import PoolManager
from converge.services.tasks import TaskManager


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_claim_of_less_than_one_task_is_refused_and_takes_nothing(limit: int) -> None:
    store = MemoryStore()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    task_id = await tasks.submit(Task(pool_id="p"))
    with pytest.raises(InvalidValue, match="limit"):
        await tasks.claim("a", ["p"], limit=limit)
    assert (await tasks.get(task_id)).attempts == 0
    await tasks._opened.close()
