"""Tasks in a transaction of the caller's, on asyncio: what is the same for every database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session

from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Store
from converge.contracts.transactions import Within
from converge.errors import InvalidValue

T = TypeVar("T")

Look = Callable[[Sequence[Key]], Sequence[Entry | None]]
"""Reads keys outside the transaction, as they are at this moment."""


class Inside(Protocol):
    """The side within the caller's transaction, without an event loop."""

    def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]: ...

    def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]: ...


class SqlWithin(Within):
    """What `SqlStore.within` returns, for asyncio.

    Args:
        outside: The store that it was called on.
        given: The caller's connection or session.
        enter: Makes the side within the transaction of a connection.
    """

    def __init__(
        self,
        outside: Store,
        given: AsyncConnection | AsyncSession | async_scoped_session[Any],
        enter: Callable[[Connection, Look], Inside],
    ) -> None:
        super().__init__(outside)
        self._given, self._enter = given, enter
        self._inside: tuple[AsyncConnection, Inside] | None = None

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return await self._run(lambda inside: inside.get(keys))

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return await self._run(lambda inside: inside.commit(batches, wake=wake))

    async def _run(self, work: Callable[[Inside], T]) -> T:
        try:
            given = self._given
            connection = given if isinstance(given, AsyncConnection) else await given.connection()
            return await connection.run_sync(lambda own: work(self._of(connection, own)))
        except SQLAlchemyError as error:  # the connection was closed, or the session has none
            raise InvalidValue("connection", str(error).split("\n", 1)[0], "one with an open transaction") from error

    def _of(self, connection: AsyncConnection, own: Connection) -> Inside:
        if self._inside is None or self._inside[0] is not connection:

            def look_outside(keys: Sequence[Key]) -> Sequence[Entry | None]:
                driver: Any = own.connection.dbapi_connection
                found: Sequence[Entry | None] = driver.run_async(lambda _: self.outside.get(keys))
                return found

            self._inside = connection, self._enter(own, look_outside)
        return self._inside[1]


def within(outside: Store, connection: Any, enter: Callable[[Connection, Look], Inside]) -> SqlWithin:
    """Return the store that writes in the transaction of the connection or session.

    Raises:
        InvalidValue: It is neither.
    """
    if not isinstance(connection, AsyncConnection | AsyncSession | async_scoped_session):
        raise InvalidValue(
            "connection",
            type(connection).__name__,
            "an AsyncConnection or AsyncSession of SQLAlchemy; submit_in takes a Connection or a Session",
        )
    return SqlWithin(outside, connection, enter)
