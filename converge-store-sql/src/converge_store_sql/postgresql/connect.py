"""Connections to the server: a few are kept, each serves one call at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from urllib.parse import urlunsplit

import anyio

from converge.errors import ConvergeError, ForeignLoop, StoreError
from converge_store_sql.options import SqlOptions
from converge_store_sql.postgresql._errors import call_failed, connecting_failed, sqlstate
from converge_store_sql.postgresql.engine import Connector, begin, check_url, redacted

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
    and (state = 'active' and wait_event_type is distinct from 'Client'
         or state_change > clock_timestamp() - interval '0.5 s')"""
"""A process that has prepared a statement is active, too, while it waits for its client, which may never have had the
answer.
"""

_LOG = logging.getLogger(__name__)


_Attempt = asyncio.Task[Any]
"""Ends with a connection of the driver, or with the error that kept it from one."""


class Connections:
    """The connections of one handle. Nobody else uses them, so nothing is reset between calls.

    `on_dead` is called when one that nobody used was found dead.
    """

    def __init__(self, url: str, options: SqlOptions, on_dead: Callable[[], None] = lambda: None) -> None:
        split = check_url(url)
        self.where: str = redacted(split)
        self._connector = Connector(urlunsplit(split), options)
        self._begin = begin(options) if options.pooler else ""
        self._timeout_sec = options.timeout_sec
        self._free: list[tuple[Any, float]] = []
        self._busy: dict[Any, float] = {}
        self._room = asyncio.Semaphore(options.connections)
        self._is_closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ending = set[asyncio.Task[None]]()
        self._on_dead = on_dead

    async def run(self, text: str, arguments: Sequence[Any], *, writes: bool) -> Sequence[Sequence[Any]]:
        """Run one statement as a transaction of its own; return its rows.

        Raises:
            ForeignLoop: It is used on another event loop than before.
            StoreError: As `_errors` names them.
        """
        loop = self._own_loop()
        async with self._room:
            driver = await self._acquire()
            self._busy[driver] = loop.time()
            if self._timer is None and not self._begin:
                self._timer = loop.call_later(DOUBT_SEC, self._doubt)
            is_sound = False
            try:
                rows = await answered(driver, self._timeout_sec, self._ask(driver, text, arguments))
                is_sound = True
                return rows
            except Exception as error:
                # An error that the server sent leaves the connection as it was; after any other its state is not known.
                is_sound = sqlstate(error) is not None and not driver.is_closed() and not self._begin
                raise call_failed(error, self.where, writes=writes) from error
            finally:
                del self._busy[driver]
                if is_sound and not self._is_closed:
                    self._free.append((driver, loop.time()))
                else:
                    driver.terminate()

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that this is used from, which must be the one of the first call."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ForeignLoop
        return loop

    async def _ask(self, driver: Any, text: str, arguments: Sequence[Any]) -> Sequence[Sequence[Any]]:
        if self._begin:
            await driver.execute(self._begin)
        rows: Sequence[Sequence[Any]] = await driver.fetch(text, *arguments)
        if self._begin:
            await driver.execute("commit")
        return rows

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Any]:
        """Yield a connection of the driver that is not shared, closed at the end: to create tables, to listen."""
        self._own_loop()
        driver = await self._connect()
        try:
            yield driver
        except Exception as error:
            found: BaseException = error
            if driver.is_closed() and error.__context__ is not None and sqlstate(error.__context__) is not None:
                found = error.__context__  # why it was closed; the driver then fails to end the transaction, too
            is_drivers = sqlstate(found) is not None or isinstance(found, OSError) or driver.is_closed()
            if isinstance(error, ConvergeError) or not is_drivers:
                raise
            raise call_failed(found, self.where, writes=False) from error
        finally:
            driver.terminate()

    async def close(self) -> None:
        """Close every connection that is not in use, in order if whoever waits for it lets it; those in use are closed
        when their calls end.
        """
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        free, self._free = self._free, []
        try:
            with anyio.CancelScope(shield=True):
                if self._looking is not None:
                    self._looking.cancel()
                    await asyncio.wait({self._looking})
                while self._ending:
                    await asyncio.wait(self._ending)
            with anyio.move_on_after(CLOSE_SEC, shield=True):
                async with anyio.create_task_group() as group:
                    for driver, _ in free:
                        group.start_soon(driver.close)
        finally:  # no scope shields from a task's own `cancel`
            for driver, _ in free:
                driver.terminate()

    async def _acquire(self) -> Any:
        """Return a connection that works, as far as can be told: one that was idle for long is tried."""
        while self._free:
            driver, since = self._free.pop()
            idle_sec = asyncio.get_running_loop().time() - since
            if not driver.is_closed() and (idle_sec < IDLE_SEC or await self._answers(driver, idle_sec)):
                return driver
            driver.terminate()
        return await self._connect()

    async def _answers(self, driver: Any, idle_sec: float) -> bool:
        if idle_sec > TOO_IDLE_SEC:
            return False
        try:
            await answered(driver, CHECK_SEC, driver.execute("select 1"))
        except Exception:  # whatever it is, this connection is of no use
            self._doubt_others()
            return False
        # Where the loop was held up, the answer and the end of the time came together.
        return not driver.is_closed()

    def _doubt_others(self) -> None:
        """Drop the connections that nobody uses, and have the one that listens tried: what befell one connection has
        befallen those beside it.
        """
        self._on_dead()
        free, self._free = self._free, []
        for driver, _ in free:
            driver.terminate()

    def _doubt(self) -> None:
        """Have the server asked about calls that take long; called again while there are calls."""
        self._timer = None
        if not self._busy:
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(DOUBT_SEC / 3, self._doubt)
        late = {driver: began for driver, began in self._busy.items() if loop.time() - began >= DOUBT_SEC}
        if late and (self._looking is None or self._looking.done()):
            self._looking = loop.create_task(self._end_dead(late))

    async def _end_dead(self, late: dict[Any, float]) -> None:
        """End calls that the server does not work on, nor has just answered: their connection died without a word."""
        pids = {driver: driver.get_server_pid() for driver in late}
        try:
            with anyio.fail_after(CHECK_SEC * 2):
                async with self.driver() as other:
                    rows = await other.fetch(_AT_WORK, list(pids.values()))
        except (StoreError, TimeoutError):
            return  # it is the server that does not answer: then nobody knows
        at_work = {pid for (pid,) in rows}
        dead = [driver for driver, pid in pids.items() if pid not in at_work and self._busy.get(driver) == late[driver]]
        for driver in dead:
            _LOG.warning("a connection to %s died without a word; another takes its place", self.where)
            driver.terminate()
        if dead:
            self._doubt_others()

    async def _connect(self) -> Any:
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
                for attempt in attempts:
                    attempt.add_done_callback(_drop)
                ending = asyncio.create_task(_end(attempts))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)
        if isinstance(made, StoreError):
            raise made
        return made

    async def _try_to_connect(self) -> Any:
        try:
            return await self._connector.connect()
        except StoreError as error:
            return error
        except Exception as error:
            failed = connecting_failed(error, self.where)
            failed.__cause__ = error
            return failed


async def answered(driver: Any, limit_sec: float, call: Awaitable[T]) -> T:
    """Await a call of the driver's; if it has not answered by then, or is cancelled, end its connection at once.

    Left to itself the driver asks the server, on one more connection, to stop. That hangs where the first one does, and
    leaves an error that nobody awaits when it is cut short.

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
    except BaseException:
        driver.terminate()
        raise
    finally:
        timer.cancel()


async def _end(attempts: set[_Attempt]) -> None:
    """End attempts to connect that nobody waits for.

    Not at once: cut short at the wrong moment, the driver leaves an error that nobody awaits, which the loop tells of
    later.
    """
    await asyncio.wait(attempts, timeout=CONNECT_LEFT_SEC)
    for attempt in attempts:
        attempt.cancel()
    await asyncio.wait(attempts)


def _drop(attempt: _Attempt) -> None:
    """Close what an attempt has made that nobody waits for, also where the loop is about to end."""
    if not attempt.cancelled() and not isinstance(made := attempt.result(), StoreError):
        made.terminate()
