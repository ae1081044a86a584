"""The base of the task tests: processes that share a store, one pool, small helpers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from converge.contracts.store import Batch, Channel, Committed, Entry, Key, Store, Take, Taken, Turned
from converge.errors import ConvergeError, OutcomeUnknown, StoreUnavailable
from converge.model.keys import EXPIRY
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.durable.durable import Durable
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.testing._store.base import Opening, StoreCase
from converge.testing._task.apart import PoolsApart

POOL = "docs"
PATIENCE_SEC = 20.0


class Process:
    """One process of several that share a store, as far as tasks go: a handle, its managers, a lease of its own."""

    def __init__(self, store: Store, lease_sec: float) -> None:
        self.store = store
        self.handle = StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=lease_sec))
        self.tasks, self.pools, self.sweep = TaskManager(store), PoolManager(store), Durable(self.handle).sweep()

    async def claim(self, limit: int = 10, **more: Any) -> list[Task]:
        """Claim from the pool, as an agent that can do nothing in particular."""
        return await self.tasks.claim("agent", [POOL], limit=limit, **more)

    async def claim_one(self) -> Task:
        """Claim the one task that must be ready."""
        claimed = await self.claim(1)
        assert len(claimed) == 1, "no task is ready where one must be"
        return claimed[0]

    async def die(self) -> None:
        """Stop renewing the lease, and let its time pass in the store. The process believes that it has it still."""
        lease = await self.handle.lease()
        lease.abandon()
        with anyio.fail_after(PATIENCE_SEC):
            while not await let_pass(self.store, lease.id):
                pass

    async def sweep_all(self) -> None:
        """Sweep until nothing moves."""
        with anyio.fail_after(PATIENCE_SEC):
            while await self.sweep.page():
                pass


class TakeCut(PoolsApart):
    """Any store that loses the answer of the first take which takes something, and then refuses some reads."""

    def __init__(self, inner: Store, refusals: int) -> None:
        super().__init__(inner)
        self._refusals = refusals
        self._lost: Take | None = None

    def lost(self) -> Take:
        """Return the take whose answer was lost."""
        assert self._lost is not None, "a task is ready"
        return self._lost

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if self._lost is not None and self._refusals:
            self._refusals -= 1
            raise StoreUnavailable("the kit refuses this read")
        return await super().get(keys)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        turned = await super().turn(batches, take, wake=wake)
        if self._lost is None and isinstance(turned.taken, Taken) and turned.taken.rests:
            self._lost = take
            raise OutcomeUnknown("the kit lost this answer")
        return turned


async def wait_until_store_time(store: Store, at: int) -> None:
    """Return when the store's clock has reached `at`, in microseconds."""
    with anyio.fail_after(PATIENCE_SEC):
        while (left := at - await store.time()) > 0:  # noqa: ASYNC110 - a clock tells nobody of its moments
            await anyio.sleep(min(0.05, left / 1_000_000))


async def let_pass(store: Store, lease_id: bytes) -> bool:
    """Make the lease expire, unless its holder renews it at this moment; return whether it has expired."""
    (entry,) = await store.get([EXPIRY(lease_id)])
    if entry is None:
        return True
    (outcome,) = await store.commit([Batch([(entry.key, entry.revision)], [(entry.key, b"1")])])
    return isinstance(outcome, Committed)


async def raised(kind: type[ConvergeError], call: Any) -> bool:
    """Return whether the awaitable raises that error."""
    try:
        await call
    except kind:
        return True
    return False


class TaskCase(StoreCase):
    """Processes on one store; `one` and `two` are there from the start, and the pool exists. What they ask of the store
    is checked, too.
    """

    @pytest.fixture
    async def store(self, opening: Opening) -> AsyncIterator[Store]:
        """One handle on an empty store, with an eye on the rules that its caller, core, must keep to."""
        async with opening() as store:
            yield PoolsApart(store)

    @pytest.fixture
    async def one(self, store: Store) -> AsyncIterator[Process]:
        """Yield the first process; it creates the pool."""
        process = Process(store, 15.0)
        await process.pools.create_pool(Pool(id=POOL))
        yield process
        await process.handle.close()

    @pytest.fixture
    async def two(self, one: Process, opening: Opening) -> AsyncIterator[Process]:
        """Yield a second process."""
        async with another(one.store) as process:
            yield process


@asynccontextmanager
async def another(store: Store, lease_sec: float = 15.0) -> AsyncIterator[Process]:
    """Run another process on the store until the block is left."""
    async with store.reopen() as handle:
        process = Process(handle, lease_sec)
        try:
            yield process
        finally:
            await process.handle.close()
