"""Connections to the server: a few are kept, each serves one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlunsplit

import anyio
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from converge.errors import StoreError, Unsupported
from converge_store_sql.options import SqlOptions
from converge_store_sql.postgresql._errors import call_failed, connecting_failed, sqlstate
from converge_store_sql.postgresql.dialect import SESSION, check_url, redacted

STATEMENTS = 1_000
"""Prepared statements that a connection keeps: more than there are shapes of calls, so that none is planned twice."""

CLOSE_SEC = 5.0

CONNECT_LEFT_SEC = 1.0
"""How long connecting may go on after it was cancelled: a server that answers at all has done so by then."""


class Connections:
    """The connections of one handle. Nobody else uses them, so nothing is reset between calls, and SQLAlchemy's own
    pool stays out of the way.
    """

    def __init__(self, url: str, options: SqlOptions) -> None:
        split = check_url(url)
        self.where = redacted(split)
        self._dsn = urlunsplit(split)
        self._options = options
        self._engine = _engine(self._dsn, options)
        self._free: list[tuple[AsyncConnection, Any]] = []
        self._room = asyncio.Semaphore(options.connections)

    async def run(self, text: str, arguments: Sequence[Any], *, writes: bool) -> Sequence[Sequence[Any]]:
        """Run one statement as a transaction of its own; answer its rows.

        Raises:
            Retry: The server undid it for a reason that will pass.
            StoreError: As `_errors` names them.
        """
        async with self._room:
            connection, driver = await self._acquire()
            is_sound = False
            try:
                result = await connection.exec_driver_sql(text, tuple(arguments))
                rows: Sequence[Sequence[Any]] = result.all() if result.returns_rows else ()
                is_sound = True
                return rows
            except (DBAPIError, OSError) as error:
                # An error that the server sent leaves the connection as it was; after any other its state is not known.
                is_sound = sqlstate(error) is not None and not driver.is_closed()
                raise call_failed(error, self.where, writes=writes) from error
            finally:
                if is_sound:
                    self._free.append((connection, driver))
                else:
                    await _discard(connection, driver)

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Any]:
        """Yield a connection of the driver that is not shared, closed at the end: to create tables, to listen."""
        connection, driver = await self._connect()
        try:
            yield driver
        except (DBAPIError, OSError) as error:
            raise call_failed(error, self.where, writes=False) from error
        except Exception as error:
            if isinstance(error, StoreError) or sqlstate(error) is None:
                raise
            raise call_failed(error, self.where, writes=False) from error
        finally:
            await _discard(connection, driver)

    async def close(self) -> None:
        """Close every connection that is not in use."""
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            while self._free:
                connection, _ = self._free.pop()
                await connection.close()
            await self._engine.dispose()

    async def _acquire(self) -> tuple[AsyncConnection, Any]:
        while self._free:
            connection, driver = self._free.pop()
            if not driver.is_closed():
                return connection, driver
            await _discard(connection, driver)  # the server went away meanwhile
        return await self._connect()

    async def _connect(self) -> tuple[AsyncConnection, Any]:
        """Connect; if cancelled, give it `CONNECT_LEFT_SEC` to succeed.

        When it is cut short, the driver leaves an error that nobody awaits, which the loop tells of later.
        """
        made: tuple[AsyncConnection, Any] | StoreError | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_limit_once_cancelled, scope := anyio.CancelScope(shield=True))
                with scope:
                    made = await self._try_to_connect()
                if made is None:
                    await anyio.sleep_forever()  # it was cancelled, and the time is up
                group.cancel_scope.cancel()
        except BaseException:
            if isinstance(made, tuple):
                await _discard(*made)
            raise
        if isinstance(made, StoreError):
            raise made
        assert made is not None
        return made

    async def _try_to_connect(self) -> tuple[AsyncConnection, Any] | StoreError:
        try:
            connection = await self._engine.connect()
            raw = await connection.get_raw_connection()
        except Exception as error:
            failed = connecting_failed(error, self.where)
            failed.__cause__ = error
            return failed
        return connection, raw.driver_connection


async def _limit_once_cancelled(scope: anyio.CancelScope) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        scope.deadline = anyio.current_time() + CONNECT_LEFT_SEC


def _engine(dsn: str, options: SqlOptions) -> AsyncEngine:
    try:
        import asyncpg
    except ImportError as error:
        raise Unsupported("PostgreSQL needs its driver; `pip install converge-store-sql[postgresql]`") from error
    arguments: dict[str, Any] = {
        "dsn": dsn,
        "timeout": options.connect_timeout_sec,
        "command_timeout": options.timeout_sec,
        # SQLAlchemy keeps the prepared statements, but at 0 the driver gives all of them one name
        "statement_cache_size": 100,
        "server_settings": {**SESSION, "lock_timeout": f"{options.lock_timeout_sec * 1000:.0f}"},
    }
    if options.password_file is not None:
        path = options.password_file
        arguments["password"] = lambda: _password(path)

    def creator() -> Any:
        # The form that SQLAlchemy's documentation asks for where the size of the statement cache is to be set as well.
        dialect: Any = engine.dialect
        return dialect.dbapi.connect(
            async_creator_fn=asyncpg.connect, prepared_statement_cache_size=STATEMENTS, **arguments
        )

    engine = create_async_engine(
        "postgresql+asyncpg://", creator=creator, isolation_level="AUTOCOMMIT", poolclass=NullPool, hide_parameters=True
    )
    return engine


async def _password(path: Path) -> str:
    lines = (await anyio.Path(path).read_text()).splitlines()
    return lines[0] if lines else ""


async def _discard(connection: AsyncConnection, driver: Any) -> None:
    driver.terminate()
    with anyio.move_on_after(CLOSE_SEC, shield=True):
        await connection.invalidate()
        await connection.close()
