"""Run by `test_cases` in a pytest of its own: a transport whose `connect` blocks the event loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest

from converge.builtin.local.plugin import LOCAL
from converge.builtin.local.transport import LocalTransport
from converge.contracts.transport import Channel, Transport
from converge.testing import TransportContract


class BlockingTransport(LocalTransport):
    """That of one process, but for one call."""

    async def connect(self, address: str) -> Channel:
        time.sleep(60)  # noqa: ASYNC251  # a driver that blocks: it is ended long before
        return await super().connect(address)


@asynccontextmanager
async def open_blocking(options: object) -> AsyncIterator[Transport]:
    """Open it."""
    yield BlockingTransport()


class TestBlocking(TransportContract):
    """The kit for it."""

    backend = attrs.evolve(LOCAL, open=open_blocking)
    loops = ("asyncio",)
    case_limit_sec = 1.0

    @pytest.fixture
    def address(self) -> str:
        """Return one that draws a free name."""
        return "local:"
