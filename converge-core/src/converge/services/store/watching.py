"""Watching a store until cancelled: a watch that fails is begun again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import aclosing

import anyio

from converge.contracts.store import Channel
from converge.errors import StoreError
from converge.services.store.handle import StoreHandle


async def watch_always(
    handle: StoreHandle, channels: Collection[Channel], part: str, on_wake: Callable[[], None], pause_sec: float
) -> None:
    """Call `on_wake` when the watch is in force and at each wake-up of the channels, until cancelled.

    Args:
        handle: The store.
        channels: What is watched.
        part: Who watches, for the log of outages; `handle.watch_outage.left(part)` is the caller's.
        on_wake: Called once for several wake-ups that come together.
        pause_sec: How long to wait before a watch that failed is begun again; the caller polls meanwhile.
    """
    while True:
        try:
            async with aclosing(handle.store.watch(channels)) as watch:  # type: ignore[type-var]  # every watch is an async generator
                async for _ in watch:
                    handle.watch_outage.works(part)
                    on_wake()
        except StoreError as error:
            handle.watch_outage.failed(part, error)
        await anyio.sleep(pause_sec)
