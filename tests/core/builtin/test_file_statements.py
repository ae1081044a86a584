"""Every statement of the file store finds its rows by primary key, however many rows it is for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from converge.builtin.file import statements as sql
from converge.model.keys import ALSO, FAMILIES, HELD, LATER, READY, Family


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in sql.create():
            connection.execute(statement)
        yield connection


def plan(connection: sqlite3.Connection, statement: str) -> str:
    """How SQLite would reach the table."""
    rows = connection.execute(f"explain query plan {statement}", [1] * statement.count("?")).fetchall()
    return str(next(row[3] for row in rows if " f_" in row[3]))


def whole_key(family: Family) -> str:
    return "(" + " AND ".join(f"{name}=?" for name in family.parts) + ")"


@pytest.mark.parametrize("rows", sql.SIZES)
@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if sql.finds_many(family)], ids=str)
def test_deletes_of_many_look_up_whole_keys(connection: sqlite3.Connection, family: Family, rows: int) -> None:
    for statement in (sql.delete(family, rows), sql.delete_at(family, rows)):
        assert plan(connection, statement).endswith(f"USING PRIMARY KEY {whole_key(family)}")


def test_deletes_of_the_families_through_which_each_task_passes_are_of_many() -> None:
    assert all(sql.finds_many(family) for family in (READY, HELD))


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.parts], ids=str)
def test_one_key_is_looked_up_whole(connection: sqlite3.Connection, family: Family) -> None:
    for statement in (sql.get(family), sql.revision(family), sql.delete(family), sql.delete_at(family)):
        assert plan(connection, statement).endswith(f"USING PRIMARY KEY {whole_key(family)}")


@pytest.mark.parametrize("family", ALSO, ids=str)
@pytest.mark.parametrize("keys", sql.SIZES)
def test_values_of_many_ids_are_looked_up(connection: sqlite3.Connection, family: Family, keys: int) -> None:
    assert plan(connection, sql.values(family, keys)).endswith("USING PRIMARY KEY (id=?)")


@pytest.mark.parametrize(
    ("family", "depth", "has_after", "said"),
    [
        (READY, 1, False, "(lane=?)"),
        (READY, 1, True, "(lane=? AND (rank,id)>(?,?))"),
        (HELD, 1, True, "(lease=? AND (rank,id,nonce)>(?,?,?))"),
        (LATER, 0, True, "((due,id)>(?,?))"),
    ],
)
def test_a_range_is_read_from_where_it_begins(
    connection: sqlite3.Connection, family: Family, depth: int, has_after: bool, said: str
) -> None:
    for statement in (sql.scan(family, depth, has_after), sql.heads(family, depth, has_after)):
        assert plan(connection, statement).endswith(f"USING PRIMARY KEY {said}")
        assert "order by" in statement
        assert "TEMP B-TREE" not in str(
            connection.execute(f"explain query plan {statement}", [1] * statement.count("?")).fetchall()
        )


def test_what_was_taken_is_deleted_by_its_range(connection: sqlite3.Connection) -> None:
    assert plan(connection, sql.delete_until(READY, 1, False)).endswith(
        "USING PRIMARY KEY (lane=? AND (rank,id)<(?,?))"
    )
    assert plan(connection, sql.delete_until(READY, 1, True)).endswith(
        "USING PRIMARY KEY (lane=? AND (rank,id)>(?,?) AND (rank,id)<(?,?))"
    )
