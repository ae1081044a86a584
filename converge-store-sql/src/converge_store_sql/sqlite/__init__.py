"""SQLite as a store, in a file that other programs may read."""

from converge_store_sql.sqlite.store import SqliteOptions, SqliteStore

__all__ = ["SqliteOptions", "SqliteStore"]
