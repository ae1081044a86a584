"""Connections to the server: a few are kept, each serves one call at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlunsplit

import anyio
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from converge.errors import ForeignLoop, StoreError
from converge_store_sql.options import SqlOptions
from converge_store_sql.postgresql._errors import call_failed, connecting_failed, sqlstate
from converge_store_sql.postgresql.dialect import check_url, redacted
from converge_store_sql.postgresql.engine import Connector, begin

T = TypeVar("T")

CLOSE_SEC = 2.0

IDLE_SEC, TOO_IDLE_SEC = 2.0, 300.0
"""From when on a connection that was not used is tried first, and from when on it is dropped: what stands between may
have forgotten it without a word.
"""

DOUBT_SEC = 1.0
"""How long a call may take before the server is asked, on another connection, whether it works on it at all."""

CHECK_SEC = 1.0
"""How long a server that is well takes to say so."""

ATTEMPTS, HEDGE_SEC = 3, 1.0
"""How many attempts to connect are made side by side, and how long after one the next joins it: what the network lost
without a word does not hold up a call for as long as connecting may take.
"""

CONNECT_LEFT_SEC = 1.0
"""How long connecting may go on when nobody waits for it: a server that answers at all has done so by then."""


_AT_WORK = """select pid from pg_stat_activity where pid = any($1::integer[])
    and (state = 'active' or state_change > clock_timestamp() - interval '0.5 s')"""

_LOG = logging.getLogger(__name__)


class _Link:
    """One connection: SQLAlchemy's, but for those behind a pooler, and the driver's."""

    __slots__ = ("connection", "driver")

    def __init__(self, connection: AsyncConnection | None, driver: Any) -> None:
        self.connection, self.driver = connection, driver


_Attempt = asyncio.Task[_Link | StoreError]


class Connections:
    """The connections of one handle. Nobody else uses them, so nothing is reset between calls, and SQLAlchemy's own
    pool stays out of the way.
    """

    def __init__(self, url: str, options: SqlOptions) -> None:
        split = check_url(url)
        self.where = redacted(split)
        self._connector = Connector(urlunsplit(split), options)
        self._begin = begin(options) if options.pooler else ""
        self._timeout_sec = options.timeout_sec
        self._free: list[tuple[_Link, float]] = []
        self._busy: dict[_Link, float] = {}
        self._room = asyncio.Semaphore(options.connections)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ending = set[asyncio.Task[None]]()
        self.on_dead: Callable[[], None] = lambda: None

    async def run(self, text: str, arguments: Sequence[Any], *, writes: bool) -> Sequence[Sequence[Any]]:
        """Run one statement as a transaction of its own; answer its rows.

        Raises:
            ForeignLoop: It is used on another event loop than before.
            StoreError: As `_errors` names them.
        """
        loop = self._own_loop()
        async with self._room:
            link = await self._acquire()
            self._busy[link] = loop.time()
            if self._timer is None and not self._begin:
                self._timer = loop.call_later(DOUBT_SEC, self._doubt)
            is_sound = False
            try:
                rows = await answered(link.driver, self._timeout_sec, self._ask(link, text, arguments))
                is_sound = True
                return rows
            except Exception as error:
                # An error that the server sent leaves the connection as it was; after any other its state is not known.
                is_sound = sqlstate(error) is not None and not link.driver.is_closed() and not self._begin
                raise call_failed(error, self.where, writes=writes) from error
            finally:
                del self._busy[link]
                if is_sound:
                    self._free.append((link, loop.time()))
                else:
                    await _discard(link)

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that this is used from, which must be the one of the first call."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ForeignLoop
        return loop

    async def _ask(self, link: _Link, text: str, arguments: Sequence[Any]) -> Sequence[Sequence[Any]]:
        # The driver itself: SQLAlchemy's layers above it take three times the time that it takes for a small statement.
        if self._begin:
            await link.driver.execute(self._begin)
        rows: Sequence[Sequence[Any]] = await link.driver.fetch(text, *arguments)
        if self._begin:
            await link.driver.execute("commit")
        return rows

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Any]:
        """Yield a connection of the driver that is not shared, closed at the end: to create tables, to listen."""
        self._own_loop()
        link = await self._connect()
        try:
            yield link.driver
        except (DBAPIError, OSError) as error:
            raise call_failed(error, self.where, writes=False) from error
        except Exception as error:
            if isinstance(error, StoreError) or sqlstate(error) is None:
                raise
            raise call_failed(error, self.where, writes=False) from error
        finally:
            await _discard(link)

    async def close(self) -> None:
        """Close every connection that is not in use."""
        if self._timer is not None:
            self._timer.cancel()
        with anyio.CancelScope(shield=True):
            if self._looking is not None:
                self._looking.cancel()
                await asyncio.wait({self._looking})
            while self._ending:
                await asyncio.wait(self._ending)
        links, self._free = self._free, []
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            async with anyio.create_task_group() as group:
                for link, _ in links:
                    group.start_soon((link.connection or link.driver).close)
        await self._connector.close()

    async def _acquire(self) -> _Link:
        """Return a connection that works, as far as can be told: one that was idle for long is tried."""
        while self._free:
            link, since = self._free.pop()
            idle_sec = asyncio.get_running_loop().time() - since
            if not link.driver.is_closed() and (idle_sec < IDLE_SEC or await self._answers(link, idle_sec)):
                return link
            await _discard(link)
        return await self._connect()

    async def _answers(self, link: _Link, idle_sec: float) -> bool:
        if idle_sec > TOO_IDLE_SEC:
            return False
        try:
            await answered(link.driver, CHECK_SEC, link.driver.execute("select 1"))
        except Exception:  # whatever it is, this connection is of no use
            await self._doubt_others()
            return False
        return True

    async def _doubt_others(self) -> None:
        """Drop the connections that nobody uses, and have the one that listens tried: what befell one connection has
        befallen those beside it.
        """
        self.on_dead()
        links, self._free = self._free, []
        for link, _ in links:
            await _discard(link)

    def _doubt(self) -> None:
        """Have the server asked about calls that take long; called again while there are calls."""
        self._timer = None
        if not self._busy:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(DOUBT_SEC / 3, self._doubt)
        late = {link: began for link, began in self._busy.items() if loop.time() - began >= DOUBT_SEC}
        if late and (self._looking is None or self._looking.done()):
            self._looking = loop.create_task(self._end_dead(late))

    async def _end_dead(self, late: dict[_Link, float]) -> None:
        """End calls that the server does not work on, nor has just answered: their connection died without a word."""
        pids = {link: link.driver.get_server_pid() for link in late}
        try:
            with anyio.fail_after(CHECK_SEC * 2):
                async with self.driver() as driver:
                    rows = await driver.fetch(_AT_WORK, list(pids.values()))
        except (StoreError, TimeoutError):
            return  # it is the server that does not answer: then nobody knows
        at_work = {pid for (pid,) in rows}
        dead = [link for link, pid in pids.items() if pid not in at_work and self._busy.get(link) == late[link]]
        for link in dead:
            _LOG.warning("a connection to %s died without a word; another takes its place", self.where)
            link.driver.terminate()
        if dead:
            await self._doubt_others()

    async def _connect(self) -> _Link:
        """Connect, with a further attempt where one takes long: the first to end says how it went."""
        attempts, done = set[_Attempt](), set[_Attempt]()
        try:
            while not done:
                attempts.add(asyncio.create_task(self._try_to_connect()))
                limit_sec = HEDGE_SEC if len(attempts) < ATTEMPTS else None
                done, _ = await asyncio.wait(attempts, timeout=limit_sec, return_when=asyncio.FIRST_COMPLETED)
            made = (chosen := done.pop()).result()
            attempts.remove(chosen)
        finally:
            if attempts:
                ending = asyncio.create_task(_end(attempts))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
        if isinstance(made, StoreError):
            raise made
        return made

    async def _try_to_connect(self) -> _Link | StoreError:
        try:
            return _Link(*await self._connector.connect())
        except Exception as error:
            failed = connecting_failed(error, self.where)
            failed.__cause__ = error
            return failed


async def answered(driver: Any, limit_sec: float, call: Awaitable[T]) -> T:
    """Await a call of the driver's; if it has not answered by then, end its connection.

    Neither by the driver's own timeout nor by cancelling the call: for both it asks the server, on one more connection,
    to stop. That hangs where the first one does, and leaves an error that nobody awaits when it is cut short.

    Raises:
        TimeoutError: The time is up.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_later(limit_sec, driver.terminate)
    try:
        return await call
    except Exception as error:
        if driver.is_closed() and loop.time() >= timer.when():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()


async def _end(attempts: set[_Attempt]) -> None:
    """End attempts to connect that nobody waits for; close what they have made all the same.

    Not at once: cut short at the wrong moment, the driver leaves an error that nobody awaits, which the loop tells of
    later.
    """
    await asyncio.wait(attempts, timeout=CONNECT_LEFT_SEC)
    for attempt in attempts:
        attempt.cancel()
    await asyncio.wait(attempts)
    for attempt in attempts:
        if not attempt.cancelled() and isinstance(made := attempt.result(), _Link):
            await _discard(made)


async def _discard(link: _Link) -> None:
    link.driver.terminate()
    if link.connection is not None:
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            await link.connection.invalidate()
            await link.connection.close()
