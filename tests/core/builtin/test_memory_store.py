"""The memory store keeps every clause of the store contract."""

from __future__ import annotations

from converge.builtin.memory.plugin import MEMORY
from converge.testing import StoreContract, TaskContract


class TestMemoryStore(StoreContract):
    """With its own turn, count and watch."""

    backend = MEMORY


class TestMemoryStoreInherited(StoreContract):
    """With those that every store inherits."""

    backend = MEMORY
    inherited_turn = True


class TestMemoryTasks(TaskContract):
    """Tasks on it."""

    backend = MEMORY
