"""Publishes a node's readiness in the record of its lease, for listings of processes, whenever it changes."""

from __future__ import annotations

from collections.abc import Callable

import anyio

from converge.errors import LeaseEnded, StoreError
from converge.runtime.probes.answer import Health
from converge.services.store.handle import StoreHandle

TELL_SEC = 1.0
"""How often a node looks at its health for this: a listing shows it about so much later."""


class Telling:
    """Writes whether and why the node is not ready; only when it changes."""

    def __init__(self, handle: StoreHandle, health: Callable[[], Health]) -> None:
        self._handle, self._health = handle, health
        self._published: tuple[bytes, tuple[str, ...]] | None = None

    async def run(self) -> None:
        """Publish until cancelled. Not while the store is away: then the lease that is not renewed shows it."""
        while True:
            await anyio.sleep(TELL_SEC)
            codes = tuple(dict.fromkeys(reason.code for reason in self._health().reasons))
            lease = self._handle.lease_opened
            if lease is None or self._published == (lease.id, codes):
                continue
            try:
                await lease.tell(codes)
            except (StoreError, LeaseEnded):
                continue  # health says why; it is told when it can be
            self._published = lease.id, codes
