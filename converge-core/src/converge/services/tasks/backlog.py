"""How much of a pool has not ended yet: what a drain waits for."""

from __future__ import annotations

from converge.services.store.handle import StoreHandle
from converge.services.tasks.counts import live


async def backlog(handle: StoreHandle, pool_id: str) -> int:
    """Count the pool's tasks that are not terminal: ready, later, waiting behind a key, held. A task that moves
    meanwhile may count twice or not.
    """
    return (await live(handle.store, [pool_id]))[pool_id].live
