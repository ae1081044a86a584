"""The formats of a store: which release brought each, what is new in it, and the oldest release that may run beside it.

A store begins at the first format and stays there until something newer is first used. So a release can be taken back
until then, and the releases before and after run beside each other.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from converge.codec import FIRST, FORMAT


class Format(NamedTuple):
    """A format. `oldest` is the oldest release of converge-core that may use a store in which it is used."""

    number: int
    oldest: str
    brought: str


FORMATS = (
    Format(1, "0.1.0", "the records of the first release"),
    Format(2, "0.1.0", "the active task of an ordering key apart from its next number (`active/`)"),
    Format(3, "0.1.0", "pools that keep so many ended tasks, or bytes of them (`keep_count`, `keep_bytes`)"),
    Format(4, "0.1.0", "steps, signals, output, children and waits of tasks"),
)
assert FORMATS[-1].number == FORMAT, "the newest format is the one that the codec reads"


UNFINISHED = 2**31 - 1
"""The number of a store that a copy is being written to: no release knows it, so nobody opens it half copied."""


class StoreFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """`format`: the newest format that is used in the store, and the oldest release that knows it. Fields that a newer
    release adds are ignored: it only matters that it is newer.
    """

    number: int = FIRST
    oldest: str = FORMATS[0].oldest
    copied_from: str = ""
    """Of a store that `converge store copy` has not finished: what it copies from."""
