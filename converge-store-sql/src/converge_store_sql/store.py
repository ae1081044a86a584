"""The store on a SQL database: which class of it a URL's scheme means. Each database has a folder of its own."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import Self, TypeVar, cast
from urllib.parse import urlsplit

import anyio

from converge.contracts.store import Batch, Channel, Committed, Conflict, Inspection, Store, Take, Taken, Turned
from converge_store_sql.options import SqlOptions

T = TypeVar("T")

TRIES = 20
"""How often a call that the server undid (a deadlock, a lost race) is run: each time somebody else got on, so few are
ever needed.
"""

RETRY_GREATEST_SEC = 0.05
LOOKS = 3
"""How often a take that got nothing, although there was something, looks: others held all that it had chosen."""

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

    @staticmethod
    async def look(url: str, options: SqlOptions | None = None) -> Inspection:
        """Return what the server is, whether or not the network is there.

        Raises:
            As `open`.
        """
        return await _class_of(url).looked_at(url, options or SqlOptions())

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return (await self.turn(batches, None, wake=wake)).outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        if take is not None and (not take.ranges or take.limit < 1):
            return await super().turn(batches, take, wake=wake)  # only the checks of its take are left to answer
        turned = await self._turn(batches, take)
        if wake:
            self._wake(wake)
        for _ in range(LOOKS - 1):
            if not _was_outrun(turned.taken):
                break
            turned = turned._replace(taken=(await self._turn((), take)).taken)
        return turned

    @abstractmethod
    async def _turn(self, batches: Sequence[Batch], take: Take | None) -> Turned:
        """Commit the batches and make the take, which has something to choose from; see `Store.turn`."""

    @abstractmethod
    def _wake(self, channels: Collection[Channel]) -> None:
        """Wake one watcher of each channel soon; called after the commit."""

    @classmethod
    @abstractmethod
    def opened(cls, url: str, options: SqlOptions) -> AbstractAsyncContextManager[Self]:
        """Open a store of this class; see `open`."""

    @classmethod
    @abstractmethod
    async def to_add(cls, url: str, options: SqlOptions) -> Sequence[str]:
        """Return what `opened` would add; see `pending`."""

    @classmethod
    @abstractmethod
    async def looked_at(cls, url: str, options: SqlOptions) -> Inspection:
        """Return what the server is; see `look`."""


async def retried(attempt: Callable[[int], Awaitable[T]], is_retried: Callable[[Exception], bool]) -> T:
    """Run a call, which is told how often it was tried, until it is not undone; return what it returns."""
    for number in range(TRIES - 1):
        try:
            return await attempt(number)
        except Exception as error:
            if not is_retried(error):
                raise
        await anyio.sleep(random.uniform(0, RETRY_GREATEST_SEC) * number / TRIES)
    return await attempt(TRIES - 1)


def _was_outrun(taken: Taken | Conflict | None) -> bool:
    return isinstance(taken, Taken) and not taken.rests and any(head is not None for head in taken.heads)


def _class_of(url: str) -> type[SqlStore]:
    scheme = urlsplit(url).scheme.partition("+")[0]
    module, _, name = _CLASSES.get(scheme, POSTGRESQL).partition(":")
    return cast("type[SqlStore]", getattr(import_module(module), name))
