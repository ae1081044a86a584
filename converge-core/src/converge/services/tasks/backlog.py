"""How much of a pool has not ended yet: what a drain waits for."""

from __future__ import annotations

from converge.services.store.handle import StoreHandle
from converge.services.tasks.counts import live


async def backlog(handle: StoreHandle, pool_id: str) -> int:
    """Return how many of the pool's tasks have not ended: ready, later, waiting behind a key, held. A task that moves
    meanwhile may count twice or not at all.
    """
    return (await live(handle.store, [pool_id]))[pool_id].live
