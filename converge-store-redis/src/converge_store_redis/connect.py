"""Connections to one server: a small pool, one call on each at a time; and what the server's settings promise."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import exceptions as driver
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from converge.contracts.store import Durability
from converge.errors import ConfigError, StoreRefused, StoreUnavailable, Unsupported
from converge_store_redis import _errors
from converge_store_redis.options import RedisOptions
from converge_store_redis.scripts import Script

PASSWORD_VARIABLE = "CONVERGE_REDIS_PASSWORD"
OLDEST = (6, 2)


class Connector:
    """Makes connections, keeps those that are free, and runs one call on one of them."""

    def __init__(self, url: str, options: RedisOptions) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss"):
            raise Unsupported(f'"{parts.scheme}": this release opens redis:// and rediss:// of a single server')
        if not parts.hostname:
            raise ConfigError("redis: the URL names no host; write redis://HOST:6379/0")
        database = parts.path.strip("/") or "0"
        if not database.isdigit():
            raise ConfigError(f'redis: the path "/{database}" is not the number of a database; write redis://HOST:6379/0')
        self.where = f"{parts.hostname}:{parts.port or 6379}"
        self._options = options
        self._class: type[Any] = SSLConnection if parts.scheme == "rediss" else Connection
        self._arguments: dict[str, Any] = {
            "host": parts.hostname,
            "port": parts.port or 6379,
            "db": int(database),
            "username": unquote(parts.username) if parts.username else None,
            "socket_connect_timeout": options.connect_timeout_sec,
            "socket_timeout": None,
            "protocol": 2,  # its messages to subscribers are plain answers
            # A repeated script would be a second write: what to do after a lost answer is the caller's decision.
            "retry": Retry(NoBackoff(), 0),
        }
        self._password = unquote(parts.password) if parts.password else None
        self._free: deque[Any] = deque()
        self._places = asyncio.Semaphore(options.connections)

    def _make(self) -> Any:
        password = self._password or os.environ.get(PASSWORD_VARIABLE)
        if self._options.password_file is not None:
            password = self._options.password_file.read_text().splitlines()[0]
        return self._class(**self._arguments, password=password)

    async def connect(self) -> Any:
        """Return a new connection, which the caller disconnects.

        Raises:
            StoreUnavailable, StoreRefused: There is no server, or it does not let us in.
        """
        try:
            connection = self._make()
            await connection.connect()
        except (driver.RedisError, OSError, TimeoutError) as error:
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
            connection = self._free.pop() if self._free else await self.connect()
            is_clean = False
            try:
                async with asyncio.timeout(self._options.timeout_sec):
                    await connection.send_command(*command)
                    answer = await connection.read_response(disconnect_on_error=False)
                is_clean = True
                return answer
            except driver.NoScriptError:
                is_clean = True
                raise _NoScript from None
            except driver.ResponseError as error:
                is_clean = True
                raise _errors.of_answer(error, self.where) from error
            except (driver.RedisError, OSError, TimeoutError, EOFError) as error:
                self._drop_free()  # the others were made to the same server, and are as dead
                raise _errors.of_call(error, self.where, writes=writes) from error
            finally:
                if is_clean:
                    self._free.append(connection)
                else:
                    await connection.disconnect(nowait=True)

    def _drop_free(self) -> None:
        for connection in self._free:
            connection._close()
        self._free.clear()

    async def close(self) -> None:
        """Close the free connections."""
        while self._free:
            await self._free.pop().disconnect(nowait=True)


class _NoScript(Exception):
    """The server has not seen the script, or has forgotten it."""


async def check_server(connector: Connector) -> Durability:
    """Refuse a server that loses tasks silently or is too old; answer the class that its settings give.

    Raises:
        StoreRefused: Which setting, and what to set.
    """
    info = (await connector.call("INFO", "server")).decode()
    version = next((line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("redis_version:")), "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise StoreRefused(f"redis at {connector.where} is version {version}; 6.2 or later is needed")
    settings: dict[str, str] = {}
    for name in ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync"):
        settings |= await _setting(connector, name)
    policy = settings.get("maxmemory-policy", "noeviction")
    if policy != "noeviction":
        raise StoreRefused(f"redis at {connector.where} has maxmemory-policy {policy}, which may delete tasks silently; set it to noeviction")
    if settings.get("appendonly") != "yes":
        return Durability.D0
    return Durability.D2 if settings.get("appendfsync") == "always" else Durability.D1


async def _setting(connector: Connector, name: str) -> dict[str, str]:
    try:
        answer = await connector.call("CONFIG", "GET", name)
    except StoreRefused:
        return {}  # a user without CONFIG, or a service that hides it: the least is assumed
    pairs = answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=True)
    return {key.decode(): value.decode() for key, value in pairs}


__all__ = ["Connector", "StoreUnavailable", "check_server"]
