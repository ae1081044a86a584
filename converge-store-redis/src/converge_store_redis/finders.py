"""Which server to connect to: the one of the URL, the primary that sentinels name, the owner of a cluster's slot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from hiredis import ReplyError

from converge.errors import StoreRefused, StoreUnavailable
from converge_store_redis.connection import Connection
from converge_store_redis.place import Address, Kind, Place

ASK_SEC = 2.0
"""How long one of several may take to connect and answer, before the next one is asked."""

Dial = Callable[[Address], Awaitable[Connection]]
"""Connects to a server or sentinel; raises StoreError."""


class Finder(Protocol):
    """Knows where the primary is."""

    async def find(self) -> Address:
        """Return where to connect to. Raises StoreError."""

    def moved(self, to: Address | None) -> None:
        """Note that the primary has moved: to that address, or to one that is not known."""


class Fixed:
    """The server of the URL, whatever it says."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def find(self) -> Address:
        return self._address

    def moved(self, to: Address | None) -> None:
        """Do nothing: no other address is known."""


class Asking:
    """Asks the servers that are known, one after the other; who has answered is asked first the next time."""

    def __init__(self, place: Place, dial: Dial) -> None:
        self._place, self._dial = place, dial
        self._known = list(place.addresses)

    async def _ask(self, ask: Callable[[Connection, Address], Awaitable[Address]]) -> Address:
        said = []
        for one in list(self._known):
            try:
                async with asyncio.timeout(ASK_SEC):
                    connection = await self._dial(one)
                    try:
                        found = await ask(connection, one)
                    finally:
                        connection.close()
            except (StoreUnavailable, StoreRefused, OSError, ReplyError) as error:  # TimeoutError is an OSError
                said.append(f"{one}: {str(error) or type(error).__name__}")
                self._known.remove(one)
                self._known.append(one)
            else:
                self._known.remove(one)
                self._known.insert(0, one)
                return found
        raise StoreUnavailable(
            f"redis: {self._what} cannot be found; check the servers, and the addresses in the URL: {'; '.join(said)}"
        )

    @property
    def _what(self) -> str:
        return f"the primary of {self._place}"


class Sentinels(Asking):
    """Asked for each new connection: what they said before a failover is worth nothing."""

    async def find(self) -> Address:
        return await self._ask(self._primary)

    async def _primary(self, sentinel: Connection, _: Address) -> Address:
        answer = await sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._place.service)
        if isinstance(answer, ReplyError):
            raise answer
        if answer is None:
            raise StoreUnavailable(f'it watches no service "{self._place.service}"')
        return Address(answer[0].decode(), int(answer[1]))

    def moved(self, to: Address | None) -> None:
        """Do nothing: they are asked each time."""


class Cluster(Asking):
    """Keeps the owner of one slot until it is said to be elsewhere, or is not reached."""

    def __init__(self, place: Place, dial: Dial, key: bytes) -> None:
        super().__init__(place, dial)
        self._key = key
        self._owner: Address | None = None

    @property
    def _what(self) -> str:
        return f"the owner of the slot in the cluster {self._place}"

    async def find(self) -> Address:
        if self._owner is None:
            self._owner = await self._ask(self._owner_of_slot)
        return self._owner

    async def _owner_of_slot(self, node: Connection, address: Address) -> Address:
        slot, ranges = [await one for one in (node.ask("CLUSTER", "KEYSLOT", self._key), node.ask("CLUSTER", "SLOTS"))]
        for answer in (slot, ranges):
            if isinstance(answer, ReplyError):
                raise answer
        nodes = [_address(one, address) for _, _, *some in ranges for one in some]
        self._known = list(dict.fromkeys((*nodes, *self._known, *self._place.addresses)))
        for first, last, owner, *_ in ranges:
            if first <= slot <= last:
                return _address(owner, address)
        raise StoreUnavailable(f"no node of the cluster has the slot {slot}; see `redis-cli cluster info`")

    def moved(self, to: Address | None) -> None:
        self._owner = to


def finder_of(place: Place, dial: Dial, dial_sentinel: Dial, key: bytes) -> Finder:
    """Return what knows where the primary of a place is; `key` is any key of the network."""
    if place.kind is Kind.SENTINEL:
        return Sentinels(place, dial_sentinel)
    return Cluster(place, dial, key) if place.kind is Kind.CLUSTER else Fixed(place.addresses[0])


def _address(node: Any, asked: Address) -> Address:
    host = (node[0] or b"").decode()
    return Address(host if host and host != "?" else asked.host, int(node[1]))
