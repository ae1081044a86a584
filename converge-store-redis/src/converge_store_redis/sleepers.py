"""Wake-ups: each handle has one name that it subscribes to, and enters it among a channel's sleepers while somebody watches that channel."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Collection
from typing import Any

from redis import exceptions as driver

from converge.contracts.store import Channel
from converge.errors import StoreError
from converge_store_redis.connect import Connector

log = logging.getLogger("converge.store.redis")

REFRESH_SEC = 10.0
"""How often a sleeper enters itself again, should a server have lost it: a wake-up is a hint, and this bounds how long it may be missed."""


class _Waiter:
    __slots__ = ("channels", "event")

    def __init__(self, channels: Collection[Channel]) -> None:
        self.channels = tuple(channels)
        self.event = asyncio.Event()


class Sleepers:
    """The watches of one handle, behind one subscription."""

    def __init__(self, connector: Connector, prefix: bytes) -> None:
        self._connector, self._prefix = connector, prefix
        self._name = prefix + b"w:" + secrets.token_hex(8).encode()
        self._waiters: dict[Channel, deque[_Waiter]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    def set_of(self, channel: Channel) -> bytes:
        """Return the key of a channel's sleepers."""
        return self._prefix + b"s:" + channel.encode()

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        """Yield when the watch is in force, then after each wake-up."""
        waiter = _Waiter(channels)
        for channel in waiter.channels:
            self._waiters.setdefault(channel, deque()).append(waiter)
        if self._task is None:
            self._task = asyncio.create_task(self._listen())
        try:
            await self._ready.wait()
            while True:
                waiter.event.clear()
                await self._enter(waiter.channels)
                yield None
                try:
                    async with asyncio.timeout(REFRESH_SEC):
                        await waiter.event.wait()
                except TimeoutError:
                    continue
        finally:
            for channel in waiter.channels:
                self._waiters[channel].remove(waiter)
                if not self._waiters[channel]:
                    del self._waiters[channel]

    async def _enter(self, channels: Collection[Channel]) -> None:
        for channel in channels:
            # The score is the order of entering: a wake-up goes to whoever has waited longest.
            await self._connector.call("ZADD", self.set_of(channel), asyncio.get_running_loop().time(), self._name)

    async def _listen(self) -> None:
        while True:
            try:
                await self._subscribe()
            except (StoreError, driver.RedisError, OSError, EOFError) as error:
                log.warning("wake-ups from redis at %s are lost until it is back: %s", self._connector.where, error)
            self._ready.clear()
            await asyncio.sleep(0.5)

    async def _subscribe(self) -> None:
        connection = await self._connector.connect()
        try:
            await connection.send_command("SUBSCRIBE", self._name)
            await connection.read_response(disconnect_on_error=False)
            self._ready.set()
            for waiters in self._waiters.values():
                for waiter in waiters:
                    waiter.event.set()  # they look, and enter themselves again
            while True:
                self._hear(await connection.read_response(disconnect_on_error=False))
        finally:
            await connection.disconnect(nowait=True)

    def _hear(self, message: Any) -> None:
        waiters = self._waiters.get(message[2].decode(), ()) if len(message) == 3 else ()
        waiter = next((one for one in waiters if not one.event.is_set()), None)
        if waiter is not None:
            waiter.event.set()

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
