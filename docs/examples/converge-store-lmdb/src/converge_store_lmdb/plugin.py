"""The declaration of the LMDB store."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Durability, Feature, StoreBackend
from converge.hookspecs import hookimpl
from converge_store_lmdb.options import LmdbOptions
from converge_store_lmdb.store import LmdbStore

LMDB = StoreBackend(
    name="lmdb",
    schemes=("lmdb",),
    options=LmdbOptions,
    open=LmdbStore.open,
    contract=2,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT}),
    durability=Durability.D2,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the LMDB store."""
    return [LMDB]
