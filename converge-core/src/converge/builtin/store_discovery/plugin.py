"""Declares discovery through the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from converge.builtin.store_discovery.options import StoreDiscoveryOptions
from converge.contracts.discovery import CONTRACT, Discovery, DiscoveryBackend
from converge.contracts.store import Feature, Store
from converge.hookspecs import hookimpl
from converge.services.discovery.sightings import StoreSightings
from converge.services.store.handle import StoreHandle


@asynccontextmanager
async def open_discovery(options: StoreDiscoveryOptions, *, store: Store, poll_sec: float) -> AsyncIterator[Discovery]:
    """Open it on the node's store."""
    yield StoreSightings(StoreHandle.of(store), poll_sec)


STORE_DISCOVERY = DiscoveryBackend(
    name="store",
    options=StoreDiscoveryOptions,
    open=open_discovery,
    contract=CONTRACT,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT, Feature.NOTIFIES}),
)


@hookimpl
def converge_discoveries() -> Iterable[DiscoveryBackend]:
    """Declare discovery through the store."""
    return [STORE_DISCOVERY]
