"""The store on a SQL database: which class of it a URL's scheme means. Each database has a folder of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Self, cast
from urllib.parse import urlsplit

from converge.contracts.store import Store
from converge_store_sql.options import SqlOptions

POSTGRESQL = "converge_store_sql.postgresql.store:PostgresqlStore"

MYSQL = "converge_store_sql.mysql.store:MysqlStore"

_CLASSES = {"mysql": MYSQL, "mariadb": MYSQL}
"""By scheme, the class of its store; imported when it is opened, since each needs a driver of its own. PostgreSQL's
class refuses the schemes that are not here.
"""


class SqlStore(Store):
    """A store on a SQL database."""

    @staticmethod
    def open(url: str, options: SqlOptions | None = None) -> AbstractAsyncContextManager[SqlStore]:
        """Open the store of the URL's scheme, and make its tables if they are not there.

        Raises:
            InvalidValue: It is not the URL of a database.
            Unsupported: The database, its version or its driver is not supported here.
            StoreUnavailable: The server cannot be reached.
            StoreRefused: It refused the login or a right, or is a standby.
            SchemaTooNew: The tables were made by a newer release.
        """
        return _class_of(url).opened(url, options or SqlOptions())

    @staticmethod
    async def pending(url: str, options: SqlOptions | None = None) -> Sequence[str]:
        """Return what `open` would add to the tables that are there, a line each, without changing anything.

        Raises:
            As `open`.
        """
        return await _class_of(url).to_add(url, options or SqlOptions())

    @classmethod
    @abstractmethod
    def opened(cls, url: str, options: SqlOptions) -> AbstractAsyncContextManager[Self]:
        """Open a store of this class; see `open`."""

    @classmethod
    @abstractmethod
    async def to_add(cls, url: str, options: SqlOptions) -> Sequence[str]:
        """Return what `opened` would add; see `pending`."""


def _class_of(url: str) -> type[SqlStore]:
    scheme = urlsplit(url).scheme.partition("+")[0]
    module, _, name = _CLASSES.get(scheme, POSTGRESQL).partition(":")
    return cast("type[SqlStore]", getattr(import_module(module), name))
