"""MariaDB and MySQL as a store."""

from converge_store_sql.mysql.options import MysqlOptions
from converge_store_sql.mysql.store import MysqlStore

__all__ = ["MysqlOptions", "MysqlStore"]
