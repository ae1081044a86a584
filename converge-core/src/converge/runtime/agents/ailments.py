"""Problems of a part of a node, as health reports them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple


class Code(StrEnum):
    """Why a node is not ready."""

    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    LOOP_BLOCKED = "loop_blocked"
    LEASE_LOST = "lease_lost"
    RENEWAL_LATE = "renewal_late"
    STORE_AWAY = "store_away"
    WATCH_DEAF = "watch_deaf"
    CLOCK_AHEAD = "clock_ahead"
    AGENT_RESTS = "agent_rests"
    LOOP_FAILED = "loop_failed"


class Ailment(NamedTuple):
    """A problem of a part of the node; `since` is in monotonic seconds."""

    code: str
    text: str
    since: float


Source = Callable[[], Iterable[Ailment]]
"""Tells what ails a part now. Called from any thread: it reads, never waits, and costs nothing for what is well."""
