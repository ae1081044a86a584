"""The declaration of the etcd store."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Durability, Feature, StoreBackend
from converge.hookspecs import hookimpl
from converge_store_etcd.options import EtcdOptions
from converge_store_etcd.store import EtcdStore

ETCD = StoreBackend(
    name="etcd",
    schemes=("etcd",),
    options=EtcdOptions,
    open=EtcdStore.open,
    contract=2,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT}),
    durability=Durability.D3,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the etcd store."""
    return [ETCD]
