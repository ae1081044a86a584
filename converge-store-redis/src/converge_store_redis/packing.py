"""Keys as fields: one byte for the family, then the packed key; in bytes they order as the keys do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from converge.model.keys import FAMILIES, HASH, ID, INT, NAME, Family, Key, Part, Rest, pack, unpack

TAGS = {family: bytes((number,)) for number, family in enumerate(FAMILIES.values(), start=1)}
"""A family's first byte. New families go to the end of FAMILIES, so that these never change."""

Packer = Callable[[Key], bytes]

_OFFSET = 2**63
_INT_ID = struct.Struct(">Q16s")


def _packer(family: Family) -> Packer:
    """Return what makes fields of the family's whole keys: one call of `struct` where its width is fixed, since a busy
    node makes many.
    """
    tag, parts = TAGS[family], tuple(family.parts.values())
    if family.width is None or not parts:
        return _names_packer(tag, parts)
    make = struct.Struct(">c" + "".join("Q" if part is INT else "16s" for part in parts)).pack
    places = [index for index, part in enumerate(parts, start=1) if part is INT]
    if parts == (ID,):  # task, state
        return lambda key: tag + key[1]
    if not places:
        return lambda key: make(tag, *key[1:])
    if places == [2] and len(parts) == 4:  # held
        return lambda key: make(tag, key[1], key[2] + _OFFSET, key[3], key[4])
    if places == [2] and len(parts) == 3:  # ready
        return lambda key: make(tag, key[1], key[2] + _OFFSET, key[3])
    if places == [1] and len(parts) == 2:  # later, limit
        return lambda key: make(tag, key[1] + _OFFSET, key[2])
    return lambda key: tag + pack(key)


@lru_cache(maxsize=256)
def _head(tag: bytes, first: str, second: str, number: int) -> bytes:
    """Return what fields begin with that are alike but for an id: of tasks that end together."""
    return b"%b%b\0%b\0%b" % (tag, first.encode(), second.encode(), _packed(INT, number))


def _names_packer(tag: bytes, parts: tuple[Part, ...]) -> Packer:
    if parts == (NAME, NAME, INT, ID):  # done
        return lambda key: _head(tag, key[1], key[2], key[3]) + key[4]
    if parts == (NAME, NAME):  # dedup, key, member
        return lambda key: b"%b%b\0%b\0" % (tag, key[1].encode(), key[2].encode())
    if parts == (NAME, HASH):  # lane
        return lambda key: b"%b%b\0%b" % (tag, key[1].encode(), key[2])
    return lambda key: tag + pack(key)


PACKERS = {family: _packer(family) for family in FAMILIES.values()}
"""What makes fields of whole keys, by family."""


def field(key: Key) -> bytes:
    """Return the field of a key, or what all fields under a prefix begin with."""
    return PACKERS[key[0]](key) if len(key) - 1 == key[0].arity else TAGS[key[0]] + pack(key)


@cache
def rests_unpacker(family: Family, skip: int) -> Callable[[bytes], list[Rest]]:
    """Return what turns packed rests, one after the other, back into the parts that follow the first `skip`."""
    parts = tuple(family.parts.values())[skip:]
    if parts == (INT, ID):  # what a claim takes
        pairs = _INT_ID.iter_unpack
        return lambda data: [(number - _OFFSET, id_) for number, id_ in pairs(data)]

    def unpack_all(data: bytes) -> list[Rest]:
        rests, at = [], 0
        while at < len(data):
            end = at
            for part in parts:  # a name ends with a NUL, so each rest shows where it ends
                end = data.index(b"\0", end) + 1 if part is NAME else end + (8 if part is INT else 16)
            rests.append(unpack(family, data[at:end], skip=skip))
            at = end
        return rests

    return unpack_all


def member_unpacker(family: Family) -> Callable[[bytes], Key]:
    """Return what turns a field back into its key."""
    parts = tuple(family.parts.values())
    if parts and NAME not in parts:
        take = struct.Struct(">x" + "".join("Q" if part is INT else "16s" for part in parts)).unpack
        if INT not in parts:
            return lambda data: (family, *take(data))
    return lambda data: (family, *unpack(family, data[1:]))


def bounds(prefix: Key, after: Rest | None) -> tuple[bytes, bytes]:
    """Return the least and greatest member of a range, as ZRANGEBYLEX takes them."""
    start = field(prefix)
    least = b"[" + start if after is None else b"(" + field(prefix + after)
    return least, b"(" + _next(start)


def tail_of(to: Key, tail: Rest) -> bytes:
    """Return the packed last parts of a key that begins with `to`."""
    parts = tuple(to[0].parts.values())
    return b"".join([_packed(part, value) for part, value in zip(parts[len(parts) - len(tail) :], tail, strict=True)])


def _packed(part: Part, value: Any) -> bytes:
    if part is INT:
        return int(value + _OFFSET).to_bytes(8, "big")
    return value.encode() + b"\0" if part is NAME else bytes(value)


def _next(start: bytes) -> bytes:
    """Return the least bytes above everything that begins with `start`; its first byte is a tag, so there is always
    one.
    """
    number = int.from_bytes(start, "big") + 1
    return number.to_bytes(len(start), "big")
