"""A primary dies under load, behind sentinels and in a cluster: nothing that was acknowledged is lost, or whoever was
told so hears that it is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from converge.contracts.store import Batch, Committed, Entry, Store
from converge.errors import StoreError, StoreRolledBack
from converge.model.keys import POOL
from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until
from converge.testing.servers import Deployment
from converge_store_redis import RedisOptions, RedisStore

pytestmark = [pytest.mark.timeout(240)]

WRITERS = 3
Send = Callable[..., Awaitable[Any]]


class Writer:
    """Writes keys of its own through a handle of its own, and keeps those that were acknowledged."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: list[str] = []
        self.is_rolled_back = False

    async def write(self, store: Store) -> None:
        """Go on until cancelled, or until the store's history is another one."""
        number = 0
        while not self.is_rolled_back:
            number += 1
            key = f"{self.name}.{number}"
            try:
                with anyio.fail_after(15):
                    (outcome,) = await store.commit([Batch(puts=[(POOL(key), b"1")])])
                assert isinstance(outcome, Committed)
                self.acknowledged.append(key)
            except StoreRolledBack:
                self.is_rolled_back = True
            except StoreError:
                await anyio.sleep(0.05)  # as callers do: the failover itself takes seconds


async def lost(store: Store, writer: Writer) -> int:
    """Return how many of the acknowledged keys are not there."""
    entries: list[Entry | None] = []
    for at in range(0, len(writer.acknowledged), 500):
        entries += await store.get([POOL(key) for key in writer.acknowledged[at : at + 500]])
    return entries.count(None)


async def fail_over(deployment: Deployment, namespace: str, send: Send, *, is_lossy: bool) -> None:
    """Kill the primary under load; look at what is there after the failover."""
    options = RedisOptions(network=namespace, connect_timeout_sec=1.0)
    writers = [Writer(f"w{number}") for number in range(WRITERS)]

    async def run(writer: Writer) -> None:
        async with RedisStore.open(deployment.url, options) as store:
            await writer.write(store)

    async with anyio.create_task_group() as group:
        for writer in writers:
            group.start_soon(run, writer)
        await wait_until(lambda: all(len(one.acknowledged) > 50 for one in writers), timeout=30)
        if is_lossy:  # the replica hears nothing of what is acknowledged from now on
            stand_still(deployment.replica.pid)
            await send(deployment.primary, "CLIENT", "KILL", "TYPE", "replica")  # its socket would keep them, too
            before = [len(one.acknowledged) for one in writers]
            told = list(zip(writers, before, strict=True))
            await wait_until(lambda: all(len(one.acknowledged) > count + 50 for one, count in told))
        os.kill(deployment.primary.pid, signal.SIGKILL)
        os.kill(deployment.replica.pid, signal.SIGCONT)
        counts = [len(one.acknowledged) for one in writers]
        old = list(zip(writers, counts, strict=True))
        await wait_until(
            lambda: all(one.is_rolled_back or len(one.acknowledged) > count + 20 for one, count in old),
            timeout=90,
            what="each writer writes again, or was told that the history is another one",
        )
        group.cancel_scope.cancel()
    async with RedisStore.open(deployment.url, options) as store:
        for writer in writers:
            missing = await lost(store, writer)
            # Redis answers before its replica has heard: the last write before a kill may be lost with either of them.
            assert writer.is_rolled_back == bool(missing), f"{missing} acknowledged keys are gone"
            assert missing or not is_lossy


@pytest.mark.parametrize("is_lossy", [False, True], ids=["whole", "lossy"])
async def test_a_failover_by_sentinels_loses_nothing_or_whoever_was_told_hears_of_it(
    sentinels: Deployment, namespace: str, send: Send, is_lossy: bool
) -> None:
    await fail_over(sentinels, namespace, send, is_lossy=is_lossy)


@pytest.mark.parametrize("is_lossy", [False, True], ids=["whole", "lossy"])
async def test_a_failover_in_a_cluster_loses_nothing_or_whoever_was_told_hears_of_it(
    cluster: Deployment, namespace: str, send: Send, is_lossy: bool
) -> None:
    await fail_over(cluster, namespace, send, is_lossy=is_lossy)
