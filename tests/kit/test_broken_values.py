"""Stores that change values which are like others: the kit finds each by its clause."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs
import pytest

from converge.contracts.store import Batch, Channel, Committed, Conflict, Take, Taken, Turned
from converge.testing import StoreContract
from converge.testing.running import run_contract
from converge_store_toy.plugin import TOY
from converge_store_toy.store import ToyStore

VALUES = "byte_for_byte or under_each_id"
"""The tests that tell such values apart."""


class TidiesLines(ToyStore):
    """Keeps text with the line ends of its system."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        tidy = [
            batch._replace(puts=[(key, value.replace(b"\r\n", b"\n")) for key, value in batch.puts])
            for batch in batches
        ]
        return await super().commit(tidy, wake=wake)


class TakesEmptyForAbsent(ToyStore):
    """Answers None for an empty value beside what it takes."""

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        turned = await super().turn(batches, take, wake=wake)
        if not isinstance(turned.taken, Taken):
            return turned
        also = [[value or None for value in row] for row in turned.taken.also]
        return turned._replace(taken=turned.taken._replace(also=also))


class WholeKit(StoreContract):
    """The store as it should be."""

    backend = TOY
    loops = ("asyncio",)


class TidyKit(WholeKit):
    """The store that tidies line ends."""

    backend = attrs.evolve(TOY, open=TidiesLines.open)


class AbsentKit(WholeKit):
    """The store that takes empty values for absent ones."""

    backend = attrs.evolve(TOY, open=TakesEmptyForAbsent.open)


@pytest.mark.parametrize(("kit", "clauses"), [(WholeKit, []), (TidyKit, ["S-15"]), (AbsentKit, ["S-10"])])
def test_a_store_that_changes_values_breaks_the_clause_and_no_other(
    kit: type[StoreContract], clauses: list[str]
) -> None:
    run = run_contract(kit, tests=VALUES)
    assert [failure.clause for failure in run.failures] == clauses
    assert run.passed == 2 - len(clauses)
