"""How much of the event loop a peer may use: who is listed yields to others often, strangers have a small share."""

from __future__ import annotations

from collections import OrderedDict

import anyio
from anyio.lowlevel import checkpoint

from converge.env import Env
from converge.machines.records import MESSAGE, RECEIPT, SHOWN, SIGNED, SIGNED_TOGETHER, Item
from converge.net.hosts import source_of
from converge.services.messages.under_way import Link

SLICE = 16
"""Work after which others run: of about 20 us each, so that a flood of one peer delays others by a millisecond."""

SIGNATURE = 8
"""What the verification of a signature weighs, in the same unit."""

HEAVY_BYTES = 4_096
"""What weighs one more: bytes to decode."""

VALUES = 32
"""What weighs one more of a long item: values to make of it, told by its commas. A megabyte of empty lists takes two
hundred times as long as one of text.
"""

PENALTY_SEC = 10.0
"""How long a single item may keep a stranger waiting."""

STRANGERS_PER_SEC, STRANGER_PER_SEC = 5_000.0, 2_000.0
"""Work a second for all unlisted peers, and for each key and address among them: a tenth of an event loop."""

BURST_SEC = 0.25
"""For how long a share is saved up by who does not use it."""

REST_SEC = SLICE / STRANGER_PER_SEC
"""How long a peer waits at least that has used up its share: then it may go on for about as long as others wait for it.
"""

REMEMBERED = 1_024
"""Keys and addresses of strangers that are remembered."""

ALL = "*"
"""What stands for all strangers in place of an address, which may be empty."""


LIGHT = frozenset((MESSAGE, RECEIPT, SIGNED_TOGETHER))
"""Kinds of which a short item weighs 1; a signature that was verified for it weighs more."""


ANSWER_BYTES = 1_024
"""What weighs one more of an answer: bytes to gather or to encode, and to encrypt."""


def weight_of_answer(item: Item) -> int:
    """Return the approximate cost of an answer that a peer has asked for."""
    return len(item[1]) // ANSWER_BYTES


def weight(item: Item) -> int:
    """Return the approximate cost of an item."""
    kind, body = item
    most = 1 + len(body) // HEAVY_BYTES + (SIGNATURE if kind in (SIGNED, SHOWN) else 0)
    return most if len(body) < HEAVY_BYTES else most + body.count(b",") // VALUES


class Quotas:
    """The shares of the peers of one node.

    Args:
        env: Clock.
    """

    def __init__(self, env: Env) -> None:
        self._monotonic = env.monotonic
        self._shares: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, as of when

    async def spend(self, link: Link, work: int, *, is_stranger: bool) -> None:
        """Let others run for so much work of a peer; a stranger, of which nothing is listed, waits until what it spent
        before is earned again.

        A single item that takes long weighs more, by its square: nobody can run meanwhile, and it is the length of such
        a block that others feel, times how often there is one. What all strangers share is charged last, once the key
        and the address have their own, and with the work alone: many keys of one address use no more of it than one,
        and keep strangers of other addresses waiting for no longer.
        """
        await checkpoint()
        if not is_stranger:
            return
        own = link.peer.hex(), source_of(link.address)
        await self._pay(link, own, max(work, min(work * work // (2 * SLICE), int(STRANGER_PER_SEC * PENALTY_SEC))))
        await self._pay(link, (ALL,), work)

    async def _pay(self, link: Link, names: tuple[str, ...], work: int) -> None:
        """Wait until each of the shares has something left, and take from it at once: of many that wait one goes on."""
        while not link.is_closed:
            lack = -min([self._spend(name, 0) for name in names])
            if lack <= 0:
                break
            await anyio.sleep(max(REST_SEC, lack / STRANGERS_PER_SEC))
        for name in names:
            self._spend(name, work)

    def _spend(self, name: str, work: int) -> float:
        rate, now = STRANGERS_PER_SEC if name == ALL else STRANGER_PER_SEC, self._monotonic()
        left, at = self._shares.pop(name, (rate * BURST_SEC, now))
        left = min(rate * BURST_SEC, left + (now - at) * rate) - work
        self._shares[name] = left, now
        if len(self._shares) > REMEMBERED:
            self._shares.popitem(last=False)
        return left
