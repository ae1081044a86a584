"""Stores that break what they promise of transactions of their callers'."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import anyio
import attrs
import pytest

from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Feature, Key, Store
from converge.model.keys import LANE
from converge.testing.running import run_contract
from converge.testing.store import Begin, StoreContract
from converge.transactions import Within
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore

BROKEN: list[type[BrokenTransactions]] = []
TESTS = "within or without_transactions or refused_batch or lane_that"


class Transaction:
    """A caller's transaction: what it has put, and which lanes it relies on, on whatever shelf it is used."""

    def __init__(self) -> None:
        self.shelf: Shelf | None = None
        self.written: dict[Key, Entry] = {}
        self.relied: set[Key] = set()

    def end(self, *, keeps: bool) -> None:
        if self.shelf is None:
            return
        with self.shelf.lock:
            if keeps:
                self.shelf.entries |= self.written
            OPEN.remove(self)


OPEN: list[Transaction] = []


@asynccontextmanager
async def begin() -> AsyncIterator[Transaction]:
    transaction = Transaction()
    try:
        yield transaction
    except BaseException:
        transaction.end(keeps=False)
        raise
    transaction.end(keeps=True)


class RidingStore(ToyStore):
    """The toy with transactions of its callers': right, and in parts that can be broken."""

    within_class: ClassVar[type[Riding]]

    def within(self, connection: Any) -> Store:
        connection.shelf = self.shelf
        OPEN.append(connection)
        return self.within_class(self, connection)

    def _apply(self, batch: Batch) -> Committed | Conflict:
        written = {key for key, _ in batch.puts} | set(batch.deletes)
        relied = written.intersection(*(one.relied for one in OPEN if one.shelf is self.shelf)) if OPEN else set()
        return Conflict(tuple(relied)) if relied else super()._apply(batch)


class Riding(Within):
    """Commits into the transaction."""

    def __init__(self, outside: RidingStore, transaction: Transaction) -> None:
        super().__init__(outside)
        self.shelf, self.transaction = outside.shelf, transaction

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        await anyio.lowlevel.checkpoint()
        return [self.transaction.written.get(key) or self.shelf.entries.get(key) for key in keys]

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            return [decide(self, batch) for batch in batches]

    def refusal(self, batch: Batch) -> Conflict | None:
        """What is wrong with the batch's checks."""
        found = self.shelf.entries | self.transaction.written
        failed = [key for key, at in batch.checks if (found[key].revision if key in found else 0) != at]
        return Conflict(tuple(failed)) if failed else None

    def write(self, batch: Batch) -> Committed:
        """Put it into the transaction."""
        self.shelf.revision += 1
        self.transaction.relied |= {key for key, _ in batch.checks if key[0] == LANE}
        self.transaction.written |= {key: Entry(key, value, self.shelf.revision) for key, value in batch.puts}
        return Committed(self.shelf.revision)


def decide(riding: Riding, batch: Batch) -> Committed | Conflict:
    return riding.refusal(batch) or riding.write(batch)


RidingStore.within_class = Riding


class BrokenTransactions(StoreContract):
    """The kit for a broken store."""

    loops: ClassVar[tuple[str, ...]] = ("asyncio",)
    near_sec: ClassVar[float] = 1.0

    @pytest.fixture
    def begin(self) -> Begin | None:
        return begin


class HonestTransactionsKit(BrokenTransactions):
    near_sec: ClassVar[float] = 30.0
    backend = attrs.evolve(TOY, open=RidingStore.open, features=TOY.features | {Feature.TRANSACTIONS})


def breaks(**declared: Any) -> Callable[[type[Riding]], None]:
    """Make the kit's class for a store with this `Within`."""

    def declare(within_class: type[Riding]) -> None:
        store = type(within_class.__name__, (RidingStore,), {"within_class": within_class})
        kit = cast(
            "type[BrokenTransactions]", type(f"{store.__name__}Kit", (BrokenTransactions,), {"__module__": __name__})
        )
        kit.backend = attrs.evolve(HonestTransactionsKit.backend, open=cast("Any", store).open, **declared)
        globals()[kit.__name__] = kit
        BROKEN.append(kit)

    return declare


@breaks()
class WritesAtOnce(Riding):
    """Writes past the transaction."""

    def write(self, batch: Batch) -> Committed:
        done = super().write(batch)
        self.shelf.entries |= self.transaction.written
        return done


@breaks()
class SeesNothingOfItsOwn(Riding):
    """Reads past the transaction."""

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return await self.outside.get(keys)


@breaks()
class WritesWhatItRefuses(Riding):
    """Refuses a batch, and leaves its puts in the transaction."""

    def refusal(self, batch: Batch) -> Conflict | None:
        found = super().refusal(batch)
        if found is not None:
            self.write(batch)
        return found


@breaks()
class ChecksNothing(Riding):
    """Commits whatever was checked."""

    def refusal(self, batch: Batch) -> Conflict | None:
        return None


@breaks()
class LetsLanesGo(Riding):
    """Looks at the lane, and does not keep it."""

    def write(self, batch: Batch) -> Committed:
        done = super().write(batch)
        self.transaction.relied.clear()
        return done


@breaks(features=TOY.features)
class DoesNotDeclareIt(Riding):
    """Has transactions of its callers', and does not say so."""


def test_the_store_with_transactions_is_whole() -> None:
    run = run_contract(HonestTransactionsKit, tests=TESTS)
    assert (run.failures, run.passed) == ((), 7)


@pytest.mark.parametrize("kit", BROKEN, ids=lambda kit: kit.__name__)
def test_a_store_with_broken_transactions_fails_their_clause(kit: type[BrokenTransactions]) -> None:
    run = run_contract(kit, tests=TESTS)
    assert run.failures
    assert {failure.clause for failure in run.failures} <= {"S-26", None}
