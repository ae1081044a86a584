"""Notices of cancelled claims, that others leave under this process's lease."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import anyio

from converge.contracts.store import Batch, Range
from converge.errors import LeaseEnded, StoreError
from converge.model.keys import NOTICE
from converge.runtime.feed import Feed
from converge.runtime.slots import Why
from converge.services.lease import Lease
from converge.services.opened import Opened

log = logging.getLogger("converge.node")

PAGE = 200
"""Notices read at a time."""


class Notices:
    """Hears of cancelled claims, at the latest with every renewal."""

    def __init__(self, opened: Opened, lease_sec: float, feeds: Mapping[Any, Feed]) -> None:
        self._opened, self._pause_sec, self._feeds = opened, lease_sec / 3, feeds

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            lease = self._opened.lease_opened
            if lease is not None and lease.remaining_sec() > 0:
                await self._read(lease)
            await anyio.sleep(self._pause_sec)

    async def _read(self, lease: Lease) -> None:
        try:
            (page,) = await self._opened.store.scan([Range(NOTICE(lease.id), None, PAGE)])
            ids = {entry.key[2] for entry in page}
            if ids:
                for feed in self._feeds.values():
                    feed.slots.cancel(Why.CALLED_OFF, ids)
                await (await self._opened.commits()).commit([Batch((), (), [entry.key for entry in page])])
        except (StoreError, LeaseEnded) as error:
            log.warning("notices of cancelled tasks could not be read: %s", error)
