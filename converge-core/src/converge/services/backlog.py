"""How much of a pool has not ended yet: what a drain waits for."""

from __future__ import annotations

from converge.services.census import live
from converge.services.opened import Opened


async def backlog(opened: Opened, pool_id: str) -> int:
    """Count the pool's tasks that are not terminal: ready, later, waiting behind a key, held. A task that moves meanwhile may count twice or not."""
    return (await live(opened.store, [pool_id]))[pool_id].live
