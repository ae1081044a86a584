"""Declares the file store."""

from __future__ import annotations

from collections.abc import Iterable

from converge.builtin.file.options import FileOptions
from converge.builtin.file.store import FileStore
from converge.contracts.store import Durability, Feature, StoreBackend
from converge.hookspecs import hookimpl

FILE = StoreBackend(
    name="file",
    schemes=("file",),
    options=FileOptions,
    open=FileStore.open,
    contract=2,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT, Feature.NOTIFIES}),
    durability=Durability.D2,
    pending=FileStore.pending,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the file store."""
    return [FILE]
