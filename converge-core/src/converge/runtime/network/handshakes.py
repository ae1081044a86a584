"""Bounds on what strangers cost before they have proven who they are."""

from __future__ import annotations

from converge.env import Env

UNFINISHED = 64
"""Handshakes under way at a time."""

UNFINISHED_PER_ADDRESS = 16
"""Of these from one address, so that one host cannot take every place."""

HELLOS_PER_SEC = 200
"""First hellos that are answered: each costs two key agreements and a signature, 0.2 ms of work."""


class Handshakes:
    """Counts handshakes of one node's listener."""

    def __init__(self, env: Env) -> None:
        self._monotonic = env.monotonic
        self._by_address: dict[str, int] = {}
        self._unfinished = 0
        self._hellos = float(HELLOS_PER_SEC)
        self._filled_at = env.monotonic()

    def enter(self, address: str) -> bool:
        """Reserve a place for a connection from the address; return whether there was one. `leave` gives it back."""
        count = self._by_address.get(address, 0)
        if self._unfinished >= UNFINISHED or count >= UNFINISHED_PER_ADDRESS:
            return False
        self._by_address[address] = count + 1
        self._unfinished += 1
        return True

    def leave(self, address: str) -> None:
        """Return a place."""
        self._unfinished -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def admit_hello(self) -> bool:
        """Return whether one more first hello may be answered now."""
        now = self._monotonic()
        self._hellos = min(float(HELLOS_PER_SEC), self._hellos + (now - self._filled_at) * HELLOS_PER_SEC)
        self._filled_at = now
        if self._hellos < 1:
            return False
        self._hellos -= 1
        return True
