"""Run by `test_cases` in a pytest of its own: a discovery whose `snapshot` blocks the event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from converge.builtin.static import StaticOptions
from converge.builtin.static.discovery import StaticDiscovery
from converge.builtin.static.plugin import STATIC
from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import Store
from converge.testing import DiscoveryContract


class BlockingDiscovery(StaticDiscovery):
    """That of a list, but for one call."""

    async def snapshot(self) -> list[Sighting]:
        time.sleep(60)  # noqa: ASYNC251  # a driver that blocks: it is ended long before
        return []


@asynccontextmanager
async def open_blocking(options: StaticOptions, *, store: Store, poll_sec: float) -> AsyncIterator[Discovery]:
    """Open it."""
    yield BlockingDiscovery(())


class TestBlocking(DiscoveryContract):
    """The kit for it."""

    backend = attrs.evolve(STATIC, open=open_blocking)
    loops = ("asyncio",)
    case_limit_sec = 1.0
