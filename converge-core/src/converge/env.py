"""What a process takes from outside besides its store and its transport: a clock and a source of randomness.

Nothing below `runtime` reads a clock or a random source by itself; it is given an `Env`, so that tests and a simulator
can give another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

import attrs

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""What leases and store time run on: it counts while the host is suspended."""


MONOTONIC: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Answers seconds of a clock that nobody sets; they count while the host is suspended."""


@attrs.frozen(kw_only=True)
class Env:
    """A monotonic clock in seconds, and `entropy(n)`: n random bytes fit for keys."""

    monotonic: Callable[[], float] = MONOTONIC
    entropy: Callable[[int], bytes] = os.urandom

    def uniform(self, least: float = 0.0, greatest: float = 1.0) -> float:
        """Return a number from `least` to `greatest`, drawn evenly: processes that wait for so long do not all come at
        once.
        """
        return least + (greatest - least) * int.from_bytes(self.entropy(4), "big") / 2**32


SYSTEM = Env()
