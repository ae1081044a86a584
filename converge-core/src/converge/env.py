"""What a process takes from outside besides its store and its transport: a clock and a source of randomness.

Nothing below `runtime` reads a clock or a random source but through an `Env`, so that tests and a simulator give one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version

import attrs

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""What leases and store time run on: it counts while the host is suspended."""


MONOTONIC: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Answers seconds of a clock that nobody sets; they count while the host is suspended."""


_IMPORTED = MONOTONIC()


@attrs.frozen(kw_only=True)
class ThisProcess:
    """What people find a process by: its host, its id there, its release of Converge, and how long it has run."""

    host: str
    pid: int
    release: str
    age_sec: float


def this_process() -> ThisProcess:
    """Return what this process is; a forked child is another."""
    age_sec = MONOTONIC() - _IMPORTED
    return ThisProcess(host=socket.gethostname()[:255], pid=os.getpid(), release=_release(), age_sec=age_sec)


@cache
def _release() -> str:
    try:
        return version("converge-core")
    except PackageNotFoundError:  # a copy of the source
        return ""


@attrs.frozen(kw_only=True)
class Env:
    """A monotonic clock in seconds, `entropy(n)`: n random bytes fit for keys, and what this process is."""

    monotonic: Callable[[], float] = MONOTONIC
    entropy: Callable[[int], bytes] = os.urandom
    process: Callable[[], ThisProcess] = this_process

    def uniform(self, least: float = 0.0, greatest: float = 1.0) -> float:
        """Return a number from `least` to `greatest`, drawn evenly, so that processes do not all come at once."""
        return least + (greatest - least) * int.from_bytes(self.entropy(4), "big") / 2**32


SYSTEM = Env()
