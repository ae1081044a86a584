"""A store whose watches overtake each other: the kit finds it by S-9."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import ClassVar

import anyio
import attrs

from converge.contracts.store import Batch, Channel, Committed, Conflict, Feature
from converge.testing import StoreContract
from converge.testing.running import run_contract
from converge_store_toy.plugin import TOY
from converge_store_toy.store import ToyStore

WAKES = "wake or told or watch"
"""The tests of the clause."""


class NotifyingStore(ToyStore):
    """The toy with wake-ups of its own: right, and in a part that can be broken."""

    rung: ClassVar[list[int]] = [0]
    asleep: ClassVar[list[object]] = []

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches)
        self.rung[0] += len(wake)
        return outcomes

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        own = object()
        self.asleep.append(own)
        try:
            while True:
                seen = self.rung[0]
                yield None
                while self.rung[0] == seen or own not in self.asleep:  # noqa: ASYNC110  # a toy that polls, but often
                    await anyio.sleep(0.001)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)  # the call that strikes it out is overtaken by the next one's entering
            self.strike_out(own)

    def strike_out(self, own: object) -> None:
        self.asleep.remove(own)


class StrikesOutWhoCame(NotifyingStore):
    """Strikes out who leaves, with whoever has come meanwhile."""

    def strike_out(self, own: object) -> None:
        self.asleep.clear()


class WholeKit(StoreContract):
    """The store with wake-ups as it should be."""

    backend = attrs.evolve(TOY, open=NotifyingStore.open, features=frozenset({Feature.NOTIFIES}))
    loops = ("asyncio",)


class BrokenKit(WholeKit):
    """The store that strikes out too many."""

    backend = attrs.evolve(WholeKit.backend, open=StrikesOutWhoCame.open)
    near_sec = 0.5  # the hint that is waited for never comes


def test_the_store_with_wakes_is_whole() -> None:
    run = run_contract(WholeKit, tests=WAKES)
    assert run.failures == () and run.passed >= 5


def test_who_strikes_out_others_breaks_the_clause_and_no_other() -> None:
    run = run_contract(BrokenKit, tests=WAKES)
    assert {failure.clause for failure in run.failures} == {"S-9"}
    assert [failure.test for failure in run.failures if "begins_while_another" in failure.test]
