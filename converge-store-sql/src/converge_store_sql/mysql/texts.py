"""Pieces of SQL that MariaDB and MySQL both understand.

A key is its packed bytes, in one column: every look-up, lock and range is then one on the primary key alone. Bytes are
written as hex literals, which no character set and no SQL mode changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from converge.model.keys import NAME, NAME_BYTES, Family, pack

NOW = "cast(unix_timestamp(sysdate(6)) * 1000000 as signed)"
"""Store time. Never `now()`, which is the start of the statement; the session's time zone is UTC."""

KEYS = 250
"""Keys of one list: of longer ones MariaDB makes a temporary table, and looks them up otherwise."""


def table(network: str, family: Family) -> str:
    """Return the name of a family's table."""
    return f"{network}_{family}"


def source(network: str, family: Family) -> str:
    """Return the family's table as one to look keys up in. Left to itself the planner would rather read, and so lock,
    all of a small one.
    """
    return f"{table(network, family)} force index (primary)"


def width(family: Family) -> int:
    """Return how many bytes the longest packed key of the family has."""
    return sum(NAME_BYTES + 1 if part is NAME else 8 if part.name == "INT" else 16 for part in family.parts.values())


def hexed(data: bytes) -> str:
    """Return bytes as a literal."""
    return f"X'{data.hex()}'"


def listed(keys: Iterable[bytes]) -> str:
    """Return keys as the list after `in`."""
    return "(X'" + "',X'".join(map(bytes.hex, keys)) + "')"


def pages(keys: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
    """Return keys in lists of at most `KEYS`."""
    return (keys[at : at + KEYS] for at in range(0, len(keys), KEYS))


def bounds(prefix: bytes, after: bytes | None) -> str:
    """Return the condition of the keys under a prefix, those after one of them if that is given."""
    terms = [f"k > {hexed(after)}"] if after is not None else [f"k >= {hexed(prefix)}"]
    stripped = prefix.rstrip(b"\xff")
    if stripped:
        terms.append(f"k < {hexed(stripped[:-1] + bytes([stripped[-1] + 1]))}")
    return " and ".join(terms)


def packed_after(prefix: tuple[object, ...], after: tuple[object, ...] | None) -> bytes | None:
    """Return the packed key with which a range begins, itself left out."""
    return None if after is None else pack((*prefix, *after))
