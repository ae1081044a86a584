"""The memory store keeps every clause of the store contract."""

from __future__ import annotations

import os
from collections.abc import Sequence

import anyio
import pytest

from converge.builtin.memory.plugin import MEMORY
from converge.builtin.memory.store import MemoryStore
from converge.contracts.store import Entry, Key
from converge.errors import StoreUnavailable
from converge.model.keys import EPOCH
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.testing import StoreContract, TaskContract

IS_FULL = os.environ.get("FULL_TESTS") == "1"


class TestMemoryStore(StoreContract):
    """With its own turn, count and watch."""

    backend = MEMORY
    examples = 25 if IS_FULL else 15


class TestMemoryStoreInherited(StoreContract):
    """With those that every store inherits, which know nothing of event loops: on trio, too, with FULL_TESTS=1."""

    backend = MEMORY
    inherited_turn = True
    loops = ("asyncio", "trio") if IS_FULL else ("asyncio",)
    examples, rounds = (25, 20) if IS_FULL else (8, 6)


class TestMemoryTasks(TaskContract):
    """Tasks on it."""

    backend = MEMORY
    examples = 20 if IS_FULL else 12


class Waits(MemoryStore):
    """Answers no read."""

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """See the class."""
        await anyio.sleep_forever()
        raise AssertionError


async def test_a_store_made_of_it_that_waits_is_limited() -> None:
    assert MemoryStore().is_immediate
    with anyio.fail_after(30), pytest.raises(StoreUnavailable):
        await StoreHandle.of(Waits(), lease_settings=LeaseSettings(call_sec=0.01)).store.get([EPOCH()])
