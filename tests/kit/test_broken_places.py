"""Stores that break what core asks of a place: who only looks, its networks, forked children, formats."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import anyio
import attrs
import pytest

from converge.contracts.store import Batch, Durability, Inspection, Store
from converge.errors import NoSuchStore, StoreBusy, StoreRefused
from converge.model.keys import POOL
from converge.testing.running import run_contract
from converge.testing.store import StoreContract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore

BROKEN: list[type[BrokenPlaces]] = []
TESTS = (
    "block_raised or looks_makes or look_at_a_server or network_has or forked_child or format_is or "
    "tells_of_its_server or revisions_go_on"
)
"""The tests of these clauses: the others are run on broken stores beside this file."""


class BrokenPlaces(StoreContract):
    """The kit for a broken store; `clause` is what it breaks."""

    clause: ClassVar[str]
    loops: ClassVar[tuple[str, ...]] = ("asyncio",)


def breaks(clause: str, *, options: type[ToyOptions] = ToyOptions, **declared: Any) -> Callable[[type[ToyStore]], None]:
    """Declare what a store breaks, and make the kit's class for it: `XKit` for the store `X`."""

    def declare(store_class: type[ToyStore]) -> None:
        kit = cast("type[BrokenPlaces]", type(f"{store_class.__name__}Kit", (BrokenPlaces,), {"__module__": __name__}))
        kit.backend = attrs.evolve(TOY, open=store_class.open, options=options, **declared)
        kit.clause = clause
        globals()[kit.__name__] = kit
        BROKEN.append(kit)

    return declare


@attrs.frozen(kw_only=True)
class PlacedOptions(ToyOptions):
    """Options that core sets, and a place: one for each test, since options are made once in each."""

    must_exist: bool = False
    network: str = "converge"
    place: str = attrs.field(factory=lambda: secrets.token_hex(8))


class PlacedStore(ToyStore):
    """The toy with places, each with networks: right, and in parts that can be broken."""

    shelves: ClassVar[dict[tuple[str, str], Shelf]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        assert isinstance(options, PlacedOptions)
        yield cls(cls.shelf_of(options))

    @classmethod
    def shelf_of(cls, options: PlacedOptions) -> Shelf:
        where = cls.where(options)
        if options.must_exist and where not in cls.shelves:
            raise NoSuchStore("there is no store")
        return cls.shelves.setdefault(where, Shelf(options))

    @classmethod
    def where(cls, options: PlacedOptions) -> tuple[str, str]:
        return options.place, options.network


async def nothing_pending(url: str, options: Any) -> Sequence[str]:
    """What a store whose opening adds nothing says."""
    return []


async def toy_server(url: str, options: Any) -> Inspection:
    """What the toy is, found without opening one."""
    return Inspection(durability=Durability.D0, product="toy")


async def better_server(url: str, options: Any) -> Inspection:
    """What the toy would like to be."""
    return Inspection(durability=Durability.D2, product="toy")


async def opened_server(url: str, options: Any) -> Inspection:
    """What the toy is, found by opening one."""
    async with PlacedStore.open(url, options):
        return Inspection(durability=Durability.D0, product="toy")


class HonestPlacesKit(BrokenPlaces):
    """The store from which those with broken places are made."""

    backend = attrs.evolve(TOY, open=PlacedStore.open, options=PlacedOptions, pending=nothing_pending, look=toy_server)


def test_the_store_with_places_is_whole() -> None:
    run = run_contract(HonestPlacesKit, tests=TESTS)
    assert (run.failures, run.passed) == ((), 7)


@breaks("S-20", options=PlacedOptions)
class OpensAnythingForWhoLooks(PlacedStore):
    """Does not know that somebody only looks."""

    @classmethod
    def shelf_of(cls, options: PlacedOptions) -> Shelf:
        return super().shelf_of(attrs.evolve(options, must_exist=False))


@breaks("S-20", options=PlacedOptions)
class MakesWhatItRefuses(PlacedStore):
    """Refuses who looks, and leaves a store behind."""

    @classmethod
    def shelf_of(cls, options: PlacedOptions) -> Shelf:
        is_there = cls.where(options) in cls.shelves
        shelf = super().shelf_of(attrs.evolve(options, must_exist=False))
        if options.must_exist and not is_there:
            raise NoSuchStore("there is no store")
        return shelf


@breaks("S-20", options=PlacedOptions)
class RefusesWithoutSayingWhy(PlacedStore):
    """Refuses who looks as it refuses a wrong password."""

    @classmethod
    def shelf_of(cls, options: PlacedOptions) -> Shelf:
        try:
            return super().shelf_of(options)
        except NoSuchStore as error:
            raise StoreRefused("not allowed") from error


@breaks("S-21", options=PlacedOptions)
class MixesNetworks(PlacedStore):
    """Keeps all networks of a place together."""

    @classmethod
    def where(cls, options: PlacedOptions) -> tuple[str, str]:
        return options.place, ""


@breaks("S-19")
class WrapsWhatItsBlockRaised(ToyStore):
    """Runs its work in a task group around the block."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[ToyStore]:
        async with ToyStore.open(url, options) as store, anyio.create_task_group():
            assert isinstance(store, ToyStore)
            yield store


@breaks("S-22")
class WorksOnAfterAFork(ToyStore):
    """Leaves out what `Store.__new__` does."""

    def __new__(cls, *_: object) -> WorksOnAfterAFork:
        return object.__new__(cls)


@breaks("S-23")
class NotesAFormatOnce(ToyStore):
    """Takes a format that was noted before for a mistake."""

    noted: ClassVar[set[int]] = set()

    async def note_format(self, number: int) -> None:
        if number in self.noted:
            raise StoreBusy("it was noted before")
        self.noted.add(number)


@breaks("S-23")
class KeepsAFormatAmongTheKeys(ToyStore):
    """Writes the format over what core keeps."""

    async def note_format(self, number: int) -> None:
        await self.commit([Batch((), [(POOL("p"), b"%d" % number)])])


async def always_pending(url: str, options: Any) -> Sequence[str]:
    """What a store says that never looks."""
    return ["a table"]


@breaks("S-23", pending=always_pending)
class SaysThatSomethingIsMissing(ToyStore):
    """Names as missing what is there."""


@breaks("S-25")
class ForgetsToAdvance(ToyStore):
    """Says that its revisions go on behind those of the other store."""

    async def advance(self, revision: int) -> None:
        pass


@breaks("S-25")
class GoesBackToWhatItIsTold(ToyStore):
    """Sets its counter to the number, be it smaller."""

    async def advance(self, revision: int) -> None:
        self.shelf.revision = revision


@breaks("S-24", durability=Durability.D2)
class TellsABetterClass(ToyStore):
    """Tells the class that its server could have."""

    async def inspect(self) -> Inspection:
        return Inspection(durability=Durability.D2, product="toy")


@breaks("S-24", durability=Durability.D1)
class SurvivesAndDoesNotPersist(ToyStore):
    """Says that what was acknowledged survives kill -9, and not that it outlives its processes."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.durability = Durability.D1


@breaks("S-24", look=better_server)
class LooksBetterThanItIs(ToyStore):
    """A look at its server tells another class than the store has."""


@breaks("S-24", options=PlacedOptions, look=opened_server)
class MakesAStoreToTellOfTheServer(PlacedStore):
    """A look at its server leaves a store behind."""


@breaks("S-24")
class TellsItsPassword(ToyStore):
    """Names the place that it was opened with."""

    async def inspect(self) -> Inspection:
        return Inspection(durability=self.durability, product="toy at toy://me:hunter2@host/0")


@breaks("S-24")
class ClaimsMoreThanItDeclared(ToyStore):
    """Has a class that the declaration knows nothing of."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.durability = Durability.D1


@pytest.mark.parametrize("kit", BROKEN, ids=lambda kit: kit.__name__)
def test_a_broken_store_fails_the_clause_that_it_breaks_and_no_other(kit: type[BrokenPlaces]) -> None:
    run = run_contract(kit, tests=TESTS)
    assert run.failed(kit.clause), f"no test of {kit.clause} failed, but {[(f.test, f.said) for f in run.failures]}"
    assert {failure.clause for failure in run.failures} == {kit.clause}


def test_each_of_these_clauses_has_a_store_that_breaks_it() -> None:
    assert {kit.clause for kit in BROKEN} == {"S-19", "S-20", "S-21", "S-22", "S-23", "S-24", "S-25"}
