"""Who writes next to a file: in the order in which they come, but for renewals."""

from __future__ import annotations

import fcntl
import os
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Store
from converge.model.keys import EXPIRY, LEASE

LEASE_ID = b"l" * 16


async def test_a_renewal_goes_ahead_of_the_queue_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    renewal = Batch(puts=[(EXPIRY(LEASE_ID), b"1")])
    others = [
        [Batch(puts=[(LEASE(LEASE_ID), b"1")])],
        [renewal, Batch(puts=[(EXPIRY(b"m" * 16), b"1")])],
        [Batch(deletes=[EXPIRY(b"m" * 16)])],
    ]
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(FileStore.open(f"file:{path}"))
        handles = [await stack.enter_async_context(store.reopen()) for _ in others]
        group = await stack.enter_async_context(anyio.create_task_group())
        ended = anyio.Event()

        async def write(handle: Store, batches: list[Batch]) -> None:
            await handle.commit(batches)
            ended.set()

        queue = os.open(f"{path}.turn", os.O_RDWR)
        fcntl.flock(queue, fcntl.LOCK_EX)  # as a writer does that waits at the head of the queue
        try:
            for handle, batches in zip(handles, others, strict=True):
                group.start_soon(write, handle, batches)
            with anyio.fail_after(10):
                await store.commit([renewal])
            with anyio.move_on_after(0.2):
                await ended.wait()
            assert not ended.is_set()
        finally:
            os.close(queue)
        with anyio.fail_after(10):
            await ended.wait()
