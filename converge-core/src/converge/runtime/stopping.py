"""A graceful stop: claim nothing more, let handlers end in the grace time, hand the rest back, wait for no store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import anyio

from converge.errors import LeaseEnded, StoreError
from converge.runtime.agents.boundary import Boundary
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.starting import stop_all
from converge.runtime.agents.ticks import Ticks
from converge.runtime.claiming.feed import Feed
from converge.runtime.claiming.slots import Why
from converge.runtime.network.network import Network
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import settle_takes
from converge.services.tasks.sweep import Sweep

log = logging.getLogger("converge.node")

RELEASE_SEC = 1.5
"""How long a step of a stop may wait for the store; what is left ends with the lease."""

SETTLE_SEC = 0.5
"""How long the last takes may wait for the store, before the lease is ended."""

SETTLE_AGAIN_SEC = 0.05
"""Between tries to settle the last takes."""

LAST_SEC = 0.2
"""What calls that are still under way have at the very end: nobody needs their answers any more."""

ON_STOP_SEC = 1.0
"""What agents have for `on_stop` where the handlers have used up the grace time."""


class Stopping:
    """The steps of one stop."""

    def __init__(
        self,
        handle: StoreHandle,
        network: Network,
        feeds: Mapping[Any, Feed],
        agents: Mapping[str, Hosted],
        ticks: Ticks,
        boundary: Boundary,
    ) -> None:
        self._handle, self._network, self._feeds, self._agents, self._ticks, self._boundary = (
            handle,
            network,
            feeds,
            agents,
            ticks,
            boundary,
        )

    async def run(self, grace_sec: float) -> None:
        """Stop in order, even if cancelled; takes the grace time and at most five seconds more, store or no store."""
        with anyio.CancelScope(shield=True):
            self._handle.hurry(RELEASE_SEC)
            for feed in self._feeds.values():
                feed.hand_back()  # before anything else: a store that answers late must not keep this node claiming
            self._network.post.inboxes.close_to_others()
            drained_by = anyio.current_time() + grace_sec
            async with anyio.create_task_group() as group:
                group.start_soon(self._withdraw)
                await self._drain(grace_sec)
            await self._stop_agents(grace_sec, drained_by)
            await self._settle()
            with anyio.move_on_after(RELEASE_SEC):
                await self._end_lease()
            self._handle.hurry(LAST_SEC)

    async def _stop_agents(self, grace_sec: float, drained_by: float) -> None:
        with anyio.move_on_after(max(0.0, drained_by - anyio.current_time())):
            await self._ticks.stop()  # not before: an agent that decides may need its ticks to report what it holds
        dropped = await self._network.post.inboxes.drain(max(0.0, drained_by - anyio.current_time()))
        if dropped:
            log.warning("%d messages were not handled within %g s; their senders are told", dropped, grace_sec)
        self._ticks.cancel()
        with anyio.move_on_after(RELEASE_SEC):  # what was cancelled ends, and none of it runs beside `on_stop`
            async with anyio.create_task_group() as group:
                group.start_soon(self._network.mail.stopped)
                group.start_soon(self._ticks.stop)
                await self._network.post.inboxes.ended()
        with anyio.move_on_after(max(ON_STOP_SEC, drained_by - anyio.current_time())) as scope:
            await stop_all(self._boundary, self._agents.values())
        if scope.cancelled_caught:
            log.warning("on_stop did not return in time; the node ends without it")

    async def _settle(self) -> None:
        """Hand back what takes without an answer have taken, before the lease ends: with it they would go back as
        attempts of a process that died.
        """
        self._handle.hurry(SETTLE_SEC)
        with anyio.move_on_after(SETTLE_SEC):
            while self._handle.unsettled and (lease := self._handle.lease_opened) and lease.remaining_sec() > 0:
                try:
                    await settle_takes(self._handle)
                except StoreError as error:
                    log.warning("the last takes of this process are not settled yet: %s", error)
                if self._handle.unsettled:
                    await anyio.sleep(SETTLE_AGAIN_SEC)
        self._handle.hurry(RELEASE_SEC)

    async def _withdraw(self) -> None:
        try:
            with anyio.move_on_after(RELEASE_SEC):
                await self._network.withdraw()
        except (StoreError, LeaseEnded) as error:
            log.warning("the agents' descriptors could not be withdrawn, they end with the lease: %s", error)
        except Exception:  # of a plugin's: the agents have their time all the same
            log.exception("the agents' descriptors could not be withdrawn, which nothing expected; the stop goes on")

    async def _drain(self, grace_sec: float) -> None:
        async with anyio.create_task_group() as group:
            for feed in self._feeds.values():
                group.start_soon(_drain_feed, feed, grace_sec)

    async def _end_lease(self) -> None:
        """End the lease and sweep up what it leaves: no agent, no membership and no claim of this node remains."""
        sweep = Sweep(self._handle)
        try:
            lease = self._handle.lease_opened
            await self._handle.close()
            while lease is not None and await sweep.put_back():
                pass
        except StoreError as error:
            log.warning("the lease could not be ended in the store, it will end by itself: %s", error)


async def _drain_feed(feed: Feed, grace_sec: float) -> None:
    with anyio.move_on_after(grace_sec):
        await feed.drain()
        return
    feed.hand_back()  # what came meanwhile and was not begun
    left = feed.slots.cancel(Why.STOPPING)
    log.warning("not ended within %g s, and handed back: %d %s", grace_sec, left, "task" if left == 1 else "tasks")
    with anyio.move_on_after(RELEASE_SEC):
        await feed.drain()
