"""Run by `test_cases` in a pytest of its own: stores whose handle's end, or whose cancelled watch, waits for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import anyio
import attrs

from converge.contracts.store import Store
from converge.testing import StoreContract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore


class EndlessStore(ToyStore):
    """The toy, but for its end."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        yield cls(Shelf(options))
        await anyio.sleep_forever()


class ShieldedStore(ToyStore):
    """The same, which no cancellation ends."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        yield cls(Shelf(options))
        with anyio.CancelScope(shield=True):
            await anyio.sleep_forever()


class DeafStore(ToyStore):
    """The toy, but for a watch that lets nobody end it, and gives nothing."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        yield cls(Shelf(options))

    async def watch(self, channels: Collection[str]) -> AsyncIterator[None]:
        yield
        while True:
            try:
                await anyio.sleep_forever()
            except BaseException:  # what is tried
                continue


class TestEndless(StoreContract):
    """The kit for it."""

    backend = attrs.evolve(TOY, open=EndlessStore.open)
    case_limit_sec = 2.0


class TestShielded(StoreContract):
    """The kit for it."""

    backend = attrs.evolve(TOY, open=ShieldedStore.open)
    case_limit_sec = 2.0


class TestDeaf(StoreContract):
    """The kit for it."""

    backend = attrs.evolve(TOY, open=DeafStore.open)
    case_limit_sec = 2.0
