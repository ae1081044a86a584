"""The declarations of the SQL stores."""

from __future__ import annotations

from collections.abc import Iterable

from converge.contracts.store import Durability, Feature, StoreBackend
from converge.hookspecs import hookimpl
from converge_store_sql.mysql import MysqlOptions, MysqlStore
from converge_store_sql.options import SqlOptions
from converge_store_sql.sqlite import SqliteOptions, SqliteStore
from converge_store_sql.store import SqlStore

SQL = StoreBackend(
    name="sql",
    schemes=("postgresql",),
    options=SqlOptions,
    open=SqlStore.open,
    contract=2,
    features=frozenset(
        {Feature.SHARED, Feature.PERSISTENT, Feature.NOTIFIES, Feature.TRANSACTIONS, Feature.ASYNCIO_ONLY}
    ),
    durability=Durability.D3,
    pending=SqlStore.pending,
    look=SqlStore.look,
)

MYSQL = StoreBackend(
    name="mysql",
    schemes=("mysql", "mariadb"),
    options=MysqlOptions,
    open=MysqlStore.opened,
    contract=2,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT, Feature.TRANSACTIONS, Feature.ASYNCIO_ONLY}),
    durability=Durability.D2,
    pending=MysqlStore.to_add,
    look=MysqlStore.looked_at,
)

SQLITE = StoreBackend(
    name="sqlite",
    schemes=("sqlite",),
    options=SqliteOptions,
    open=SqliteStore.open,
    contract=2,
    features=frozenset({Feature.SHARED, Feature.PERSISTENT, Feature.NOTIFIES}),
    durability=Durability.D2,
    pending=SqliteStore.pending,
)


@hookimpl
def converge_stores() -> Iterable[StoreBackend]:
    """Declare the SQL stores, one for each kind of database."""
    return [SQL, MYSQL, SQLITE]
