"""SQL databases as a store for Converge."""

from converge_store_sql.options import SqlOptions
from converge_store_sql.plugin import SQL
from converge_store_sql.store import SqlStore

__all__ = ["SQL", "SqlOptions", "SqlStore"]
