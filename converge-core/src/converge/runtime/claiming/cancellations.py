"""Notices of cancelled claims, left under this process's lease; they also show whether wake-ups arrive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from converge.codec import decode
from converge.contracts.store import Batch, Entry, Range
from converge.errors import LeaseEnded, StoreError, StoreUnavailable, TornRecord
from converge.model.keys import NOTICE
from converge.model.task import Calling
from converge.runtime.claiming.feed import Feed
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import Lease

NOTICES_TOGETHER = 200
"""Notices read at a time."""

UNHEARD = 2
"""Renewals in a row whose wake-up did not arrive: one may be on its way when it is looked for."""

PART = "notices"


class Cancellations:
    """Hears of cancelled claims when their holder is woken, at the latest with every renewal."""

    def __init__(self, handle: StoreHandle, lease_sec: float, feeds: Mapping[Any, Feed]) -> None:
        self._handle, self._pause_sec, self._feeds = handle, lease_sec / 3, feeds
        self._woken = anyio.Event()
        self._heard = 0  # renewals of the lease when a wake-up arrived last
        self._suspected: int | None = None

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        async with anyio.create_task_group() as group:
            scope, watched = anyio.CancelScope(), None
            while True:
                if self._handle.lease_opened is None:  # what is cancelled of its first claims must be heard of, too
                    await self._handle.lease_came.wait()
                lease = self._handle.lease_opened
                if lease is not None and lease.remaining_sec() > 0:
                    if lease is not watched:
                        scope.cancel()
                        scope, watched, self._heard = anyio.CancelScope(), lease, lease.renewals
                        group.start_soon(self._watch, lease, scope)
                    self._woken = anyio.Event()
                    await self._read(lease)
                    self._listen(lease)
                with anyio.move_on_after(self._pause_sec):
                    await self._woken.wait()

    def _listen(self, lease: Lease) -> None:
        """Say so when renewals go through, but their wake-ups do not arrive."""
        unheard = lease.renewals - self._heard >= UNHEARD
        # At the last look, too: what came while the loop was blocked has been heard since.
        if unheard and self._suspected == self._heard:
            self._handle.watch_outage.failed(
                PART, StoreUnavailable(f"{lease.renewals - self._heard} renewals of the lease were not heard of")
            )
        self._suspected = self._heard if unheard else None

    async def _watch(self, lease: Lease, scope: anyio.CancelScope) -> None:
        def on_wake() -> None:
            self._heard = lease.renewals
            self._woken.set()

        with scope:
            await self._handle.watch_always([lease.channel], PART, on_wake, self._pause_sec)

    async def _tell(self, page: Sequence[Entry]) -> None:
        callings = {entry.key[2]: calling for entry in page if (calling := _calling(entry)) is not None}
        ids = {entry.key[2] for entry in page} - callings.keys()
        now = await self._handle.now() if callings else 0
        for feed in self._feeds.values():
            if ids:
                feed.call_off(ids)
            for id_, calling in callings.items():
                feed.slots.call_off(id_, calling, now)

    async def _read(self, lease: Lease) -> None:
        try:
            (page,) = await self._handle.store.scan([Range(NOTICE(lease.id), None, NOTICES_TOGETHER)])
            if page:
                await self._tell(page)
                await (await self._handle.commits()).commit([Batch((), (), [entry.key for entry in page])])
            self._handle.outage.works(PART)
        except (StoreError, LeaseEnded) as error:
            self._handle.outage.failed(PART, error)


def _calling(entry: Entry) -> Calling | None:
    """Return how a task is called off with grace; None where it is cancelled at once."""
    if not entry.value.startswith(b"["):
        return None
    try:
        return decode(entry.value, Calling, "notice")
    except TornRecord:
        return None
