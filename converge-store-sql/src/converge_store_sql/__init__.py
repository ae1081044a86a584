"""SQL databases as a store for Converge."""

from converge_store_sql.mysql import MysqlOptions, MysqlStore
from converge_store_sql.options import SqlOptions
from converge_store_sql.plugin import MYSQL, SQL, SQLITE
from converge_store_sql.sqlite import SqliteOptions, SqliteStore
from converge_store_sql.store import SqlStore
from converge_store_sql.transactions import submit_in

__all__ = [
    "MYSQL", "SQL", "SQLITE", "MysqlOptions", "MysqlStore", "SqlOptions", "SqlStore", "SqliteOptions", "SqliteStore",
    "submit_in",
]  # fmt: skip
