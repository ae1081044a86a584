"""Batches and takes of a store, and the answers to both.

Plain named tuples, not attrs classes: a busy node makes a hundred thousand a second, in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from converge.model.keys import TASK, Family, Key, Prefix, Rest

ABSENT = 0
"""As the revision of a check: the key must not be there. Real revisions are positive."""

Check = tuple[Key, int]
"""`(key, revision)`: the key is at this revision; `(key, ABSENT)`: it is absent, given only with a put of that key."""

Put = tuple[Key, bytes]
"""`(key, value)`; a value is JSON text in UTF-8, or empty."""


class Window(NamedTuple):
    """Bounds on store time, compared inside the atomic step; microseconds, both inclusive, None for no bound."""

    at_least: int | None = None
    at_most: int | None = None


class Batch(NamedTuple):
    """If every check and the window hold, all puts and deletes take effect; otherwise none does."""

    checks: Sequence[Check] = ()
    puts: Sequence[Put] = ()
    deletes: Sequence[Key] = ()
    window: Window | None = None


def grows(batch: Batch) -> bool:
    """Return whether the batch brings new tasks, which a full store refuses; all else makes room, or serves that."""
    return any(key[0] is TASK for key, _ in batch.puts)


class Range(NamedTuple):
    """The keys under `prefix` whose rest is greater than `after`, the first `limit` of them in key order."""

    prefix: Prefix
    after: Rest | None = None
    limit: int = 100


class Take(NamedTuple):
    """Choose the `limit` smallest rests among all keys of `ranges`, delete those keys, put `to + rest + tail` for each.

    Attributes:
        ranges: At most 32 prefixes with an `after` each (its `limit` is not looked at): one family, prefixes of one
            length, no two alike.
        limit: How many keys to take, at most.
        to: Prefix of the keys that are put; `to + rest + tail` fits the types of its family.
        tail: The last parts of the keys that are put.
        checks: Must hold in the same atomic step; never `ABSENT`.
        also: Families whose value under each rest's id (its last part) is read in the same trip: of `ALSO`.
    """

    ranges: Sequence[Range]
    limit: int
    to: Prefix
    tail: Rest
    checks: Sequence[Check] = ()
    also: Sequence[Family] = ()


class Entry(NamedTuple):
    """One key with its value and the revision of the commit that wrote it."""

    key: Key
    value: bytes
    revision: int


class Committed(NamedTuple):
    """The batch was applied, at this revision."""

    revision: int


class Conflict(NamedTuple):
    """The batch or take changed nothing: these keys were at other revisions, or the window did not hold."""

    keys: tuple[Key, ...] = ()
    window: bool = False


class Taken(NamedTuple):
    """The answer to a take.

    Attributes:
        revision: Of the keys that it put: the token of each. 0 if nothing was moved.
        rests: What followed the prefix, in order; as keys they are now `to + rest + tail`.
        also: For each rest the values of `Take.also`, in that order; None where there is none.
        heads: For each range its first rest that is left: a hint, None where there was none.
        time: Store time of the take, which stands in the keys that it put.
    """

    revision: int
    rests: Sequence[Rest]
    also: Sequence[Sequence[bytes | None]]
    heads: Sequence[Rest | None]
    time: int


class Turned(NamedTuple):
    """The answers to the batches of a turn, and to its take (None if there was none)."""

    outcomes: Sequence[Committed | Conflict]
    taken: Taken | Conflict | None
