"""How much a task may record, be sent and put out."""

from __future__ import annotations

import re

STEP_BYTES = 262_144
"""The longest result of a step, and payload of a signal: an attempt that begins again reads them all."""

STEPS = 4_096
"""Steps, waits and spawns of a task: an attempt that begins again reads them all."""

STEPS_BYTES = 16 * 1_048_576
"""Bytes of all results of a task's steps."""

SIGNALS_UNREAD = 1_000
"""Signals that a task has not consumed: what is sent to one that never waits must end somewhere."""

KNOWN_FROM = 64
"""Records from which on a process keeps what an attempt had read that was parked: fewer are read in one call."""

RECORD_BYTES = 400
"""About how much memory a record takes beside what it holds."""

CHUNK_BYTES = 65_536
"""The longest piece of output: readers are sent each of them."""

CHUNKS = 10_000
"""Pieces of output of one attempt; the oldest go then, and readers are told how many."""

CHILDREN = 1_000
"""Children that one call waits for."""

NAME_CHARS = 100
"""The longest name of a step, signal or wait: with its number and in UTF-8 it fits into a key."""

WAIT_NAMES = 100
"""Signals that one call waits for: their names stand in the task's state."""

NUMBERED = re.compile(r"#[0-9]+$")
"""How the label of a name ends that is used again."""

NAME = f"1 to {NAME_CHARS} printable characters, not ending in # and a number, which counts repeats"
"""What a valid name is, for people."""


def is_valid_name(name: object) -> bool:
    """Return whether a step, wait, child or signal may have this name: what is signalled can be waited for."""
    return type(name) is str and 0 < len(name) <= NAME_CHARS and name.isprintable() and not NUMBERED.search(name)


WITHIN, OR = "\x1f", "\x1e"
"""What stands in a label between a step and what it calls, and between the names of a wait: no name contains them, so
that no other call has the label.
"""


def shown(name: str) -> str:
    """Return a label without its kind, for people."""
    return name.replace(WITHIN, "/").replace(OR, "|")


READER_SEC = 30.0
"""How long a reader is notified of output before it has to ask again."""

READERS_FRESH_SEC = 0.5
"""How old what is known of a task's readers may be while it puts out: a new one looks by itself meanwhile."""

NEW_READER_SEC = 0.05
"""How often a new reader looks, until those that put out are sure to know it."""
