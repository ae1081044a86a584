"""Keys as fields: one byte for the family, then the packed key; in bytes they order as the keys do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from converge.model.keys import ALSO, FAMILIES, INT, NAME, Family, Key, Rest, pack, unpack

_OFFSET = 2**63
TAGS = {family: bytes((number,)) for number, family in enumerate(FAMILIES.values(), start=1)}
"""A family's first byte. New families go to the end of FAMILIES, so that these never change."""

ORDERED = tuple(family for family in FAMILIES.values() if family not in ALSO)
"""Families that are scanned; the others are kept in no sorted set."""


@cache
def packer(family: Family) -> Callable[[Key], bytes]:
    """Return what makes fields of the family's whole keys: one call of `struct` where its width is fixed, since a busy node makes many."""
    tag = TAGS[family]
    parts = list(family.parts.values())
    if family.width is None or not parts:
        return lambda key: tag + pack(key)
    make = struct.Struct(">c" + "".join("Q" if part is INT else "16s" for part in parts)).pack
    places = [index for index, part in enumerate(parts, start=1) if part is INT]
    if not places:
        return lambda key: make(tag, *key[1:])
    if places == [2] and len(parts) == 4:  # held
        return lambda key: make(tag, key[1], key[2] + _OFFSET, key[3], key[4])
    if places == [2] and len(parts) == 3:  # ready
        return lambda key: make(tag, key[1], key[2] + _OFFSET, key[3])
    if places == [1] and len(parts) == 2:  # later, limit
        return lambda key: make(tag, key[1] + _OFFSET, key[2])
    return lambda key: tag + pack(key)


def field(key: Key) -> bytes:
    """Return the field of a key, or what all fields under a prefix begin with."""
    return packer(key[0])(key) if len(key) - 1 == key[0].arity else TAGS[key[0]] + pack(key)


@cache
def rest_unpacker(family: Family, skip: int) -> Callable[[bytes], Rest]:
    """Return what turns the bytes after the first `skip` parts back into parts."""
    parts = list(family.parts.values())[skip:]
    if parts and NAME not in parts:
        take = struct.Struct(">" + "".join("Q" if part is INT else "16s" for part in parts)).unpack
        places = [index for index, part in enumerate(parts) if part is INT]
        if places == [0]:
            return lambda data: _shifted(take(data))
        if not places:
            return take
    return lambda data: unpack(family, data, skip=skip)


def _shifted(parts: tuple[Any, ...]) -> Rest:
    return (parts[0] - _OFFSET, *parts[1:])


def bounds(prefix: Key, after: Rest | None) -> tuple[bytes, bytes]:
    """Return the least and greatest member of a range, as ZRANGEBYLEX takes them."""
    start = field(prefix) if len(prefix) > 1 else TAGS[prefix[0]]
    least = b"[" + start if after is None else b"(" + field(prefix + after)
    return least, b"(" + _next(start)


def _next(start: bytes) -> bytes:
    """The least bytes above everything that begins with `start`; its first byte is a tag, so there is always one."""
    number = int.from_bytes(start, "big") + 1
    return number.to_bytes(len(start), "big")
