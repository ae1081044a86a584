"""How much a task may record, be sent and put out."""

from __future__ import annotations

STEP_BYTES = 262_144
"""The longest result of a step, and payload of a signal: an attempt that begins again reads them all."""

STEPS = 4_096
"""Steps, waits and spawns of a task: an attempt that begins again reads them all."""

STEPS_BYTES = 16 * 1_048_576
"""Bytes of all results of a task's steps."""

SIGNALS_UNREAD = 1_000
"""Signals that a task has not consumed: what is sent to one that never waits must end somewhere."""

CHUNK_BYTES = 65_536
"""The longest piece of output: readers are sent each of them."""

CHUNKS = 10_000
"""Pieces of output of one attempt; the oldest go then, and readers are told how many."""

CHILDREN = 1_000
"""Children that one call waits for."""

NAME_CHARS = 100
"""The longest name of a step, signal or wait: with its number and in UTF-8 it fits into a key."""

READER_SEC = 30.0
"""How long a reader is notified of output before it has to ask again."""

READERS_FRESH_SEC = 0.5
"""How old what is known of a task's readers may be while it puts out: a new one looks by itself meanwhile."""

NEW_READER_SEC = 0.05
"""How often a new reader looks, until those that put out are sure to know it."""
