"""Every family of store keys, and how a key is packed into bytes of the same order.

A key is a plain tuple, `(family, *parts)`: tuples of one family compare in key order, hash fast, and need no object of
their own. A prefix is a key with fewer parts; the *rest* of a key is what follows a prefix.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Any

from converge.errors import InvalidValue

Key = tuple[Any, ...]
Prefix = tuple[Any, ...]
Rest = tuple[Any, ...]

NAME_BYTES = 200
"""The longest NAME part, in UTF-8 bytes: fits an index of every engine, MySQL's 3,072-byte keys included."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1
_OFFSET = 2**63
_U64 = struct.Struct(">Q")


class Part(Enum):
    """The type of one part of a key."""

    ID = "id"  # 16 bytes, compared as bytes
    HASH = "hash"  # 16 bytes, compared as bytes
    INT = "int"  # signed 64-bit integer
    NAME = "name"  # str of at most NAME_BYTES bytes of UTF-8, without NUL, compared by code point


ID, HASH, INT, NAME = Part.ID, Part.HASH, Part.INT, Part.NAME


class Family(str):
    """A named kind of key with typed parts; `READY(lane, rank, id)` makes a key.

    It is a `str`, so that keys of one family compare and hash at the speed of plain tuples.
    """

    __slots__ = ("arity", "parts", "width")
    parts: dict[str, Part]
    arity: int
    width: int | None

    def __new__(cls, name: str, **parts: Part) -> Family:
        family = super().__new__(cls, name)
        family.parts = parts
        family.arity = len(parts)
        widths = [8 if part is INT else 16 for part in parts.values()]
        family.width = None if NAME in parts.values() else sum(widths)
        return family

    def __call__(self, *parts: Any) -> Key:
        """Return the key, or with fewer parts the prefix, `(self, *parts)`. Nothing is checked: see `check_key`."""
        return (self, *parts)


def check_key(key: Key, *, whole: bool = True) -> None:
    """Refuse a key (or, if not `whole`, a prefix) whose parts do not have the types of its family.

    Raises:
        InvalidValue: Which part, and what it should be.
    """
    family = key[0] if key else None
    if not isinstance(family, Family):
        raise InvalidValue("key", key, "a tuple that begins with a Family")
    if len(key) - 1 > family.arity or (whole and len(key) - 1 != family.arity):
        raise InvalidValue(f"key of {family}", key, f"{family.arity} parts: {', '.join(family.parts)}")
    for (name, part), value in zip(family.parts.items(), key[1:], strict=False):
        if not fits(part, value):
            raise InvalidValue(f"{family}.{name}", value, _EXPECTED[part])


def pack(key: Key) -> bytes:
    """Return bytes that order keys and prefixes of one family as the tuples do; the family is not part of them.

    Integers become 8 bytes with the sign bit flipped, ids and hashes stay as they are, a name gets a NUL at its end
    (which no name may hold), so a packed prefix is the beginning of every packed key under it.
    """
    out = []
    for part, value in zip(key[0].parts.values(), key[1:], strict=False):
        if part is INT:
            out.append(_U64.pack(value + _OFFSET))
        elif part is NAME:
            out.append(value.encode() + b"\0")
        else:
            out.append(value)
    return b"".join(out)


def unpack(family: Family, data: bytes, *, skip: int = 0) -> Rest:
    """Return the parts that `pack` put into `data`; with `skip`, `data` begins at that part, as a rest does.

    Raises:
        ValueError: `data` is not a packed key of this family.
    """
    parts: list[Any] = []
    at = 0
    for part in tuple(family.parts.values())[skip:]:
        if part is NAME:
            end = data.index(b"\0", at)
            parts.append(data[at:end].decode())
            at = end + 1
        elif part is INT:
            if len(data) < at + 8:
                raise ValueError(f"a key of {family} has {len(data)} bytes, too few")
            parts.append(_U64.unpack_from(data, at)[0] - _OFFSET)
            at += 8
        else:
            parts.append(data[at : at + 16])
            at += 16
    if at != len(data):
        raise ValueError(f"a key of {family} has {len(data)} bytes, expected {at}")
    return tuple(parts)


def fits(part: Part, value: object) -> bool:
    """Return whether the value can be a part of a key."""
    if part is INT:
        return type(value) is int and INT_MIN <= value <= INT_MAX
    if part is NAME:
        return isinstance(value, str) and "\0" not in value and _utf8_length(value) <= NAME_BYTES
    return type(value) is bytes and len(value) == 16


def _utf8_length(value: str) -> int:
    try:
        return len(value.encode())
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return NAME_BYTES + 1


_EXPECTED = {
    ID: "16 bytes",
    HASH: "16 bytes",
    INT: "an integer of 64 bits",
    NAME: f"text of at most {NAME_BYTES} bytes of UTF-8 without NUL",
}

# The families of section "How a task lives on a store" of the architecture page. `id` is the 16 bytes of a UUID;
# moments are store time in microseconds; `rank` is in microseconds too.
EPOCH = Family("epoch")
TASK = Family("task", id=ID)
STATE = Family("state", id=ID)
DEDUP = Family("dedup", pool=NAME, key=NAME)
LANE = Family("lane", pool=NAME, lane=HASH)
READY = Family("ready", lane=HASH, rank=INT, id=ID)
LATER = Family("later", due=INT, id=ID)
LIMIT = Family("limit", deadline=INT, id=ID)
KEY = Family("key", pool=NAME, key=NAME)
ORDER = Family("order", pool=NAME, key=NAME, number=INT)
HELD = Family("held", lease=ID, rank=INT, id=ID, nonce=ID)
LEASE = Family("lease", id=ID)
EXPIRY = Family("expiry", id=ID)
DEAD = Family("dead", lease=ID)
NOTICE = Family("notice", lease=ID, id=ID)
DONE = Family("done", pool=NAME, state=NAME, until=INT, id=ID)
POOL = Family("pool", id=NAME)
MEMBER = Family("member", pool=NAME, agent=NAME)
JOINED = Family("joined", lease=ID, pool=NAME, agent=NAME)
AGENT = Family("agent", lease=ID, id=NAME)
FORMAT = Family("format")
ACTIVE = Family("active", pool=NAME, key=NAME)
TORN = Family("torn", id=ID)
STEP = Family("step", id=ID, restarts=INT, label=NAME)
SIGNALS = Family("signals", id=ID)
SIGNAL = Family("signal", id=ID, number=INT)
CHUNK = Family("chunk", id=ID, token=INT, number=INT)
READER = Family("reader", id=ID, reader=ID)
CHILD = Family("child", parent=ID, id=ID)
CUT = Family("cut", id=ID)
ENDED = Family("ended", parent=ID, id=ID)
TOLD = Family("told", parent=ID, id=ID)
OUTBOX = Family("outbox", id=ID)
ACTOR = Family("actor", pool=NAME, key=NAME)
KEPT = Family("kept", id=ID)
GONE = Family("gone", id=ID)

FAMILIES: dict[str, Family] = {
    family: family
    for family in (
        EPOCH, TASK, STATE, DEDUP, LANE, READY, LATER, LIMIT, KEY, ORDER, HELD, LEASE, EXPIRY, DEAD, NOTICE, DONE,
        POOL, MEMBER, JOINED, AGENT, FORMAT, ACTIVE, TORN, STEP, SIGNALS, SIGNAL, CHUNK, READER, CHILD, CUT, ENDED,
        TOLD, OUTBOX, ACTOR, KEPT, GONE,
    )
}  # fmt: skip
"""Every family by name: what a store with tables makes tables of, when it is opened. New ones come last."""

ALSO = (TASK, STATE)
"""The families that `Take.also` may name: keyed by one id, never scanned."""
