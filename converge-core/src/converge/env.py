"""What a process takes from outside besides its store and its transport: a clock and a source of randomness.

Nothing below `runtime` reads a clock or a random source by itself; it is given an `Env`, so that tests and a simulator
can give another.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Env:
    """A monotonic clock in seconds, and `entropy(n)`: n random bytes fit for keys."""

    monotonic: Callable[[], float] = time.monotonic
    entropy: Callable[[int], bytes] = os.urandom


SYSTEM = Env()
