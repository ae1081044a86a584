"""Wake-ups: a table of sleepers, struck out and notified in a statement after the commit, never in it.

NOTIFY takes a lock that every committing transaction of the database waits for, so inside the write that it announces
it would put all commits in a row. Here one statement on another connection tells for all commits since the last one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from math import inf
from typing import Any

import anyio

from converge.errors import InvalidValue, StoreError
from converge_store_sql.postgresql.connect import CHECK_SEC, Connections, answered
from converge_store_sql.postgresql.riding.riders import Riders
from converge_store_sql.postgresql.statements import Statements

BEAT_SEC = 10.0
"""How often a listener shows that it lives."""

DEAD_SEC = 30.0
"""After how long without showing itself it counts as dead: three beats. A connection that is gone is seen at once."""

SWEEP_SEC = 3_600.0
"""After how long a new listener removes the rows of others that no wake-up has come across."""

TELL_EVERY_SEC = 0.01
"""How often wakes are told at most: under load each commit wakes somebody, and a statement for each would be a tenth of
the server's work.
"""

TELL_AGAIN_SEC = 1.0
"""For how long a wake is told again whose sleepers were all passed over: what holds a row does so for a moment."""

RECONNECT_SEC = 0.5

LEAVE_SEC = 1.0
"""How long the end of a watch or of a handle may wait for its last statements."""

_LOG = logging.getLogger(__name__)


class _Sleeper:
    """One open watch: whether it was told to look, and the channels whose rows were struck out for it."""

    __slots__ = ("struck", "told")

    def __init__(self, names: Sequence[str]) -> None:
        self.told = anyio.Event()
        self.struck = set(names)

    def tell(self, names: Collection[str]) -> None:
        self.struck.update(names)
        self.told.set()


class Waiters:
    """Both sides of the wake-ups of one handle; `running` is its background work."""

    def __init__(self, connections: Connections, statements: Statements, network: str) -> None:
        self._connections, self._statements, self._network = connections, statements, network
        self._sleepers: dict[str, list[_Sleeper]] = defaultdict(list)
        self._pending: set[str] = set()
        self._has_pending = anyio.Event()
        self._opening = anyio.Lock()
        self._listener: _Listener | None = None
        self._riders = Riders()
        self._has_riders = anyio.Event()

    def wake_after(self, xid: int, channels: Collection[str]) -> None:
        """Wake one sleeper of each channel once a transaction of a caller's has committed."""
        self._riders.add(xid, channels)
        self._has_riders.set()

    def wake(self, channels: Collection[str]) -> None:
        """Wake one sleeper of each channel soon; called after the commit."""
        self._pending.update(channels)
        self._has_pending.set()

    async def watch(self, channels: Collection[str]) -> AsyncIterator[None]:
        """Watch the channels as `Store.watch` does. A sleeper that was woken was struck out, so it registers again
        before its reader looks.
        """
        names = sorted(set(channels))
        sleeper = _Sleeper(names)
        for name in names:
            self._sleepers[name].append(sleeper)
        try:
            while True:
                struck, sleeper.struck = sorted(sleeper.struck), set()
                await self._register(struck)
                yield None
                await sleeper.told.wait()
                sleeper.told = anyio.Event()
        finally:
            for name in names:
                self._sleepers[name].remove(sleeper)
            with anyio.move_on_after(LEAVE_SEC, shield=True):
                await self._leave(names, was_told=sleeper.told.is_set())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the background work within this block: wake sleepers, show that this listener lives, reconnect after a
        loss. The block may be left in another task than it was entered in.
        """
        work = asyncio.create_task(self._work())
        try:
            yield
        finally:
            try:
                with anyio.move_on_after(LEAVE_SEC, shield=True):
                    await self._tell_pending()
            finally:
                work.cancel()
                try:
                    with anyio.CancelScope(shield=True):
                        await asyncio.wait({work})
                finally:  # no scope shields from a task's own `cancel`
                    if self._listener is not None:
                        await self._listener.close()

    async def _work(self) -> None:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._tell)
                group.start_soon(self._stay)
                group.start_soon(self._ask_for_riders)
        except Exception:  # the store goes on without wake-ups: those who wait look for themselves
            _LOG.exception("wake-ups have ended")

    def doubt(self) -> None:
        """Have the listening connection tried soon: one beside it died without a word."""
        if self._listener is not None:
            self._listener.doubted.set()

    async def _register(self, names: Sequence[str]) -> None:
        listener = await self._listening()
        await self._connections.run(self._statements.register(), (names, listener.name, listener.pid), writes=False)

    async def _listening(self) -> _Listener:
        async with self._opening:
            if self._listener is None or self._listener.lost.is_set():
                if self._listener is not None:
                    await self._listener.close()
                self._listener = await _Listener.open(self._connections, self._network, self._on_notification)
                await self._connections.run(self._statements.sweep(), (SWEEP_SEC,), writes=False)
            return self._listener

    async def _leave(self, names: Sequence[str], *, was_told: bool) -> None:
        """Remove a sleeper; keep rows that others here still need, and pass on a wake-up that it has not acted on."""
        if was_told:
            self.wake(names)
        if self._listener is None or self._listener.lost.is_set():
            return
        gone = [name for name in names if not self._sleepers[name]]
        left = [name for name in names if self._sleepers[name]]
        for name in gone:
            del self._sleepers[name]
        try:
            if gone:
                await self._forget(gone, self._listener)
            if left:
                await self._register(left)
        except StoreError:
            _LOG.debug(
                "a watch could not be taken back; its row counts as dead when its connection is gone", exc_info=True
            )

    async def _forget(self, names: Sequence[str], listener: _Listener) -> None:
        """Remove the rows of names. A watch that began meanwhile may have registered before that, on another
        connection: it registers again.
        """
        try:
            await self._connections.run(self._statements.forget(), (names, listener.name), writes=False)
        finally:
            for name in names:
                for sleeper in self._sleepers.get(name, ()):
                    sleeper.tell([name])

    def _on_notification(self, channel: str) -> None:
        sleepers = self._sleepers.get(channel)
        if not sleepers:
            return
        # One that was told already has yet to look, which serves this wake-up as well; the row is its to put back all
        # the same.
        sleeper = next((each for each in sleepers if not each.told.is_set()), sleepers[0])
        sleeper.tell([channel])
        sleepers.remove(sleeper)
        sleepers.append(sleeper)  # the next wake-up is another one's

    async def _tell(self) -> None:
        while True:
            await self._has_pending.wait()
            await self._tell_pending()

    async def _tell_pending(self) -> None:
        """Wake a sleeper for each wake-up that is due, again where all sleepers were passed over."""
        until: dict[str, float] = {}
        while self._pending or until:
            next_at = anyio.current_time() + TELL_EVERY_SEC
            self._has_pending = anyio.Event()
            channels, self._pending = sorted(self._pending | until.keys()), set()
            passed_over = await self._tell_once(channels)
            now = anyio.current_time()
            until = {one: until.get(one, now + TELL_AGAIN_SEC) for one in passed_over if until.get(one, inf) > now}
            await anyio.sleep_until(next_at)

    async def _tell_once(self, channels: Sequence[str]) -> set[str]:
        """Wake a sleeper of each channel; return the channels whose sleepers were all passed over."""
        try:
            rows = await self._connections.run(self._statements.wake(), (channels, DEAD_SEC), writes=False)
        except StoreError:
            _LOG.debug("a wake-up was not told; sleepers look for themselves after their poll interval", exc_info=True)
            return set()
        return {channel for channel, _ in rows} - {channel for channel, is_told in rows if is_told}

    async def _ask_for_riders(self) -> None:
        while True:
            if (pause := self._riders.pause_sec) is None:
                self._has_riders = anyio.Event()
                await self._has_riders.wait()
                continue
            await anyio.sleep(pause)
            try:
                rows = await self._connections.run(*self._riders.question, writes=False)
            except StoreError:
                _LOG.debug("what became of a caller's transaction is asked again", exc_info=True)
                continue
            except InvalidValue:  # a number yet to be given: the server has lost those transactions, or was put back
                self._riders = Riders()
                continue
            if wake := self._riders.heed(rows):
                self.wake(wake)

    async def _stay(self) -> None:
        while True:
            listener = self._listener
            with anyio.move_on_after(BEAT_SEC if listener is not None else RECONNECT_SEC):
                await (listener.doubted.wait() if listener is not None else anyio.sleep_forever())
            if listener is None or not any(self._sleepers.values()):
                if listener is not None and listener.lost.is_set():
                    await anyio.sleep(RECONNECT_SEC)  # nobody waits for it
                continue
            try:
                if listener.lost.is_set() or not await listener.beat(self._statements.beat(), sorted(self._sleepers)):
                    await self._listening()
                    self._tell_all()
            except StoreError:
                _LOG.debug("the listener could not be renewed", exc_info=True)
                await anyio.sleep(RECONNECT_SEC)

    def _tell_all(self) -> None:
        """Wake everybody after a time without a connection: wake-ups of that time are lost."""
        for name, sleepers in self._sleepers.items():
            for sleeper in sleepers:
                sleeper.tell([name])


class _Listener:
    """One connection that listens, under a name of its own: rows of a lost one must not pass for those of the next."""

    def __init__(self, stack: AsyncExitStack, driver: Any, name: str) -> None:
        self._stack, self._driver, self.name, self.pid = stack, driver, name, driver.get_server_pid()
        self.lost, self.doubted = anyio.Event(), anyio.Event()

    def lose(self) -> None:
        """Note that the connection is gone."""
        self.lost.set()
        self.doubted.set()

    async def beat(self, text: str, channels: Sequence[str]) -> bool:
        """Show on the connection itself that it lives; return whether it does."""
        self.doubted = anyio.Event()
        try:
            await answered(self._driver, CHECK_SEC, self._driver.execute(text, channels, self.name))
        except Exception:  # whatever it is, nothing will be heard here
            self.lose()
        return not self.lost.is_set()

    @classmethod
    async def open(cls, connections: Connections, network: str, tell: Callable[[str], None]) -> _Listener:
        async with AsyncExitStack() as stack:
            driver = await stack.enter_async_context(connections.driver())
            name = f"{network}_{secrets.token_hex(12)}"
            await driver.add_listener(name, lambda _driver, _pid, _name, channel: tell(channel))
            listener = cls(stack, driver, name)
            driver.add_termination_listener(lambda _driver: listener.lose())
            listener._stack = stack.pop_all()
            return listener

    async def close(self) -> None:
        await self._stack.aclose()
