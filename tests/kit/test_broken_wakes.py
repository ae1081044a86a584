"""Stores whose watches overtake each other, or hear only while they wait: the kit finds them by S-9."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import ClassVar

import anyio
import attrs
import pytest

from converge.contracts.store import Batch, Channel, Committed, Conflict, Feature, Take, Turned
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


class HearsWhileItWaits(NotifyingStore):
    """Begins to listen when its caller waits again: what came while that one was busy is lost."""

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        while True:
            yield None
            seen = self.rung[0]
            while self.rung[0] == seen:  # noqa: ASYNC110  # as above
                await anyio.sleep(0.001)


class TellsNobodyOfARefusedTake(NotifyingStore):
    """Wakes nobody where the take of a turn is refused, whatever its batches have done."""

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        turned = await super().turn(batches, take)
        self.rung[0] += 0 if isinstance(turned.taken, Conflict) else len(wake)
        return turned


class TellsBeforeItsTurn(NotifyingStore):
    """Wakes after a commit, and before a turn."""

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        self.rung[0] += len(wake)
        await anyio.sleep(0.05)  # as long as a slow write takes
        return await super().turn(batches, take)


class WholeKit(StoreContract):
    """The store with wake-ups as it should be."""

    backend = attrs.evolve(TOY, open=NotifyingStore.open, features=frozenset({Feature.NOTIFIES}))
    loops = ("asyncio",)


class BrokenKit(WholeKit):
    """The store that strikes out too many."""

    backend = attrs.evolve(WholeKit.backend, open=StrikesOutWhoCame.open)
    near_sec = 0.5  # the hint that is waited for never comes


class DeafKit(BrokenKit):
    """The store that hears while it waits."""

    backend = attrs.evolve(WholeKit.backend, open=HearsWhileItWaits.open)


class RefusingKit(BrokenKit):
    """The store that tells nobody of a refused take."""

    backend = attrs.evolve(WholeKit.backend, open=TellsNobodyOfARefusedTake.open)


class EarlyKit(BrokenKit):
    """The store that tells before its turns."""

    backend = attrs.evolve(WholeKit.backend, open=TellsBeforeItsTurn.open)


def test_the_store_with_wakes_is_whole() -> None:
    run = run_contract(WholeKit, tests=WAKES)
    assert run.failures == () and run.passed >= 5


@pytest.mark.parametrize(
    ("kit", "test"),
    [
        (BrokenKit, "begins_while_another"),
        (DeafKit, "while_its_watcher_is_busy"),
        (RefusingKit, "what_its_call_has_done"),
        (EarlyKit, "before_the_write_can_be_read"),
    ],
)
def test_a_store_with_broken_wakes_breaks_the_clause_and_no_other(kit: type[StoreContract], test: str) -> None:
    run = run_contract(kit, tests=WAKES)
    assert {failure.clause for failure in run.failures} == {"S-9"}
    assert [failure.test for failure in run.failures if test in failure.test]
