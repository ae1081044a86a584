"""Wake-ups: each handle has one name that it subscribes to, and enters it among a channel's sleepers while somebody
watches that channel.

A wake tells one name, in the step that writes, and moves it behind all others. It stays among the sleepers, so whoever
is told looks at once and no wake falls in between; it enters again when it has been quiet for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Collection
from math import inf
from typing import Any

import anyio
from hiredis import HiredisError, ReplyError

from converge.contracts.store import Channel
from converge.errors import StoreError, StoreUnavailable
from converge_store_redis import _errors
from converge_store_redis.call import Call, Names
from converge_store_redis.connect import Connector
from converge_store_redis.connection import Connection
from converge_store_redis.scripts import load
from converge_store_redis.witness import Witness

log = logging.getLogger("converge.store.redis")

REFRESH_SEC = 10.0
"""How often a sleeper enters again: its reader then looks, too, so that this bounds how long a lost wake is missed."""

KEEP_SEC = 3 * REFRESH_SEC
"""For how long an entry counts: after that its handle is taken for dead. One whose connection is gone is passed over at
once.
"""

QUIET_SEC = 0.2
"""After how long without another wake who was told takes its place among the others again."""

PING_SEC = 2.5
"""After so long without a word the listening connection is asked for a sign of life, which may take as long: nothing
else would show that it is dead.
"""

RECONNECT_SEC = 0.5
CLOSE_SEC = 5.0
LEAVE_SEC = 1.0
"""How long the end of a watch may wait for the server to strike it out."""


class _Waiter:
    """One open watch."""

    __slots__ = ("channels", "entered_at", "error", "event")

    def __init__(self, channels: Collection[Channel]) -> None:
        self.channels = tuple(dict.fromkeys(channels))
        self.event = asyncio.Event()
        self.error: StoreError | None = None
        self.entered_at = -inf

    def enter_again(self) -> None:
        """Have it enter before it looks again, which it does at once."""
        self.entered_at = -inf
        self.event.set()

    async def told_within(self, sec: float) -> bool:
        """Wait for a wake, at most so long; return whether there was one."""
        with anyio.move_on_after(sec):
            await self.event.wait()
        return self.event.is_set()


class Sleepers:
    """The watches of one handle, behind one subscription."""

    def __init__(self, connector: Connector, names: Names) -> None:
        self._connector, self._names = connector, names
        self._name = names.prefix + b"w:" + secrets.token_hex(8).encode()
        self._waiters: dict[Channel, deque[_Waiter]] = {}
        self._task: asyncio.Task[None] | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._is_ready = False

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        """Yield when the watch is in force, then after each wake-up.

        Raises:
            StoreError: Wake-ups cannot be heard, since the server is not reached, say.
        """
        waiter = _Waiter(channels)
        for channel in waiter.channels:
            self._waiters.setdefault(channel, deque()).append(waiter)
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="converge-redis-wakes")
        try:
            while True:
                if not self._is_ready:
                    await waiter.event.wait()
                was_told = waiter.event.is_set()
                waiter.event.clear()
                if (error := waiter.error) is not None:
                    raise error
                if not self._is_ready:
                    continue
                if anyio.current_time() - waiter.entered_at >= REFRESH_SEC:
                    await self._enter(waiter)
                yield None
                if was_told and not await waiter.told_within(QUIET_SEC):
                    await self._enter(waiter)
                await waiter.told_within(waiter.entered_at + REFRESH_SEC - anyio.current_time())
        finally:
            await self._leave(waiter)

    async def _enter(self, waiter: _Waiter) -> None:
        keys = [self._names.sleepers(channel) for channel in waiter.channels]
        waiter.entered_at = anyio.current_time()  # before the call: who is struck out meanwhile is to enter again
        try:
            await self._connector.evaluate(load("sleep"), keys, [self._name, int(KEEP_SEC * 1_000)], writes=False)
        except BaseException:
            waiter.entered_at = -inf
            raise

    async def _leave(self, waiter: _Waiter) -> None:
        empty = []
        for channel in waiter.channels:
            self._waiters[channel].remove(waiter)
            if not self._waiters[channel]:
                del self._waiters[channel]
                empty.append(channel)
        if self._is_ready and empty:
            # If this fails, the next wake comes here and is passed on.
            with anyio.move_on_after(LEAVE_SEC, shield=True):
                try:
                    await self._strike_out(empty)
                except StoreError as error:
                    log.debug("a watch on redis at %s was left without a word: %s", self._connector.where, error)

    async def _strike_out(self, channels: Collection[Channel]) -> None:
        """Strike this handle out. A watch that began meanwhile may have entered before that, on another connection: it
        enters again.
        """
        keys = [self._names.sleepers(channel) for channel in channels]
        try:
            await self._connector.evaluate(load("leave"), keys, [self._name], writes=False)
        finally:
            for channel in channels:
                for waiter in self._waiters.get(channel, ()):
                    waiter.enter_again()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                connection = await self._connector.connect(self._hear)
                try:
                    await self._subscribe(connection)
                finally:
                    self._is_ready = False
                    connection.close()
            except StoreError as error:
                log.debug("wake-ups from redis at %s cannot be heard: %s", self._connector.where, error)
                self._tell_all(error)
            except (OSError, HiredisError) as error:
                why = str(error) or type(error).__name__
                log.warning("wake-ups from redis at %s were lost for a moment: %s", self._connector.where, why)
                if loop.time() - began > RECONNECT_SEC:
                    continue  # it worked until now; one that never does is not tried without a pause
            except Exception as error:
                log.exception("wake-ups from redis at %s are lost for a while", self._connector.where)
                self._tell_all(StoreUnavailable(f"wake-ups are not heard: {type(error).__name__}"))
            await asyncio.sleep(RECONNECT_SEC)

    async def _subscribe(self, connection: Connection) -> None:
        """Listen until the connection ends. Raises StoreError if it never began, OSError when it is over."""
        connection.tell("SUBSCRIBE", self._name)
        await self._ping(connection)  # its answer comes after the subscription is in force
        self._is_ready = True
        self._tell_all(None)  # they look, and enter again
        while not connection.is_closed:
            with anyio.move_on_after(PING_SEC):
                await connection.closed.wait()
            if asyncio.get_running_loop().time() - connection.heard_at >= PING_SEC:
                await self._ping(connection)
        connection.tell("PING")  # raises why it ended

    async def _ping(self, connection: Connection) -> None:
        async with asyncio.timeout(PING_SEC):
            answer = await connection.ask("PING")
        if isinstance(answer, ReplyError):
            raise _errors.of_answer(answer, self._connector.where, writes=False)

    def _tell_all(self, error: StoreError | None) -> None:
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.error = error
                waiter.enter_again()

    def _hear(self, message: list[Any]) -> None:
        if len(message) != 3 or message[0] != b"message":
            return
        channel = message[2].decode()
        waiters = self._waiters.get(channel)
        if not waiters:
            # Nobody watches it here any more, but somebody may elsewhere.
            task = asyncio.create_task(self._pass_on(channel))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)
            return
        waiter = next((one for one in waiters if not one.event.is_set()), None)
        if waiter is not None:
            waiters.remove(waiter)
            waiters.append(waiter)
            waiter.event.set()

    async def _pass_on(self, channel: Channel) -> None:
        """Wake another handle instead; this one is woken no more."""
        call = Call(self._names, (), None, (channel,))
        call.demand(Witness(self._names.witnesses))  # it writes nothing that could be lost
        try:
            await self._strike_out([channel])
            await self._connector.evaluate(load("turn"), call.keys, call.arguments, writes=True)
        except StoreError as error:
            log.debug("a wake for %s was not passed on: %s", channel, error)

    async def close(self) -> None:
        """Stop listening, also where the caller is cancelled."""
        tasks = [*self._passing, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            await asyncio.gather(*tasks, return_exceptions=True)
