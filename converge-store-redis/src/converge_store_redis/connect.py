"""Connections to one server: a small pool, one call on each at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from hiredis import pack_command
from redis import exceptions as driver
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from converge.errors import ConfigError, Unsupported
from converge_store_redis import _errors
from converge_store_redis.options import RedisOptions
from converge_store_redis.scripts import Script

PASSWORD_VARIABLE = "CONVERGE_REDIS_PASSWORD"
PORT = 6379


class Connector:
    """Makes connections, keeps those that are free, and runs one call on one of them."""

    def __init__(self, url: str, options: RedisOptions) -> None:
        parts, port, database = _checked(url)
        self.where = f"{parts.hostname}:{port}"
        self._options = options
        self._class: type[Any] = SSLConnection if parts.scheme == "rediss" else Connection
        self._arguments: dict[str, Any] = {
            "host": parts.hostname,
            "port": port,
            "db": database,
            "username": unquote(parts.username) if parts.username else None,
            "socket_connect_timeout": options.connect_timeout_sec,
            "socket_timeout": None,
            "socket_keepalive": True,
            "protocol": 2,  # its messages to subscribers are plain answers
            # A repeated script would be a second write: what to do after a lost answer is the caller's decision.
            "retry": Retry(NoBackoff(), 0),
        }
        self._password = unquote(parts.password) if parts.password else None
        self._free: deque[Any] = deque()
        self._places = asyncio.Semaphore(options.connections)

    async def connect(self) -> Any:
        """Return a new connection, which the caller disconnects.

        Raises:
            ConfigError: The password's file cannot be read.
            StoreUnavailable, StoreRefused: There is no server, or it does not let us in.
        """
        connection = self._class(**self._arguments, password=self._read_password())
        try:
            async with asyncio.timeout(self._options.connect_timeout_sec):
                await connection.connect()
        except (driver.RedisError, OSError) as error:
            connection._close()
            raise _errors.of_connecting(error, self.where) from error
        return connection

    async def evaluate(self, script: Script, keys: list[bytes], arguments: list[Any], *, writes: bool) -> Any:
        """Run a script; a server that does not know it gets its text."""
        try:
            return await self.call("EVALSHA", script.sha, len(keys), *keys, *arguments, writes=writes)
        except _NoScript:
            return await self.call("EVAL", script.text, len(keys), *keys, *arguments, writes=writes)

    async def call(self, *command: Any, writes: bool = False) -> Any:
        """Send a command and return its answer.

        Raises:
            StoreUnavailable: It was not sent, or was a read.
            OutcomeUnknown: It was a write, and was not answered.
            StoreError: The server refused it.
        """
        async with self._places:
            connection = await self._sound()
            is_clean = False
            try:
                async with asyncio.timeout(self._options.timeout_sec):
                    # The driver's own packing is plain Python, and takes longer than the rest of the call.
                    await connection.send_packed_command(pack_command(command))
                    answer = await connection.read_response(disconnect_on_error=False)
                is_clean = True
                return answer
            except driver.NoScriptError:
                is_clean = True
                raise _NoScript from None
            except (driver.RedisError, OSError, EOFError) as error:
                is_clean = _errors.is_answer(error)
                raise _errors.of_call(error, self.where, writes=writes) from error
            finally:
                if is_clean:
                    self._free.append(connection)
                else:
                    connection._close()

    async def close(self) -> None:
        """Close the free connections."""
        while self._free:
            await self._free.pop().disconnect(nowait=True)

    async def _sound(self) -> Any:
        """Return a free connection that its server has not closed meanwhile, or else a new one."""
        while self._free:
            connection = self._free.pop()
            reader = connection._reader
            if reader is not None and not reader.at_eof() and reader.exception() is None:
                return connection
            connection._close()
        return await self.connect()

    def _read_password(self) -> str | None:
        path = self._options.password_file
        if path is None:
            return self._password or os.environ.get(PASSWORD_VARIABLE) or None
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"options.redis.password_file: {path} cannot be read: {type(error).__name__}") from error
        return lines[0] if lines else None


class _NoScript(Exception):
    """The server has not seen the script, or has forgotten it."""


def _checked(url: str) -> tuple[SplitResult, int, int]:
    """The parts of the URL, with the port and the number of the database.

    Raises:
        Unsupported, ConfigError: Without the URL's text, which may hold a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss"):
        raise Unsupported(
            f'"{parts.scheme}": this release opens redis:// and rediss:// of a single server; no Sentinel, no '
            f"Cluster, no socket "
            f"file"
        )
    if not parts.hostname or "," in parts.netloc:
        raise ConfigError("redis: the URL names no single host; write redis://HOST:6379/0")
    if parts.query or parts.fragment:
        raise Unsupported(
            "redis: the URL takes nothing after the database; timeouts and the like are options ([options.redis])"
        )
    try:
        port = parts.port or PORT
    except ValueError as error:
        raise ConfigError("redis: the URL's port is not a number up to 65535; write redis://HOST:6379/0") from error
    database = parts.path.strip("/") or "0"
    if not (database.isascii() and database.isdigit()):
        raise ConfigError(f'redis: the path "/{database}" is not the number of a database; write redis://HOST:6379/0')
    return parts, port, int(database)
