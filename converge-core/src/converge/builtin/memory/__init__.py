"""The store in memory: for tests, and for a single process whose work may be lost with it."""

from converge.builtin.memory.plugin import MEMORY
from converge.builtin.memory.store import MemoryStore

__all__ = ["MEMORY", "MemoryStore"]
