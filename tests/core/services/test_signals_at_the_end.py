"""Signals that meet their task's end: who sends one is told whether it came before."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import pytest

from converge import MemoryStore, Pool
from converge.machines.events import Completed
from converge.model.batch import Batch
from converge.model.keys import LATER, SIGNAL, Key
from converge.testing._task.base import POOL, Process, another
from converge.testing._task.durable import Working, begun

Ends = Callable[[Process, Working], Coroutine[Any, Any, Any]]


async def completes(process: Process, work: Working) -> None:
    await work.ends(Completed(b"null"))


async def is_completed(process: Process, work: Working) -> None:
    await process.tasks.complete(work.task.id)


@pytest.mark.parametrize(("is_parked", "ends"), [(False, completes), (True, is_completed)])
async def test_a_signal_that_meets_the_end_of_its_task_says_so(
    is_parked: bool, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with another(MemoryStore()) as process:
        await process.pools.create_pool(Pool(id=POOL))
        work = await begun(process)
        if is_parked:
            assert await work.parks(work.attempt.wait_for(("word",), None))
        end = [partial(ends, process, work)]
        commit, get = process.store.commit, process.store.get

        async def late(batches: Sequence[Batch], **more: Any) -> Any:
            if end and any(key[0] is SIGNAL for batch in batches for key, _ in batch.puts):
                await end.pop()()
            return await commit(batches, **more)

        async def later(keys: Sequence[Key]) -> Any:
            if end and any(key[0] is LATER for key in keys):
                await end.pop()()
            return await get(keys)

        monkeypatch.setattr(process.store, *(("get", later) if is_parked else ("commit", late)))
        assert not await process.tasks.signal(work.task.id, "word" if is_parked else "other")
        assert not end, "it has ended between two reads, or the read and the write"
