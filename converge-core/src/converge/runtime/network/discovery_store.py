"""A store of its own for discovery (`discovery_store`), with a lease of its own that lists this node's agents there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio

from converge.errors import ConvergeError
from converge.plugins import PluginHost
from converge.runtime.network.publishing import Announced
from converge.services.store.handle import StoreHandle
from converge.services.store.opening import open_store


def store_url(text: str) -> str:
    """Return the URL that `discovery_store` means: `memory`, a path, or a URL."""
    if text == "memory":
        return "memory:"
    return text if ":" in text else f"file:{text}"


@asynccontextmanager
async def discovery_opened(
    own: StoreHandle, discovery_store: str, network: str, options: Mapping[str, Any], host: PluginHost
) -> AsyncIterator[StoreHandle]:
    """Yield the handle of the store that discovery uses: the node's own, unless another one is named.

    Raises:
        ConfigError, StoreError: As `open_store`.
    """
    if not discovery_store:
        yield own
        return
    async with open_store(store_url(discovery_store), plugins=host, network=network, options=options) as store:
        yield StoreHandle.of(store, own.env, own.lease_settings)


async def keep_listed(handle: StoreHandle, announced: Announced, poll_sec: float) -> None:
    """Keep the lease on that store alive, and open another one after a loss; until cancelled."""
    while True:
        try:
            lease = handle.lease_opened
            if lease is not None and lease.remaining_sec() <= 0:
                await handle.forget_lease(lease)
                await announced.again()
                handle.outage.works("discovery")
            elif lease is not None:
                lease.beat()
        except ConvergeError as error:
            handle.outage.failed("discovery", error)
        await anyio.sleep(min(poll_sec, handle.lease_settings.lease_sec / 4))
