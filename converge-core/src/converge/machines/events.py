"""What can happen to a task."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from converge.model.batch import Put
from converge.model.keys import Key
from converge.model.task import Wait


class Completed(msgspec.Struct, frozen=True):
    """The handler returned this (JSON).

    `also`: the key and state of a virtual agent, put in the same batch if the key is at this revision. A Struct, since
    nearly each task makes one.
    """

    result: bytes
    by: str = ""
    also: tuple[Key, bytes, int] | None = None


class Failed(NamedTuple):
    """The attempt failed. `jitter` in [0, 1) scales the wait before the next, unless `after_sec` was asked for."""

    error: str
    by: str = ""
    is_retried: bool = True
    jitter: float = 1.0
    after_sec: float | None = None


class Released(NamedTuple):
    """The claim is handed back; no attempt is counted."""

    by: str = ""
    why: str = ""


class HandedBack(NamedTuple):
    """The claim is given up before anything has begun: the task stands as it stood before, and remembers nothing."""


class Cancelled(NamedTuple):
    """The task was cancelled."""

    by: str = ""
    why: str = ""


class LeaseEnded(NamedTuple):
    """The lease of its process has ended."""

    by: str = ""


class CameDue(NamedTuple):
    """The task in `later` is due."""


class DeadlinePassed(NamedTuple):
    """It was still waiting when its deadline passed."""


class Parked(NamedTuple):
    """The handler waits: for `wait`, at most until `due`, having seen the task's signals at `revision` (0: none came).

    `puts` are the waits that it begins, and `signals` the record of its signals, both encoded.
    """

    wait: Wait
    due: int
    revision: int = 0
    puts: tuple[Put, ...] = ()
    signals: bytes = b""


class Resumed(NamedTuple):
    """What the handler was about to wait for has come; the task is ready again, and its attempts are forgiven."""

    puts: tuple[Put, ...] = ()


class Restarted(NamedTuple):
    """The task begins anew, with these inputs (JSON) and without its steps."""

    inputs: bytes


Event = (
    Completed | Failed | Released | HandedBack | Cancelled | LeaseEnded | CameDue | DeadlinePassed
    | Parked | Resumed | Restarted
)  # fmt: skip
