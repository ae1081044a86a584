"""After a lost lease: another one, with the memberships and descriptors under it, however long the store is away."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import anyio

from converge.errors import ConvergeError, InputError
from converge.runtime.agent import Agent
from converge.runtime.network import Network
from converge.runtime.watchdog import Watchdog
from converge.services.opened import Opened
from converge.services.pools import PoolManager

log = logging.getLogger("converge.node")

JOIN_AGAIN_SEC = 1.0
"""Between tries to open another lease while the store is away."""


class Rejoin:
    """Waits for the watchdog to say that the lease was lost."""

    def __init__(
        self, opened: Opened, pools: PoolManager, network: Network, watchdog: Watchdog, agents: Mapping[str, Agent], poll_sec: float
    ) -> None:
        self._opened, self._pools, self._network, self._watchdog, self._agents = opened, pools, network, watchdog, agents
        self._pause_sec = min(JOIN_AGAIN_SEC, poll_sec)

    async def run(self) -> None:
        """Rejoin after each loss, until cancelled."""
        while True:
            await self._watchdog.lease_lost.wait()
            self._watchdog.lease_lost = anyio.Event()
            is_joined = False
            while not is_joined and not self._watchdog.is_stopping:
                try:
                    lease = self._opened.lease_opened
                    if lease is not None and lease.remaining_sec() <= 0:
                        await self._opened.forget_lease(lease)
                    await self._join_again()
                    is_joined = True
                except ConvergeError as error:
                    log.warning("agents are not listed until the store takes them again: %s", error)
                    await anyio.sleep(self._pause_sec)

    async def _join_again(self) -> None:
        """Open another lease, and put memberships and descriptors under it."""
        by_pool: dict[str, list[str]] = {}
        for one in self._agents.values():
            for pool_id in one.pools:
                by_pool.setdefault(pool_id, []).append(one.id)
        for pool_id, agent_ids in by_pool.items():
            try:
                await self._pools.join_many(agent_ids, pool_id)
            except InputError as error:
                log.error("%d agents are members no longer: %s", len(agent_ids), error)
        await self._network.publish_again()
