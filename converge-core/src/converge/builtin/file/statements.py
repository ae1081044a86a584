"""The SQL of the file store: a table for each family, its parts as the primary key, value and revision beside them.

Its values are bound as they are, whatever user code has had `sqlite3` make of bytes, texts and numbers: an adapter is
for the whole process, and one of bytes would turn each key into another one, so that nothing is found, and the store
seems empty. Adapters are for exact types, so a connection binds values of its own subclasses once there is one for a
type that it uses; until then nothing is done for a value.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from functools import cache
from typing import Any

from converge.errors import StoreUnavailable
from converge.machines.task import TaskState
from converge.model.keys import FAMILIES, HASH, ID, INT, Family, Key

_STRICT = ", strict" if sqlite3.sqlite_version_info >= (3, 37) else ""
"""What makes SQLite refuse a value of another type, whoever writes it."""

SIZES = (256, 64, 16, 4, 1)
"""How many rows one statement writes. A row of a statement of many costs half of one run by itself; and each step of a
statement gives up the interpreter lock, which beside a thread that computes takes up to 5 ms to get back: 500 rows one
by one were measured at 740 ms, not 8.
"""

_TYPES = {INT: "integer", ID: "blob", HASH: "blob"}


def create() -> list[str]:
    """Return the statements that make the tables of a new file."""
    meta = f"create table meta (name text primary key, value {'any' if _STRICT else ''}) without rowid{_STRICT}"
    return [meta, *map(create_table, FAMILIES.values()), VIEW]


def create_table(family: Family) -> str:
    """Return the statement that makes a family's table."""
    columns = [f'"{name}" {_TYPES.get(part, "text")} not null' for name, part in family.parts.items()] or [
        '"only" integer not null'
    ]
    key = ", ".join(f'"{name}"' for name in family.parts) or '"only"'
    columns += ["v text not null", "r integer not null", f"primary key ({key})"]
    return f"create table {table(family)} ({', '.join(columns)}) without rowid{_STRICT}"


def _of(doc: str, name: str) -> str:
    return f"json_extract({doc}, '$.{name}')"


def _moment(micros: str) -> str:
    """Return store time as text, in UTC to the millisecond."""
    when = f"strftime('%Y-%m-%d %H:%M:%f', {micros} / 1000 / 1000.0, 'unixepoch')"
    return f"case when typeof({micros}) = 'integer' and {micros} > 0 then {when} end"


def _uuid(id_: str) -> str:
    """Return an id as the commands show it."""
    parts = (f"substr(hex({id_}), {at}, {size})" for at, size in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12)))
    return "lower(" + " || '-' || ".join(parts) + ")"


NEWEST = "kept_until"
"""A column that views of releases before lack."""

VIEW = f"""create view converge_tasks as
with task as (select id, case when json_valid(v) then v end as doc from f_task),
  record as (select id, case when json_valid(v) then v end as doc from f_state),
  lease as (select id, case when json_valid(v) then v end as doc from f_lease),
  place as (
    select id, 'ready' as place, null as pool, null as state, rank, null as due, null as lease, null as claimed,
      null as until from f_ready
    union all select id, 'later', null, null, null, due, null, null, null from f_later
    union all select id, 'held', null, null, rank, null, lease, v, null from f_held
    union all select id, 'done', pool, state, null, null, null, null, until from f_done
  )
select {_uuid("t.id")} as id,
  coalesce({_of("t.doc", "pool")}, p.pool) as pool,
  case when p.place = 'done' then p.state when p.place = 'held' then '{TaskState.ASSIGNED}'
    when p.place = 'later' and {_of("s.doc", "wait")} is not null then '{TaskState.WAITING}'
    else '{TaskState.PENDING}' end as state,
  coalesce(p.place, case when {_of("t.doc", "ordering_key")} is not null then 'behind' end) as place,
  {_of("t.doc", "type")} as type,
  {_of("t.doc", "topic")} as topic,
  coalesce({_of("t.doc", "priority")}, 0) as priority,
  case when p.place is not 'done' then coalesce(p.rank, {_of("s.doc", "rank")}, {_of("t.doc", "rank")}) end as rank,
  {_moment(f"coalesce(p.due, {_of('s.doc', 'due')}, {_of('t.doc', 'due')})")} as due,
  case when p.lease is not null then {_uuid("p.lease")} end as holder,
  {_of("l.doc", "host")} as holder_host,
  {_of("l.doc", "pid")} as holder_pid,
  coalesce({_of("s.doc", "attempts")}, 0) + (p.place is 'held') as attempts,
  coalesce({_of("t.doc", "max_attempts")}, 3) as max_attempts,
  {_moment(_of("t.doc", "submitted"))} as submitted_at,
  {_moment("cast(p.claimed as integer)")} as claimed_at,
  {_moment(_of("s.doc", "finished"))} as finished_at,
  {_moment(_of("t.doc", "deadline"))} as deadline,
  {_moment("p.until")} as kept_until,
  {_of("t.doc", "dedup_key")} as dedup_key,
  {_of("t.doc", "ordering_key")} as ordering_key,
  {_of("s.doc", "by")} as last_agent,
  {_of("s.doc", "error")} as error,
  t.doc as task,
  s.doc as record
from task t left join record s on s.id = t.id left join place p on p.id = t.id left join lease l on l.id = p.lease"""
"""For operators: each task with its place, in the columns that servers have, too; a record that cannot be read hides no
other. Not for programs: it reads whole tables.
"""


def table(family: Family) -> str:
    """Return the family's table."""
    return f"f_{family}"


@cache
def names(family: Family) -> tuple[str, ...]:
    """Return the key's columns; the family without parts has one that is always 0."""
    return tuple(f'"{name}"' for name in family.parts) or ('"only"',)


def row(key: Key) -> tuple[Any, ...]:
    """Return the key's values for the columns of `names`."""
    return key[1:] or (0,)


def _where(family: Family) -> str:
    return " and ".join(f"{name} = ?" for name in names(family))


@cache
def get(family: Family) -> str:
    """Return what reads value and revision of one key."""
    return f"select v, r from {table(family)} where {_where(family)}"


@cache
def revision(family: Family) -> str:
    """Return what reads the revision of one key."""
    return f"select r from {table(family)} where {_where(family)}"


@cache
def put(family: Family, rows: int = 1) -> str:
    """Put keys, whether they are there or not."""
    width = len(names(family)) + 2
    return f"insert or replace into {table(family)} ({', '.join(names(family))}, v, r) values {_marks(width, rows)}"


@cache
def put_absent(family: Family, rows: int = 1) -> str:
    """Put keys that must not be there; an error if one is."""
    return put(family, rows).replace("insert or replace", "insert", 1)


@cache
def delete(family: Family, rows: int = 1) -> str:
    """Delete keys."""
    return f"delete from {table(family)} where {_among(names(family), rows)}"


@cache
def finds_many(family: Family) -> bool:
    """Return whether a delete of many rows looks up the whole key of each.

    Not with names in the key, nor if it begins with an integer: SQLite's planner then reads all rows under a part.
    """
    parts = list(family.parts.values())
    return bool(parts) and INT is not parts[0] and family.width is not None


@cache
def delete_at(family: Family, rows: int = 1) -> str:
    """Delete keys that are at a revision, each at its own."""
    return f"delete from {table(family)} where {_among((*names(family), 'r'), rows)}"


def _among(columns: tuple[str, ...], rows: int) -> str:
    if rows == 1:
        return " and ".join(f"{column} = ?" for column in columns)
    # Only the rows of a select, not those of `values` itself, are looked up by primary key.
    numbered = ", ".join(f"column{number}" for number in range(1, len(columns) + 1))
    return f"({', '.join(columns)}) in (select {numbered} from (values {_marks(len(columns), rows)}))"


def _marks(width: int, rows: int) -> str:
    return ", ".join([f"({', '.join('?' * width)})"] * rows)


@cache
def values(family: Family, keys: int) -> str:
    """Return what reads those keys of one part that are there, with their values."""
    (name,) = names(family)
    return f"select {name}, v from {table(family)} where {name} in ({', '.join('?' * keys)})"


@cache
def delete_until(family: Family, depth: int, has_after: bool) -> str:
    """Delete the keys under a prefix of `depth` parts whose rest is between the two given; the first may be None."""
    rest = names(family)[depth:]
    marks = f"({', '.join('?' * len(rest))})"
    conditions = [f"{name} = ?" for name in names(family)[:depth]]
    conditions += [f"({', '.join(rest)}) > {marks}"] * has_after + [f"({', '.join(rest)}) <= {marks}"]
    return f"delete from {table(family)} where {' and '.join(conditions)}"


@cache
def scan(family: Family, depth: int, has_after: bool) -> str:
    """Select the keys under a prefix of `depth` parts, in order, behind `after` if there is one."""
    prefix, rest = names(family)[:depth], names(family)[depth:]
    conditions = [f"{name} = ?" for name in prefix]
    if has_after and rest:
        conditions.append(f"({', '.join(rest)}) > ({', '.join('?' * len(rest))})")
    where = f" where {' and '.join(conditions)}" if conditions else ""
    order = f" order by {', '.join(rest)}" if rest else ""
    return f"select {', '.join(names(family))}, v, r from {table(family)}{where}{order}"


@cache
def heads(family: Family, depth: int, has_after: bool) -> str:
    """Return what reads as `scan` does: only what follows the prefix, and so many at most."""
    rest = ", ".join(names(family)[depth:])
    return (
        scan(family, depth, has_after).replace(f"select {', '.join(names(family))}, v, r", f"select {rest}", 1)
        + " limit ?"
    )


@cache
def count(family: Family, depth: int) -> str:
    """Return how many keys are under a prefix."""
    where = " and ".join(f"{name} = ?" for name in names(family)[:depth])
    return f"select count(*) from {table(family)}" + (f" where {where}" if where else "")


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
