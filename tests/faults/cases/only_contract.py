"""A store that has what the contract names, and nothing else: whoever asks it for more is told so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from converge.builtin.memory.options import MemoryOptions
from converge.contracts.store import CONTRACT, Durability, Store, StoreBackend
from converge.testing._store.base import Inheriting

NAMED = {name for name in vars(Store) if not name.startswith("_")} | set(Store.__annotations__)
"""What the contract names."""
ASKED: set[str] = set()
"""What was asked of any store here."""


class OnlyContract(Inheriting):
    """Passes on what the contract names."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("__") and name != "inner":
            ASKED.add(name)
            if name not in NAMED:
                raise AssertionError(f"core asks a store for {name}, which the contract does not name")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: object) -> None:
        assert name in NAMED or name == "inner", f"core sets {name} on a store, which the contract does not name"
        super().__setattr__(name, value)


@asynccontextmanager
async def open_only(url: str, options: Any) -> AsyncIterator[Store]:
    from converge.builtin.memory.plugin import MEMORY

    async with MEMORY.open("memory:", options) as store:
        yield OnlyContract(store)


ONLY = StoreBackend(
    name="only", schemes=("only",), options=MemoryOptions, open=open_only, contract=CONTRACT, durability=Durability.D0
)
