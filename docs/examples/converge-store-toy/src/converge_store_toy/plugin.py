"""The declaration of the toy store."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Durability, StoreBackend
from converge.hookspecs import hookimpl
from converge_store_toy.options import ToyOptions
from converge_store_toy.store import ToyStore

TOY = StoreBackend(
    name="toy",
    schemes=("toy",),
    options=ToyOptions,
    open=ToyStore.open,
    contract=2,
    features=frozenset(),
    durability=Durability.D0,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the toy store."""
    return [TOY]
