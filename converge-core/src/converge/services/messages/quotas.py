"""How much of the event loop a peer may use: who is listed yields to others often, strangers have a small share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import anyio
from anyio.lowlevel import checkpoint

from converge.env import Env
from converge.machines.records import MESSAGE, RECEIPT, SHOWN, SIGNED, Item
from converge.services.messages.under_way import Link

SLICE = 16
"""Work after which others run: of about 20 us each, so that a flood of one peer delays others by a millisecond."""

SIGNATURE = 8
"""What the verification of a signature weighs, in the same unit."""

HEAVY_BYTES = 4_096
"""What weighs one more: bytes to decode."""

STRANGERS_PER_SEC, STRANGER_PER_SEC = 10_000.0, 4_000.0
"""Work a second for all peers of which nothing is listed, and for each key and each address among them: a fifth of an
event loop.
"""

REST_SEC = 0.02
"""How long a peer waits that has used up its share."""

REMEMBERED = 1_024
"""Keys and addresses of strangers that are remembered."""

ALL = ""


LIGHT = frozenset((MESSAGE, RECEIPT))
"""Kinds of which a short item weighs 1."""


def weight(item: Item) -> int:
    """Return what an item costs, about."""
    kind, body = item
    return 1 + len(body) // HEAVY_BYTES + (SIGNATURE if kind in (SIGNED, SHOWN) else 0)


class Quotas:
    """The shares of the peers of one node.

    Args:
        env: Clock.
        is_stranger: Whether nothing is listed of the node with this key.
    """

    def __init__(self, env: Env, is_stranger: Callable[[bytes], bool]) -> None:
        self._monotonic, self._is_stranger = env.monotonic, is_stranger
        self._shares: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, as of when

    async def spend(self, link: Link, work: int) -> None:
        """Let others run after so much work of a peer; a stranger waits until it has a share again."""
        await checkpoint()
        if not self._is_stranger(link.peer):
            return
        names = (ALL, link.peer.hex(), link.address.rpartition(":")[0])
        for name in names:
            self._take(name, work)
        while not link.is_closed:
            lack = -min([self._take(name, 0) for name in names])
            if lack <= 0:
                return
            await anyio.sleep(max(REST_SEC, lack / STRANGERS_PER_SEC))

    def _take(self, name: str, work: int) -> float:
        rate, now = STRANGERS_PER_SEC if name == ALL else STRANGER_PER_SEC, self._monotonic()
        left, at = self._shares.pop(name, (rate, now))
        left = min(rate, left + (now - at) * rate) - work
        self._shares[name] = left, now
        if len(self._shares) > REMEMBERED:
            self._shares.popitem(last=False)
        return left
