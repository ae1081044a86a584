"""The memory store keeps every clause of the store contract."""

from __future__ import annotations

import os

from converge.builtin.memory.plugin import MEMORY
from converge.testing import StoreContract, TaskContract

IS_FULL = os.environ.get("FULL_TESTS") == "1"


class TestMemoryStore(StoreContract):
    """With its own turn, count and watch."""

    backend = MEMORY


class TestMemoryStoreInherited(StoreContract):
    """With those that every store inherits, which know nothing of event loops: on trio, too, with FULL_TESTS=1."""

    backend = MEMORY
    inherited_turn = True
    loops = ("asyncio", "trio") if IS_FULL else ("asyncio",)
    examples, rounds = (25, 20) if IS_FULL else (8, 6)


class TestMemoryTasks(TaskContract):
    """Tasks on it."""

    backend = MEMORY
