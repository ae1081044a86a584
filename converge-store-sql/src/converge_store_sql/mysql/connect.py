"""Connections to MariaDB or MySQL: a few are kept, each serves one call at a time."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from converge.errors import ConfigError, ForeignLoop, StoreError, StoreUnavailable, Unsupported
from converge.net.tls import refuse_to_ask, unusable
from converge_store_sql.mysql._errors import call_failed, connecting_failed, number_of
from converge_store_sql.mysql.address import parse, redacted
from converge_store_sql.mysql.options import MysqlOptions
from converge_store_sql.passwords import first_line

CLOSE_SEC = 2.0
DOUBT_SEC = 1.0
"""After so long without use a connection shows that it lives before a call is sent on it."""

ANSWER_SEC = 1.5
"""How long it may take to show that: a connection that died without a word is then replaced, with all beside it."""

PROBE_SEC, PROBES = 1, 3
"""The kernel asks a silent peer so often, so many times, before it ends a connection with a call in flight."""

Rows = Sequence[Sequence[Any]]


class Connections:
    """The connections of one handle. Nobody else uses them, so nothing is reset between calls."""

    def __init__(self, url: str, options: MysqlOptions) -> None:
        self._url, self._options = parse(url), options
        self.where: str = redacted(self._url)
        self.packet_bytes = 1_000_000
        self._engine = _engine(self._url, options)
        self._free: list[tuple[float, AsyncConnection, Any]] = []
        self._room = asyncio.Semaphore(options.connections)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False
        self._closing: asyncio.Future[None] | None = None

    async def read(self, text: str) -> Rows:
        """Run one statement that changes nothing; return its rows. It is tried again on a new connection if the one it
        was sent on is gone.

        Raises:
            StoreError: As `_errors` names them.
        """
        try:
            return (await self.run([text], writes=False))[0]
        except StoreUnavailable as error:
            if number_of(error) is not None or isinstance(error.__cause__, TimeoutError):
                raise
        return (await self.run([text], writes=False))[0]

    async def run(self, statements: Sequence[str], *, writes: bool) -> Sequence[Rows]:
        """Run statements in one trip; return the rows of those that have any."""
        async with self.transaction() as transaction:
            return await transaction.run(statements, commits=writes)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Yield a connection for several trips; what it began and did not commit is rolled back.

        Raises:
            ForeignLoop: It is used on another event loop than before.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise ForeignLoop
        self._loop = loop
        async with self._room:
            connection, driver = await self._acquire()
            transaction = Transaction(driver, self.where, self._options.timeout_sec, self.packet_bytes)
            try:
                yield transaction
            except BaseException:
                transaction.is_sound = transaction.was_undone
                raise
            finally:
                if transaction.is_sound and driver.connected and not self._is_closed:
                    self._free.append((time.monotonic(), connection, driver))
                else:
                    await _discard(connection, driver)

    async def close(self) -> None:
        """Close every connection that is not in use; those in use are closed when their calls end."""
        self._is_closed = True
        with anyio.CancelScope(shield=True):
            # No scope shields from a task's own `cancel`: what closes them is a task that nobody else knows.
            self._closing = asyncio.ensure_future(self._close_free())
            await asyncio.shield(self._closing)

    async def _close_free(self) -> None:
        for _, _, driver in self._free:
            driver.close()
        with anyio.move_on_after(CLOSE_SEC):
            while self._free:
                _, connection, driver = self._free.pop()
                await _discard(connection, driver)
            await self._engine.dispose()

    async def _acquire(self) -> tuple[AsyncConnection, Any]:
        while self._free:
            used_at, connection, driver = self._free.pop()
            is_alive = False
            try:
                is_alive = driver.connected and (time.monotonic() - used_at < DOUBT_SEC or await _lives(driver))
            finally:
                if not is_alive:  # or cancelled meanwhile: nobody else knows of it
                    await _discard(connection, driver)
            if is_alive:
                return connection, driver
        return await self._connect()

    async def _connect(self) -> tuple[AsyncConnection, Any]:
        connection: AsyncConnection | None = None
        try:
            async with asyncio.timeout(self._options.connect_timeout_sec):
                connection = await self._engine.connect()
                driver: Any = (await connection.get_raw_connection()).driver_connection
                _probe(driver)
                await Transaction(driver, self.where, self._options.timeout_sec, 65_536).run(
                    _settings(self._options), commits=False
                )
        except (DBAPIError, OSError, EOFError, StoreError) as error:
            if connection is not None:
                await _discard(connection, None)
            if isinstance(error, StoreError):
                raise
            raise connecting_failed(error, self.where) from error
        except BaseException:
            if connection is not None:
                await _discard(connection, None)
            raise
        return connection, driver


class Transaction:
    """One connection, in use by one call."""

    def __init__(self, driver: Any, where: str, timeout_sec: float, packet_bytes: int) -> None:
        self._driver, self._where, self._timeout_sec = driver, where, timeout_sec
        self._packet_bytes = packet_bytes
        self.is_sound: bool = True
        self.was_undone: bool = False

    async def run(self, statements: Sequence[str], *, commits: bool) -> list[Rows]:
        """Run statements in as few trips as the server's packets allow; return the rows of those that have any.

        Args:
            statements: Each one statement, without a semicolon.
            commits: Whether they may have been committed when no answer comes.

        Raises:
            StoreError: As `_errors` names them.
        """
        self.is_sound, found = False, list[Rows]()
        try:
            async with asyncio.timeout(self._timeout_sec):
                for text in _packets(statements, self._packet_bytes):
                    cursor = self._driver.cursor()
                    await cursor.execute(text)
                    while True:
                        if cursor.description is not None:
                            found.append(await cursor.fetchall())
                        if not await cursor.nextset():
                            break
            self.is_sound = True
        except Exception as error:
            if number_of(error) is not None and self._driver.connected:
                await self._roll_back()
            raise call_failed(error, self._where, writes=commits) from error
        return found

    async def _roll_back(self) -> None:
        """Undo what the failed trip has done; a connection that cannot is not used again."""
        with suppress(Exception), anyio.move_on_after(ANSWER_SEC, shield=True):
            await self._driver.rollback()
            self.was_undone = True


def _packets(statements: Sequence[str], limit: int) -> list[str]:
    found, some, size = list[str](), list[str](), 0
    for statement in statements:
        if some and size + len(statement) > limit:
            found.append(";".join(some))
            some, size = [], 0
        some.append(statement)
        size += len(statement) + 1
    return [*found, ";".join(some)]


def _settings(options: MysqlOptions) -> list[str]:
    """Return what a connection is told at its beginning."""
    return [
        "set session sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00', "
        f"innodb_lock_wait_timeout = {max(1, round(options.lock_timeout_sec))}, autocommit = 1, completion_type = 0, "
        # Settings that protect a server from careless clients: it then truncates results silently, or refuses
        # statements. Calls have limits of their own; that of a statement is MariaDB's alone.
        "sql_select_limit = 18446744073709551615, max_join_size = 18446744073709551615, sql_big_selects = 1, "
        "sql_safe_updates = 0 /*M!100100 , max_statement_time = 0 */, "
        # The driver asks for each warning, and logs it; those of `insert ignore` and `if not exists` say nothing new.
        "sql_notes = 0, max_error_count = 0",
        # After waiting for a lock a statement sees the row's newest version; gaps are not locked.
        "set session transaction isolation level read committed, read write",
    ]


def _engine(url: URL, options: MysqlOptions) -> AsyncEngine:
    try:
        import asyncmy
    except ImportError as error:
        raise Unsupported("MariaDB and MySQL need their driver; `pip install converge-store-sql[mysql]`") from error
    query = url.query
    arguments: dict[str, Any] = {
        "host": url.host or "127.0.0.1",
        "port": url.port or 3306,
        "user": url.username,
        "password": url.password or os.environ.get("MYSQL_PWD", ""),
        "database": url.database,
        "unix_socket": query.get("unix_socket"),
        "connect_timeout": options.connect_timeout_sec,
        "autocommit": True,
        "charset": "utf8mb4",
        "program_name": "converge",
    }
    if query.get("ssl") not in (None, "false", "0") or any(name.startswith("ssl_") for name in query):
        arguments["ssl"] = _tls(query)
    if options.password_file is not None:
        path = options.password_file
        arguments["password_creator"] = lambda: first_line(path)

    async def connect() -> Any:
        return await asyncmy.connect(**arguments)

    return create_async_engine(
        "mysql+asyncmy://",
        async_creator=connect,
        poolclass=NullPool,
        hide_parameters=True,
        isolation_level="AUTOCOMMIT",
    )


def _tls(query: Any) -> ssl.SSLContext:
    name = "ssl_ca"
    try:
        context = ssl.create_default_context(cafile=query.get("ssl_ca"))
        context.check_hostname = query.get("ssl_check_hostname", "true") not in ("false", "0")
        if "ssl_cert" in query:
            name = "ssl_cert"
            context.load_cert_chain(query["ssl_cert"], query.get("ssl_key"), refuse_to_ask)
    except (OSError, ValueError) as error:
        files = (query.get(one, "") for one in ("ssl_cert", "ssl_key", "ssl_ca"))
        raise ConfigError(f"store: {name}={query.get(name)} cannot be used: {unusable(error, *files)}") from error
    return context


def _probe(driver: Any) -> None:
    """Let the kernel ask whether a silent server is still there, so that a call in flight ends when it is not."""
    transport = driver._transport
    found = transport.get_extra_info("socket") if transport is not None else None
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", PROBE_SEC),
        ("TCP_KEEPINTVL", PROBE_SEC),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", PROBE_SEC * PROBES * 1_000),
    ):
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _lives(driver: Any) -> bool:
    try:
        async with asyncio.timeout(ANSWER_SEC):
            await driver.ping(reconnect=False)
    except Exception:  # whatever it is: another connection is made, and says so if it cannot be
        return False
    return True


async def _discard(connection: AsyncConnection, driver: Any) -> None:
    if driver is not None:
        driver.close()
    with anyio.move_on_after(CLOSE_SEC, shield=True):
        await connection.invalidate()
        await connection.close()
