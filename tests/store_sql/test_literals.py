"""Arrays as text come back as the values that went in."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converge.contracts.store import ABSENT, Batch, Conflict, Range
from converge.errors import InvalidValue
from converge.model.keys import ID, INT, INT_MAX, INT_MIN, MEMBER, NAME, ORDER, POOL, TASK
from converge_store_sql import SqlStore
from converge_store_sql.postgresql.literals import literal

AWKWARD = ["", "NULL", "null", '"', "\\", "{}", "a,b", " space ", "'", "\\x00", '\\"', "é\U0001f600", "a\nb"]


async def test_names_that_look_like_syntax_are_kept(store: SqlStore) -> None:
    puts = [(MEMBER(first, second), b"1") for first in AWKWARD for second in AWKWARD]
    await store.commit([Batch([(key, ABSENT)], [(key, value)]) for key, value in puts])
    (found,) = await store.scan([Range(MEMBER(), None, 1_000)])
    assert sorted(entry.key for entry in found) == sorted(key for key, _ in puts)
    outcomes = await store.commit([Batch([(key, ABSENT)], [(key, b"2")]) for key, _ in puts])
    assert [outcome.keys for outcome in outcomes if isinstance(outcome, Conflict)] == [(key,) for key, _ in puts]


async def test_integers_at_both_ends_are_kept(store: SqlStore) -> None:
    keys = [ORDER("p", "k", number) for number in (INT_MIN, -1, 0, 1, INT_MAX)]
    await store.commit([Batch(puts=[(key, b"1") for key in keys])])
    (found,) = await store.scan([Range(ORDER("p", "k"))])
    assert [entry.key for entry in found] == keys


async def test_an_integer_beyond_64_bits_is_refused_and_nothing_is_written(store: SqlStore) -> None:
    with pytest.raises(InvalidValue):
        await store.commit([Batch(puts=[(POOL("p"), b"1"), (ORDER("p", "k", 2**63), b"1")])])
    assert await store.get([POOL("p")]) == [None]


@pytest.mark.parametrize("ids", [[b"short"], [bytes(15), bytes(17)], ["text"], [bytes(16), None]])
def test_an_id_of_another_length_or_type_never_shifts_its_neighbours(ids: list[object]) -> None:
    with pytest.raises(InvalidValue):
        literal(ID, ids)


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=20))
def test_ids_are_written_in_their_order(ids: list[bytes]) -> None:
    text = literal(ID, ids)
    assert [bytes.fromhex(part.removeprefix("\\\\x")) for part in text[1:-1].split(",")] == ids


@given(st.lists(st.integers(INT_MIN, INT_MAX), min_size=1))
def test_integers_are_written_in_their_order(numbers: list[int]) -> None:
    assert [int(part) for part in literal(INT, numbers)[1:-1].split(",")] == numbers


async def test_a_value_that_is_not_a_name_is_refused(store: SqlStore) -> None:
    with pytest.raises(InvalidValue):
        literal(NAME, ["a", b"b"])
    with pytest.raises(InvalidValue):
        await store.get([TASK(secrets.token_hex(8))])
