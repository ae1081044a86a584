"""The tables: one for each family of keys, with real columns, under a prefix of the network's name."""

from __future__ import annotations

from collections.abc import Sequence

from converge.model.keys import FAMILIES, HASH, ID, INT, Family, Part
from converge_store_sql.postgresql.view import create_view

SYNTHETIC = "one"
"""The column of a family without parts: a table needs a primary key, so its only key has 0 here."""

UPDATED = frozenset(
    {"state", "lane", "key", "expiry", "pool", "lease", "dedup", "member", "agent", "joined", "epoch", "active"}
)
"""Families whose keys are put again: room in each page lets an update stay there and leave the index alone."""

NARROW = frozenset({"ready", "later", "limit", "held", "order", "notice"})
"""Families through which every task passes: rows live briefly, so their dead versions are removed eagerly."""


NEW = frozenset({"ready", "later", "limit", "held", "order", "notice", "dead", "done", "task"})
"""Families whose keys, when they are put, are as a rule not there. They are inserted plainly, which costs half of an
insert that is ready to find the key; where it is there after all the server undoes the statement, and it is run again
in the other form.
"""

OFTEN_NEW = frozenset({"state"})
"""Families whose keys, when they are put, are nearly always not there, and now and then are. Each put looks, and what
is not there is inserted plainly: an insert that is ready to find the key logs a second record.
"""


SHARED = frozenset({"epoch", "pool", "lane", "lease", "member"})
"""Families whose keys most calls check and few write. Row locks let a stream of readers starve a writer, so on these
both queue at a gate.
"""


def table(network: str, family: Family) -> str:
    """Return the name of a family's table, as it stands in SQL."""
    return f"{network}_{family}"


def columns(family: Family) -> Sequence[str]:
    """Return the quoted columns of a family's key, in key order."""
    return tuple(f'"{name}"' for name in family.parts) or (f'"{SYNTHETIC}"',)


def types(family: Family) -> Sequence[str]:
    """Return the SQL type of each column of `columns`."""
    return tuple(sql_type(part) for part in family.parts.values()) or ("bigint",)


def sql_type(part: Part) -> str:
    """Return the SQL type of a part; a name gets its collation from its column."""
    if part is INT:
        return "bigint"
    return "bytea" if part in (ID, HASH) else "text"


def create_tables(network: str) -> str:
    """Return the statements that make all tables, the sequence, the functions and the view of a network."""
    statements = [create_table(network, family) for family in FAMILIES.values()]
    statements += [
        # No cache: a cached range would hand out revisions out of order between connections (S-6).
        f"create sequence {network}_revision as bigint cache 1",
        create_lost_race(network),
        _WAITER.format(network=network),
        *create_view(network),
    ]
    return ";\n".join(statements)


def create_lost_race(network: str) -> str:
    """Return the statement that makes the function of a lost race, which no dump of tables alone contains."""
    return _LOST_RACE.format(network=network)


def create_table(network: str, family: Family) -> str:
    """Return the statement that makes the table of a family."""
    keys = columns(family)
    named = [("revision", "bigint"), ("value", "bytea"), *zip(keys, types(family), strict=True)]
    # Numbers first: behind bytes and texts, whose lengths differ, each would be padded to its own length.
    named.sort(key=lambda column: column[1] != "bigint")
    lines = [f"{column} {_COLUMN_TYPES[kind]} not null" for column, kind in named]
    lines.append(f"primary key ({', '.join(keys)})")
    settings = {"vacuum_truncate": "off"}  # cutting the file's end takes an exclusive lock that stalls every claim
    if family in UPDATED:
        settings["fillfactor"] = "70"
    if family in NARROW or family in UPDATED:
        settings |= {
            "autovacuum_vacuum_scale_factor": "0.01",
            "autovacuum_vacuum_threshold": "2000",
            "autovacuum_vacuum_cost_delay": "0",
        }
    listed = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return f"create table {table(network, family)} ({', '.join(lines)}) with ({listed})"


_COLUMN_TYPES = {"bytea": "bytea", "bigint": "bigint", "text": 'text collate "C"'}

# A statement that finds its snapshot overtaken ends itself with the code of a serialization failure, and is run again.
_LOST_RACE = """create or replace function {network}_lost_race() returns bigint language plpgsql volatile as $$
begin
    raise exception 'another commit came first; this one is run again' using errcode = '40001';
end $$"""

# Unlogged: who waits is worth nothing after a crash, and registering costs no write-ahead log.
_WAITER = """create unlogged table {network}_waiter (
    channel text collate "C" not null, waiter bigint generated always as identity, listener text not null,
    pid integer not null, seen timestamptz not null default clock_timestamp(), primary key (channel, waiter)
) with (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500)"""
