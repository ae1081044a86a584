"""The arguments of the statements, in the order in which they are numbered, and what is read from their answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from converge.contracts.store import Entry, Take
from converge.model.keys import INT, INT_MIN, NAME, Family, Key, Prefix
from converge_store_sql.postgresql.plan import Part, Plan, Work
from converge_store_sql.postgresql.statements import Statements

Call = tuple[str, Sequence[Any]]
"""A statement and its arguments."""


def get_call(statements: Statements, keys: Sequence[Key]) -> Call:
    """Return the call that reads these keys, at least one."""
    families: dict[Family, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        families[key[0]].append(number)
    arguments: list[Sequence[Any]] = []
    ordered = tuple(sorted(families))
    for family in ordered:
        numbers = families[family]
        arguments += [*zip(*(keys[number][1:] or (0,) for number in numbers), strict=True), numbers]
    return statements.get(ordered), arguments


def got(keys: Sequence[Key], rows: Sequence[Sequence[Any]]) -> list[Entry | None]:
    """Return the entries of the keys that `get_call` has read."""
    found: list[Entry | None] = [None] * len(keys)
    for number, value, revision in rows:
        found[number] = Entry(keys[number], value, revision)
    return found


def count_calls(statements: Statements, prefixes: Sequence[Prefix]) -> Iterator[Call]:
    """Return the calls that count the keys under these prefixes; each answers rows of (number, total)."""
    shapes: dict[tuple[Family, int], list[int]] = defaultdict(list)
    for number, prefix in enumerate(prefixes):
        shapes[prefix[0], len(prefix) - 1].append(number)
    for (family, length), numbers in shapes.items():
        arguments = [*zip(*(prefixes[number][1:] for number in numbers), strict=True), numbers]
        yield statements.count(family, length), arguments


def turn_arguments(
    plan: Plan, work: Sequence[tuple[Part, list[Any]]], gates: Sequence[tuple[int, bool]], take: Take | None
) -> list[Any]:
    """Return the arguments of a turn in the order in which `turn_text.py` numbers them."""
    arguments: list[Any] = list(zip(*gates, strict=True))
    arguments += [column for part, columns in work if part.work <= Work.ABSENT for column in columns]
    arguments += [column for part, columns in work if part.work is Work.INSERT for column in columns]
    if plan.runs:
        arguments += zip(*plan.runs, strict=True)
    if plan.windows:
        arguments += zip(*plan.windows, strict=True)
    arguments += [column for part, columns in work if part.work is Work.DELETE_AT for column in columns]
    if take is not None:
        arguments += _take_arguments(plan, take)
    arguments += [column for part, columns in work if part.work > Work.INSERT for column in columns]
    if take is not None:
        arguments += [*take.to[1:], *take.tail]
    return arguments


def _take_arguments(plan: Plan, take: Take) -> list[Any]:
    family, length = take.ranges[0].prefix[0], len(take.ranges[0].prefix) - 1
    least = tuple(_LEAST.get(part, b"") for part in tuple(family.parts.values())[length:])
    starts = [prefix[1:] + (after or least) for prefix, after, _ in take.ranges]
    arguments: list[Any] = [*zip(*starts, strict=True), list(range(len(starts))), take.limit]
    return [*arguments, plan.take_checks] if take.checks else arguments


# Below every rest, as an `after`: a rest ends with an id, and no id is as short as the empty one.
_LEAST: dict[Any, Any] = {INT: INT_MIN, NAME: ""}
