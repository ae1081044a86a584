"""The SQL of the file store, made from the families: a table for each, its parts as the primary key, value and revision beside them."""

from __future__ import annotations

from functools import cache
from typing import Any

from converge.model.keys import FAMILIES, HASH, ID, INT, Family, Key

SCHEMA = 1
"""Version of the tables, kept as `pragma user_version`."""

_TYPES = {INT: "integer", ID: "blob", HASH: "blob"}


def create() -> list[str]:
    """Return the statements that make the tables of a new file."""
    made = ["create table meta (name text primary key, value) without rowid"]
    for family in FAMILIES.values():
        columns = [f'"{name}" {_TYPES.get(part, "text")} not null' for name, part in family.parts.items()] or ['"only" integer not null']
        key = ", ".join(f'"{name}"' for name in family.parts) or '"only"'
        columns += ["v text not null", "r integer not null", f"primary key ({key})"]
        made.append(f"create table {table(family)} ({', '.join(columns)}) without rowid")
    made.append(VIEW)
    return made


VIEW = """
create view converge_tasks as
select lower(hex(t.id)) as id, coalesce(p.place, 'waiting for its ordering key') as place, p.due, p.lease, p.until,
  t.v as task, s.v as state
from f_task t
left join f_state s on s.id = t.id
left join (
  select id, 'ready' as place, null as due, null as lease, null as until from f_ready
  union all select id, 'later', due, null, null from f_later
  union all select id, 'held', null, lower(hex(lease)), null from f_held
  union all select id, 'done', null, null, until from f_done
) p on p.id = t.id
"""
"""For operators: each task, its place with what belongs to it (moments are store time in microseconds), its two records. Not for programs: it reads
whole tables."""


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
    """Value and revision of one key."""
    return f"select v, r from {table(family)} where {_where(family)}"


@cache
def revision(family: Family) -> str:
    """Revision of one key."""
    return f"select r from {table(family)} where {_where(family)}"


@cache
def put(family: Family) -> str:
    """Put a key, whether it is there or not."""
    marks = ", ".join("?" * (len(names(family)) + 2))
    return f"insert or replace into {table(family)} ({', '.join(names(family))}, v, r) values ({marks})"


@cache
def put_absent(family: Family) -> str:
    """Put a key that must not be there; an error if it is."""
    return put(family).replace("insert or replace", "insert", 1)


@cache
def delete(family: Family) -> str:
    """Delete a key."""
    return f"delete from {table(family)} where {_where(family)}"


@cache
def delete_at(family: Family) -> str:
    """Delete a key if it is at a revision."""
    return f"{delete(family)} and r = ?"


@cache
def scan(family: Family, depth: int, has_after: bool) -> str:
    """Keys under a prefix of `depth` parts, in order, all columns; the rest of the key greater than `after` if there is one."""
    prefix, rest = names(family)[:depth], names(family)[depth:]
    conditions = [f"{name} = ?" for name in prefix]
    if has_after and rest:
        conditions.append(f"({', '.join(rest)}) > ({', '.join('?' * len(rest))})")
    where = f" where {' and '.join(conditions)}" if conditions else ""
    order = f" order by {', '.join(rest)}" if rest else ""
    return f"select {', '.join(names(family))}, v, r from {table(family)}{where}{order}"


@cache
def heads(family: Family, depth: int, has_after: bool) -> str:
    """As `scan`, only what follows the prefix."""
    rest = ", ".join(names(family)[depth:])
    return scan(family, depth, has_after).replace(f"select {', '.join(names(family))}, v, r", f"select {rest}", 1)


@cache
def count(family: Family, depth: int) -> str:
    """How many keys are under a prefix."""
    where = " and ".join(f"{name} = ?" for name in names(family)[:depth])
    return f"select count(*) from {table(family)}" + (f" where {where}" if where else "")
