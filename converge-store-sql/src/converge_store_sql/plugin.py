"""The declaration of the SQL store."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Durability, Feature, StoreBackend
from converge.hookspecs import hookimpl
from converge_store_sql.options import SqlOptions
from converge_store_sql.store import SqlStore

SQL = StoreBackend(
    name="sql",
    # The schemes that a later release will open are refused by this one in its own words, instead of as unknown.
    schemes=("postgresql", "sqlite", "mysql", "mariadb"),
    options=SqlOptions,
    open=SqlStore.open,
    contract=2,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT, Feature.NOTIFIES, Feature.ASYNCIO_ONLY}),
    durability=Durability.D3,
    pending=SqlStore.pending,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the SQL store."""
    return [SQL]
