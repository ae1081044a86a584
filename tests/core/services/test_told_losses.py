"""A store that finds out by itself that it lost what was acknowledged stops its process until an operator accepts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pytest

from converge import MemoryStore, Pool, PoolManager, Task, TaskManager
from converge.contracts.store import Batch, Channel, Committed, Conflict
from converge.errors import StoreRolledBack
from converge.services.store.handle import StoreHandle
from converge.services.store.history import History


class Telling(MemoryStore):
    """Says once that something is lost."""

    loss = False

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        if self.loss:
            self.loss = False
            raise StoreRolledBack("the primary lost it")
        return await super().commit(batches, wake=wake)


async def test_what_is_said_once_holds_until_it_is_accepted() -> None:
    store = Telling()
    await PoolManager(store).create_pool(Pool(id="p"))
    tasks = TaskManager(store)
    await tasks.submit(Task(pool_id="p"))
    store.loss = True
    for _ in range(3):
        with pytest.raises(StoreRolledBack):
            await tasks.submit(Task(pool_id="p"))
    assert (await StoreHandle.of(store).commits()).is_rolled_back


class Stamped(Committed):
    """What a store with more to say answers: a subclass is an answer too."""


class Blamed(Conflict):
    """Likewise."""


@pytest.mark.parametrize(
    "answer", [Committed(7), Stamped(7), Conflict((("epoch",),), False), Blamed((("epoch",),), False)], ids=repr
)
def test_another_history_shows_in_a_subclass_of_an_answer_too(answer: Committed | Conflict) -> None:
    history = History((("epoch",), 9))
    history.check([answer], 9)
    assert history.is_rolled_back
