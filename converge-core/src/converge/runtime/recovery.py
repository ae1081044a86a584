"""Recovery after a lost lease: a new lease, with memberships and descriptors, however long the store is unavailable."""

from __future__ import annotations

import logging

import anyio

from converge.errors import ConvergeError
from converge.runtime.claiming.groups import Groups
from converge.runtime.network.network import Network
from converge.runtime.watchdog import Watchdog
from converge.services.store.handle import StoreHandle

log = logging.getLogger("converge.node")

JOIN_AGAIN_SEC = 1.0
"""Between tries to open another lease while the store is away."""


class Recovery:
    """Waits for the watchdog to say that the lease was lost."""

    def __init__(
        self, handle: StoreHandle, groups: Groups, network: Network, watchdog: Watchdog, poll_sec: float
    ) -> None:
        self._handle, self._groups, self._network, self._watchdog = handle, groups, network, watchdog
        self._pause_sec = min(JOIN_AGAIN_SEC, poll_sec)

    async def run(self) -> None:
        """Rejoin after each loss, until cancelled."""
        while True:
            await self._watchdog.lease_lost.wait()
            self._watchdog.lease_lost = anyio.Event()
            is_joined = False
            while not is_joined and not self._watchdog.is_stopping:
                try:
                    lease = self._handle.lease_opened
                    if lease is not None and lease.remaining_sec() <= 0:
                        await self._handle.forget_lease(lease)
                    await self._join_again()
                    is_joined, self._handle.lost = True, None
                    self._handle.outage.works("rejoin")
                except ConvergeError as error:
                    self._handle.outage.failed("rejoin", error)
                    await anyio.sleep(self._pause_sec)
                except BaseException:  # what nothing expected: whoever runs this again goes on
                    self._watchdog.lease_lost.set()
                    raise

    async def _join_again(self) -> None:
        """Open another lease, and put memberships and descriptors under it."""
        await self._handle.lease()
        await self._groups.rejoin()
        await self._network.publish_again()
