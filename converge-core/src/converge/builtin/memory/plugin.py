"""Declares the memory store."""

from __future__ import annotations

from collections.abc import Iterable

from converge.builtin.memory.options import MemoryOptions
from converge.builtin.memory.store import MemoryStore
from converge.contracts.store import Durability, Feature, StoreBackend
from converge.hookspecs import hookimpl

MEMORY = StoreBackend(
    name="memory",
    schemes=("memory",),
    options=MemoryOptions,
    open=MemoryStore.open,
    contract=2,
    features=frozenset({Feature.NOTIFIES}),
    durability=Durability.D0,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the memory store."""
    return [MEMORY]
