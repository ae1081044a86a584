"""Bounds on what strangers cost before they have proven who they are: places, connections and hellos, in all and for
each address, whatever the transport.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import anyio
from anyio.lowlevel import checkpoint

from converge.env import Env

UNFINISHED = 64
"""Handshakes under way at a time, and as many again from addresses that are known."""

UNFINISHED_PER_ADDRESS = 16
"""Of these from one address, so that one host cannot take every place."""

HELLOS_PER_SEC = 200
"""First hellos that are answered: each costs two key agreements and a signature, 0.2 ms of work. So many again are
answered from addresses that are known.
"""

HELLOS_PER_ADDRESS = 100
"""Of these from one address."""

CONNECTIONS_PER_ADDRESS = 100
"""Connections a second of one address that are looked at; the others are closed as they come."""

CROWDED_SEC = 1.0
"""A handshake that has taken so long gives its place up when all are taken."""

ADDRESSES = 1_024
"""Addresses that are remembered, and as many known ones: no number of strangers makes one of those forgotten."""

KNOWN_SEC = 3_600.0
"""How long an address is known after a handshake from it has completed."""


class Place:
    """A handshake under way, within `scope`, which is cancelled when another needs the place more."""

    __slots__ = ("address", "is_known", "scope", "since")

    def __init__(self, address: str, since: float, *, is_known: bool) -> None:
        self.address, self.since, self.is_known = address, since, is_known
        self.scope = anyio.CancelScope()


class _Budget:
    """So many a second, and a second's worth at once."""

    __slots__ = ("_at", "_left", "_most")

    def __init__(self, most: float, now: float) -> None:
        self._most = self._left = most
        self._at = now

    def has(self, now: float) -> bool:
        self._left = min(self._most, self._left + (now - self._at) * self._most)
        self._at = now
        return self._left >= 1

    def spend(self) -> None:
        self._left -= 1


class _Address:
    __slots__ = ("connections", "hellos", "known_at")

    def __init__(self, now: float) -> None:
        self.connections = _Budget(CONNECTIONS_PER_ADDRESS, now)
        self.hellos = _Budget(HELLOS_PER_ADDRESS, now)
        self.known_at = float("-inf")


class Handshakes:
    """Counts handshakes of one node's listeners."""

    def __init__(self, env: Env) -> None:
        self._monotonic: Callable[[], float] = env.monotonic
        now = env.monotonic()
        self._places: list[Place] = []
        self._strangers: OrderedDict[str, _Address] = OrderedDict()
        self._known: OrderedDict[str, _Address] = OrderedDict()
        self._hellos = {False: _Budget(HELLOS_PER_SEC, now), True: _Budget(HELLOS_PER_SEC, now)}
        self._turn = anyio.Lock()

    def enter(self, address: str) -> Place | None:
        """Reserve a place for a connection from the address; None: there is none. `leave` gives it back."""
        now = self._monotonic()
        one = self._at(address, now)
        count = sum(place.address == address for place in self._places)
        if count >= UNFINISHED_PER_ADDRESS or not one.connections.has(now):
            return None
        is_known = now - one.known_at < KNOWN_SEC
        rivals = [place for place in self._places if place.is_known == is_known]
        if len(rivals) >= UNFINISHED and not self._make_room(rivals, count, now):
            return None
        one.connections.spend()
        place = Place(address, now, is_known=is_known)
        self._places.append(place)
        return place

    def leave(self, place: Place, *, is_proven: bool = False) -> None:
        """Return a place; `is_proven`: the handshake was completed, so the address is known from now on."""
        if place in self._places:
            self._places.remove(place)
        if is_proven:
            now = self._monotonic()
            one = self._at(place.address, now)
            one.known_at = now
            self._strangers.pop(place.address, None)
            self._remember(self._known, place.address, one)

    async def admit_hello(self, place: Place) -> bool:
        """Return whether one more first hello may be answered now. Of those that came together each has a turn of the
        event loop, so that a crowd of them holds nobody else up for longer than one takes.
        """
        async with self._turn:
            await checkpoint()
        now = self._monotonic()
        budgets = self._hellos[place.is_known], self._at(place.address, now).hellos
        if sum(budget.has(now) for budget in budgets) < len(budgets):  # each is brought up to date
            return False
        for budget in budgets:
            budget.spend()
        return True

    def _make_room(self, rivals: list[Place], count: int, now: float) -> bool:
        """Take the place of the oldest handshake from the most crowded address, or of one that takes long."""
        crowds = {place.address: 0 for place in rivals}
        for place in rivals:
            crowds[place.address] += 1
        address, crowd = max(crowds.items(), key=lambda one: one[1])
        oldest = next(place for place in rivals if crowd <= count + 1 or place.address == address)
        if crowd <= count + 1 and now - oldest.since < CROWDED_SEC:
            return False
        self._places.remove(oldest)
        oldest.scope.cancel()
        return True

    def _at(self, address: str, now: float) -> _Address:
        book = self._known if address in self._known else self._strangers
        one = book.get(address) or _Address(now)
        self._remember(book, address, one)
        return one

    def _remember(self, book: OrderedDict[str, _Address], address: str, one: _Address) -> None:
        book[address] = one
        book.move_to_end(address)
        if len(book) > ADDRESSES:
            book.popitem(last=False)
