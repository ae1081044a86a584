"""Values as they are bound to statements, whatever user code has had `sqlite3` make of bytes, texts and numbers.

`sqlite3.register_adapter` is for the whole process: an adapter of bytes would turn each key into another one, so that
nothing is found, and the store seems empty. Adapters are for exact types, so a connection binds values of its own
subclasses once there is one for a type that it uses; until then nothing is done for a value.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from converge.errors import StoreUnavailable

_ADAPTERS: dict[tuple[type, type], Any] = getattr(sqlite3, "adapters", {})
_OWN = len(_ADAPTERS)
"""How many Python itself has; looked at first, since that is all there is to look at in nearly every process."""

_BOUND = tuple((kind, sqlite3.PrepareProtocol) for kind in (bytes, str, int))


class _Bytes(bytes):
    __slots__ = ()


class _Text(str):
    __slots__ = ()


class _Int(int):
    __slots__ = ()


_KINDS: dict[type, type] = {bytes: _Bytes, str: _Text, int: _Int}


class Connection(sqlite3.Connection):
    """A connection that can become one past all adapters."""

    __slots__ = ()


class _PastAdapters(Connection):
    __slots__ = ()

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        return super().execute(sql, _kept(parameters))

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        return super().executemany(sql, map(_kept, parameters))


def _kept(values: Iterable[Any]) -> list[Any]:
    return [kind(value) if (kind := _KINDS.get(type(value))) is not None else value for value in values]


def is_adapted(connection: sqlite3.Connection) -> bool:
    """Return whether an adapter would change what the connection binds."""
    return len(_ADAPTERS) > _OWN and type(connection) is Connection and any(kind in _ADAPTERS for kind in _BOUND)


def pass_adapters(connection: sqlite3.Connection) -> None:
    """Have the connection bind values as they are from here on."""
    if is_adapted(connection):
        connection.__class__ = _PastAdapters


def check_bound(connection: sqlite3.Connection) -> None:
    """Refuse what was bound since `pass_adapters`, if an adapter has come meanwhile.

    Raises:
        StoreUnavailable: One has; the next call binds values as they are.
    """
    if is_adapted(connection):
        raise StoreUnavailable(
            "an adapter for bytes, str or int was registered in sqlite3 meanwhile; nothing was written, try again"
        )
