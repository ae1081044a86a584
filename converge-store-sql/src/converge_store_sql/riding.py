"""Tasks in a transaction of the caller's: what is the same for every database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn, Self, TypeVar
from weakref import WeakKeyDictionary

import anyio
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.pool import AssertionPool, SingletonThreadPool, StaticPool

from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Store
from converge.contracts.transactions import Within
from converge.errors import ConvergeError, InvalidValue, StoreBusy, StoreUnavailable, Unsupported
from converge_store_sql._errors import text_of

T = TypeVar("T")

Look = Callable[[Sequence[Key]], Sequence[Entry | None]]
"""Reads keys outside the transaction, as they are at this moment."""


class Inside(ABC):
    """The side within the caller's transaction, without an event loop. What else a `Side` has is asked of the other."""

    @abstractmethod
    def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """Return the entries as the transaction sees them; see `Store.get`."""

    @abstractmethod
    def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        """Write the batches; see `Store.commit`."""

    def count(self, prefixes: object) -> Sequence[int]:
        _refuse("count")

    def time(self) -> int:
        _refuse("time")

    def note_format(self, number: int) -> None:
        _refuse("note_format")


def check_open(connection: Connection) -> None:
    """Refuse a connection that is closed, and one that was lost in a transaction: rolled back, it connects again.

    Raises:
        InvalidValue: It is one.
    """
    if connection.closed:
        raise InvalidValue("connection", "a connection that is closed", "one with an open transaction")
    if connection.invalidated and connection.get_transaction() is not None:
        raise InvalidValue("connection", "a connection that was lost", "one with an open transaction; roll back first")


def not_connected(error: SQLAlchemyError | OSError) -> ConvergeError:
    """Return the error for a session or connection of the caller's that gives none to use."""
    if isinstance(error, PoolTimeout):
        return _no_room(error)
    if isinstance(error, DBAPIError | OSError):
        return StoreUnavailable(f"the caller's database cannot be reached: {text_of(error)}")
    return InvalidValue("connection", str(error).split("\n", 1)[0], "one with an open transaction")


def _no_room(error: PoolTimeout, beside: str = "") -> StoreBusy:
    return StoreBusy(
        f"the caller's engine has no connection left{beside}: {error.args[0]}; give create_engine a greater pool_size "
        "or max_overflow"
    )


def _refuse(call: str) -> NoReturn:
    raise Unsupported(f"{call} cannot run in a transaction of the caller's; ask the store that `within` was called on")


class Beside:
    """The other side: a second connection of the caller's engine, closed with the block.

    Raises:
        InvalidValue: The engine has one connection only.
    """

    def __init__(self, engine: Engine, network: str) -> None:
        if isinstance(engine.pool, AssertionPool | SingletonThreadPool | StaticPool):
            # What ran on "another" connection of it would commit, or end, the caller's transaction.
            raise InvalidValue(
                "connection",
                f"one of an engine with a {type(engine.pool).__name__}",
                "one whose engine can open a second connection: give it another poolclass",
            )
        self._engine, self._network = engine, network
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def _opened(self) -> Connection:
        """Return the connection, opened at its first use: each statement on it is a transaction.

        Raises:
            StoreBusy: The engine's pool has none left.
            SQLAlchemyError: It could not be opened.
        """
        if self._connection is None:
            try:
                opened = self._engine.connect()
            except PoolTimeout as error:
                raise _no_room(error, " beside the transaction's") from error
            self._connection = opened.execution_options(isolation_level="AUTOCOMMIT")
        return self._connection


_TURNS = WeakKeyDictionary[AsyncConnection | AsyncSession, anyio.Lock]()
"""A connection does one thing at a time: savepoints of two calls that cross break its transaction."""


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
            given = self._given() if isinstance(self._given, async_scoped_session) else self._given
            async with _TURNS.setdefault(given, anyio.Lock()):
                connection = given if isinstance(given, AsyncConnection) else await _connected(given)
                return await connection.run_sync(lambda own: work(self._of(connection, own)))
        except SQLAlchemyError as error:  # the connection was closed
            raise not_connected(error) from error

    def _of(self, connection: AsyncConnection, own: Connection) -> Inside:
        if self._inside is None or self._inside[0] is not connection:

            def look_outside(keys: Sequence[Key]) -> Sequence[Entry | None]:
                driver: Any = own.connection.dbapi_connection
                found: Sequence[Entry | None] = driver.run_async(lambda _: self.outside.get(keys))
                return found

            self._inside = connection, self._enter(own, look_outside)
        return self._inside[1]


async def _connected(session: AsyncSession) -> AsyncConnection:
    try:
        return await session.connection()
    except (SQLAlchemyError, OSError) as error:
        raise not_connected(error) from error


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
