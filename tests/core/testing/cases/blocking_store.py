"""Run by `test_cases` in a pytest of its own: a store whose `count` blocks the event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs

from converge.contracts.store import Prefix, Store
from converge.testing import StoreContract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore


class BlockingStore(ToyStore):
    """The toy, but for one call."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        yield cls(Shelf(options))

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        time.sleep(60)  # noqa: ASYNC251  # a driver that blocks: it is ended long before
        return []


class TestBlocking(StoreContract):
    """The kit for it."""

    backend = attrs.evolve(TOY, open=BlockingStore.open)
    loops = ("asyncio",)
    case_limit_sec = 1.0
