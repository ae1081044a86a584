"""Connections to the primary: a small pool, one call on each at a time, none of which waits on one that is dead."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import HiredisError, ReplyError

from converge.errors import ConfigError, ForeignLoop, StoreRefused, StoreUnavailable
from converge_store_redis import _errors
from converge_store_redis.call import Names
from converge_store_redis.connection import Connection, ConnectionDied
from converge_store_redis.credentials import Credentials, tls_context
from converge_store_redis.finders import finder_of
from converge_store_redis.options import RedisOptions
from converge_store_redis.place import Address, Kind, place_of
from converge_store_redis.scripts import Script

IDLE_SEC = 5.0
"""After so long without a call a connection is asked for a sign of life before it is used: firewalls forget it."""

PING_SEC = 1.0
"""How long that sign may take."""

SILENT_SEC = 1.0
"""After so long without an answer it is found out whether the server answers on a new connection; if so, the silent one
is dead. A server that is busy answers on neither, and is given until `timeout_sec`.
"""

REMAINING_SEC = 0.5
"""How long after the answer on a new connection one on the silent one would be in time."""

LOOK_SEC = 0.25

REDIRECTIONS = 3
"""How often a call is sent on to another node of a cluster; each time it was not carried out."""


class Connector:
    """Makes connections, keeps those that are free, and runs one call on one of them."""

    def __init__(self, url: str, options: RedisOptions, *, was_connected: bool = False) -> None:
        """`was_connected`: the server was reached with these options before, so that nothing is wrong with them."""
        self.place, self._options = place_of(url), options
        names = Names(options.network)
        self._credentials = Credentials(self.place, options)
        self._context: ssl.SSLContext | None = None
        self._finder = finder_of(self.place, self._dial, self._dial_sentinel, names.counter)
        self._loop = asyncio.get_running_loop()
        self._was_connected = was_connected
        self._free: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self.places = asyncio.Semaphore(options.connections)
        self._timer: asyncio.TimerHandle | None = None
        self._probe: asyncio.Task[None] | None = None
        self.where = str(self.place)
        """The server that was connected to last."""

    async def connect(self, on_push: Callable[[list[Any]], None] | None = None) -> Connection:
        """Return a new connection to the primary, which the caller closes.

        Raises:
            ConfigError: A file with a password or certificate cannot be read.
            StoreUnavailable, StoreRefused: There is no server, or it does not let us in; or such a file, which could be
                read before, cannot be read now.
        """
        self._check_loop()
        address = await self._finder.find()
        try:
            connection = await self._dial(address, on_push)
        except BaseException:
            self._finder.moved(None)
            raise
        if connection.role != "master":
            connection.close()
            self._finder.moved(None)
            is_wrong = self.place.kind in (Kind.SINGLE, Kind.UNIX) and not self._was_connected
            error = StoreRefused if is_wrong else StoreUnavailable
            raise error(f"redis at {address} is a replica and takes no writes; name the primary")
        self.where, self._was_connected = str(address), True
        return connection

    async def evaluate(self, script: Script, keys: list[bytes], arguments: list[Any], *, writes: bool) -> Any:
        """Run a script; a server that does not know it gets its text."""
        try:
            return await self._answer(("EVALSHA", script.sha, len(keys), *keys, *arguments), writes)
        except _NoScript:
            return await self._answer(("EVAL", script.text, len(keys), *keys, *arguments), writes)

    async def call(self, *command: Any, writes: bool = False) -> Any:
        """Send a command and return its answer.

        Raises:
            StoreUnavailable: It was not sent, or was a read.
            OutcomeUnknown: It was a write, and was not answered.
            StoreError: The server refused it.
        """
        return await self._answer(command, writes)

    async def _answer(self, command: tuple[Any, ...], writes: bool) -> Any:
        for _ in range(REDIRECTIONS):
            answer = await self._call(command, writes)
            if not isinstance(answer, ReplyError):
                return answer
            if (target := _errors.moved_to(answer, self.where)) is None:
                raise self._refused(answer, writes=writes)
            self._forget()
            self._finder.moved(target)
        raise self._refused(answer, writes=writes)

    async def _call(self, command: tuple[Any, ...], writes: bool) -> Any:
        self._check_loop()
        await self.places.acquire()
        try:
            connection = self._fresh() or await self._sound()
            is_answered = False
            try:
                answer = connection.send(command)
                self._busy.add(connection)
                if self._timer is None:
                    self._timer = self._loop.call_later(LOOK_SEC, self._look)
                answer = await answer
                is_answered = True
                return answer
            except (OSError, HiredisError) as error:
                raise _errors.of_call(error, self.where, writes=writes) from error
            finally:
                self._busy.discard(connection)
                if is_answered and not connection.is_closed:
                    self._free.append(connection)
                else:
                    connection.close()
        finally:
            self.places.release()

    def _fresh(self) -> Connection | None:
        """Return the free connection that was used last, if it was a moment ago; else ask `_sound`."""
        if self._free:
            last = self._free[-1]
            if not last.is_closed and self._loop.time() - last.heard_at < IDLE_SEC:
                return self._free.pop()
        return None

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise ForeignLoop

    def _refused(self, answer: ReplyError, *, writes: bool) -> Exception:
        if _errors.is_no_script(answer):
            return _NoScript()
        if _errors.is_elsewhere(answer):
            self._forget()
            self._finder.moved(None)
        return _errors.of_answer(answer, self.where, writes=writes)

    async def close(self) -> None:
        """Close all connections."""
        if self._timer is not None:
            self._timer.cancel()
        if self._probe is not None:
            self._probe.cancel()
        for connection in self._busy:
            connection.close()
        self._forget()

    def _forget(self) -> None:
        while self._free:
            self._free.pop().close()

    async def _sound(self) -> Connection:
        """Return a free connection that works, or else a new one. One that was idle is pinged; where one is dead, so
        are those that were idle for longer.
        """
        while self._free:
            connection = self._free.pop()
            if connection.is_closed:
                continue
            if self._loop.time() - connection.heard_at < IDLE_SEC:
                return connection
            try:
                async with asyncio.timeout(PING_SEC):
                    await connection.ask("PING")
            except (OSError, HiredisError):
                connection.close()
                self._forget()
            except BaseException:
                connection.close()
                raise
            else:
                return connection
        return await self.connect()

    async def _dial(self, to: Address, on_push: Callable[[list[Any]], None] | None = None) -> Connection:
        return await self._greet(to, self._credentials.of_server, on_push, self.place.database)

    async def _dial_sentinel(self, to: Address) -> Connection:
        return await self._greet(to, self._credentials.of_sentinel, None)

    async def _greet(
        self,
        to: Address,
        credentials: Callable[[], tuple[str, str]],
        on_push: Callable[[list[Any]], None] | None,
        database: int = 0,
    ) -> Connection:
        """Connect, authenticate, once more if the password was just changed, and choose the database."""
        connection, role = None, b"master"
        try:
            if self.place.is_tls and self._context is None:
                self._context = tls_context(self._options)
            async with asyncio.timeout(self._options.connect_timeout_sec):
                connection = await Connection.open(to, self._context, on_push)
                answer: Any = None
                used: tuple[str, str] | None = None
                while (user := credentials()) != used and (used is None or isinstance(answer, ReplyError)):
                    used = user
                    answer = await connection.ask(*_hello(*user, f"converge:{self._options.network}"))
                if not isinstance(answer, ReplyError):
                    role = answer.get(b"role", role)  # a sentinel has none
                    answer = await connection.ask("SELECT", database) if database else answer
        except (OSError, HiredisError) as error:
            if connection is not None:
                connection.close()
            raise _errors.of_connecting(error, str(to)) from error
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, ConfigError) and self._was_connected:  # who changes it may be about to put it back
                raise StoreUnavailable(str(error)) from error
            raise
        if isinstance(answer, ReplyError):
            connection.close()
            raise _errors.of_answer(answer, str(to), writes=False)
        connection.role = role.decode()
        return connection

    def _look(self) -> None:
        """Give up calls that have lasted too long; ping connections that are silent."""
        self._timer = self._loop.call_later(LOOK_SEC, self._look) if self._busy else None
        now = self._loop.time()
        for connection in list(self._busy):
            if now - connection.asked_at > self._options.timeout_sec:
                connection.close(ConnectionDied(f"no answer within {self._options.timeout_sec:g} s"))
            elif _silent_since(connection) < now - SILENT_SEC and (self._probe is None or self._probe.done()):
                self._probe = self._loop.create_task(self._end_dead_ones(), name="converge-redis-probe")

    async def _end_dead_ones(self) -> None:
        now = self._loop.time()
        silent = {one: one.asked_at for one in self._busy if _silent_since(one) < now - SILENT_SEC}
        idle = [one for one in self._free if one.heard_at < now]
        try:
            connection = await self.connect()
        except Exception as error:  # the calls that wait say it, if it lasts
            _errors.log.debug("redis at %s: no new connection beside a silent one: %s", self.where, error)
            return
        self._free.appendleft(connection)
        await asyncio.sleep(REMAINING_SEC)
        for one, asked_at in silent.items():
            if one in self._busy and one.asked_at == asked_at and one.heard_at <= now:
                one.close(ConnectionDied("the connection is dead, the server answers on another"))
                for other in idle:
                    if other in self._free:
                        self._free.remove(other)
                        other.close()


def _silent_since(connection: Connection) -> float:
    return max(connection.asked_at, connection.heard_at)


def _hello(username: str, password: str, name: str) -> tuple[str, ...]:
    if not (username or password):
        return ("HELLO", "3", "SETNAME", name)
    return ("HELLO", "3", "AUTH", username or "default", password, "SETNAME", name)


class _NoScript(Exception):
    """The server has not seen the script, or has forgotten it."""
