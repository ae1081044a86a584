"""Stores that are broken on purpose, one way each: the kit finds each of them, by the clause that it breaks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import anyio
import anyio.lowlevel
import attrs
import pytest

from converge.contracts.store import (
    ABSENT,
    LIMITS,
    Batch,
    Channel,
    Committed,
    Conflict,
    Entry,
    Feature,
    Key,
    Prefix,
    Range,
    Rest,
    Store,
    Take,
    Taken,
    Turned,
    Window,
)  # fmt: skip
from converge.errors import OutcomeUnknown, StoreUnavailable
from converge.testing.clauses import CLAUSES
from converge.testing.running import citing, run_contract
from converge.testing.store import Cut, StoreContract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore, refuse_long_values

BROKEN: list[type[BrokenStoreContract]] = []
IS_FULL = os.environ.get("FULL_TESTS") == "1"
PLACES = {"S-19", "S-20", "S-21", "S-22", "S-23", "S-24", "S-25", "S-26"}
"""Clauses about places and what core sets and notes; those who break them are in `test_broken_places.py`
and `test_broken_transactions.py`.
"""


class TurnStore(ToyStore):
    """The toy with a turn of its own: right, and in parts that can be broken one by one."""

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        outcomes = await self.commit(batches)
        return Turned(outcomes, None if take is None else await self.take(take))

    async def take(self, take: Take) -> Taken | Conflict:
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            return self.refusal(take) or self.move(take, self.smallest(take))

    def refusal(self, take: Take) -> Conflict | None:
        failed = tuple(key for key, revision in take.checks if self._revision(key) != revision)
        return Conflict(failed) if failed else None

    def smallest(self, take: Take) -> list[tuple[Rest, Key]]:
        found = []
        for wanted in take.ranges:
            found += [
                (entry.key[len(wanted.prefix) :], entry.key)
                for entry in ToyStore._page(self, wanted._replace(limit=take.limit))
            ]
        return sorted(found)[: take.limit]

    def move(self, take: Take, chosen: Sequence[tuple[Rest, Key]]) -> Taken:
        now = self.shelf.now()
        batch = Batch((), [(take.to + rest + take.tail, b"%d" % now) for rest, _ in chosen], [key for _, key in chosen])
        outcome = ToyStore._apply(self, batch) if chosen else Committed(0)
        assert isinstance(outcome, Committed)
        also = [[self._value(family(rest[-1])) for family in take.also] for rest, _ in chosen]
        return Taken(outcome.revision, [rest for rest, _ in chosen], also, [None] * len(take.ranges), now)

    def _value(self, key: Key) -> bytes | None:
        entry = self.shelf.entries.get(key)
        return None if entry is None else entry.value


class BrokenStoreContract(StoreContract):
    """The kit, quick enough to be run once for each broken store.

    Attributes:
        store_class: The broken store.
        clause: The clause that it breaks.
        also: Other clauses of which a test may fail, since they cannot hold without the broken one.
    """

    store_class: ClassVar[type[ToyStore]]
    clause: ClassVar[str]
    also: ClassVar[frozenset[str]] = frozenset()
    loops: ClassVar[tuple[str, ...]] = ("asyncio",)
    examples = 12
    shrinks = False
    rounds = 12
    near_sec = 0.3


Declare = Callable[[type[ToyStore]], type[ToyStore]]


def breaks(
    clause: str,
    *,
    also: Sequence[str] = (),
    features: frozenset[Feature] = frozenset(),
    options: type[ToyOptions] = ToyOptions,
    **members: Any,
) -> Declare:
    """Declare what a store breaks, and make the kit's class for it, at the top of this module: `XKit` for the store
    `X`.
    """

    def declare(store_class: type[ToyStore]) -> type[ToyStore]:
        made = type(f"{store_class.__name__}Kit", (BrokenStoreContract,), {"__module__": __name__, **members})
        kit = cast("type[BrokenStoreContract]", made)
        kit.backend = attrs.evolve(TOY, open=store_class.open, options=options, features=features)
        kit.store_class, kit.clause, kit.also = store_class, clause, frozenset(also)
        globals()[kit.__name__] = kit
        BROKEN.append(kit)
        return store_class

    return declare


# Reads.


@breaks("S-1", also=["S-3", "S-5", "S-7"])
class SortsWhatGetWasAsked(TurnStore):
    """Answers in an order of its own."""

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        entries = await super().get(keys)
        return sorted(entries, key=lambda entry: entry is None)


@breaks("S-2", also=["S-18"])
class LeaksNeighbours(TurnStore):
    """A name that begins like another is taken for it."""

    def _page(self, wanted: Range) -> list[Entry]:
        if len(wanted.prefix) == 2 and isinstance(wanted.prefix[1], str):
            family, name = wanted.prefix
            wider = [entry for entry in super()._page(Range((family,), None, 10**9)) if entry.key[1].startswith(name)]
            return [entry for entry in wider if wanted.after is None or entry.key[2:] > wanted.after][: wanted.limit]
        return super()._page(wanted)


@breaks("S-2", also=["S-18"])
class SkipsAtPageBorders(TurnStore):
    """A page that begins after a key of the store loses its first entry."""

    def _page(self, wanted: Range) -> list[Entry]:
        page = super()._page(wanted)
        is_border = wanted.after is not None and wanted.prefix + wanted.after in self.shelf.entries
        return page[1:] if is_border else page


@breaks("S-2")
class OrdersIntegersAsText(TurnStore):
    """10 comes before 9."""

    def _page(self, wanted: Range) -> list[Entry]:
        page = super()._page(wanted._replace(limit=10**9))
        if wanted.after is None:
            page.sort(key=lambda entry: tuple(str(part) if isinstance(part, int) else part for part in entry.key))
        return page[: wanted.limit]


@breaks("S-18")
class CountsOnePage(TurnStore):
    """Stops counting where a scan would end its page."""

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        return [len(page) for page in await self.scan([Range(prefix, None, LIMITS.keys) for prefix in prefixes])]


@breaks("S-15")
class CutsLongValues(TurnStore):
    """A value over the limit is shortened, and nobody is told."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return await super().commit(
            [
                batch._replace(puts=[(key, value[: LIMITS.value_bytes]) for key, value in batch.puts])
                for batch in batches
            ]
        )


@breaks("S-15")
class TidiesValues(TurnStore):
    """Values come back as the same JSON, not as the same bytes."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return await super().commit(
            [batch._replace(puts=[(key, value.replace(b"  ", b" ")) for key, value in batch.puts]) for batch in batches]
        )


# Commits.


@breaks("S-3", also=["S-4", "S-5", "S-13", "S-17"])
class IgnoresChecks(TurnStore):
    """Every batch is carried out."""

    def _apply(self, batch: Batch) -> Committed | Conflict:
        return super()._apply(batch._replace(checks=()))


@breaks("S-3", also=["S-4", "S-5", "S-13"])
class AppliesHalfABatch(TurnStore):
    """A refused batch has written its first put."""

    def _apply(self, batch: Batch) -> Committed | Conflict:
        outcome = super()._apply(batch)
        unchecked = [put for put in batch.puts if put[0] not in dict(batch.checks)]
        if isinstance(outcome, Conflict) and outcome.keys and unchecked:
            super()._apply(Batch(puts=unchecked[:1]))
        return outcome


@breaks("S-3")
class NamesOneKeyOfAConflict(TurnStore):
    """Stops comparing at the first check that fails."""

    def _apply(self, batch: Batch) -> Committed | Conflict:
        outcome = super()._apply(batch)
        return outcome._replace(keys=outcome.keys[:1]) if isinstance(outcome, Conflict) else outcome


@breaks("S-4")
class ComparesBeforeTheStep(TurnStore):
    """Checks first, writes a moment later."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        conflicts = [self._conflict(batch) for batch in batches]
        await anyio.lowlevel.checkpoint()
        passed = [
            batch._replace(checks=()) for batch, conflict in zip(batches, conflicts, strict=True) if conflict is None
        ]
        outcomes = iter(await super().commit(passed))
        return [conflict or next(outcomes) for conflict in conflicts]

    def _conflict(self, batch: Batch) -> Conflict | None:
        failed = tuple(key for key, revision in batch.checks if self._revision(key) != revision)
        return Conflict(failed, not self._is_inside(batch.window)) if failed else None


@breaks("S-4")
class LetsTwoAbsencesHold(TurnStore):
    """A revision is compared inside the step, an absence before it."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        absent = {
            key
            for batch in batches
            for key, revision in batch.checks
            if revision == ABSENT and key not in self.shelf.entries
        }
        await anyio.lowlevel.checkpoint()
        kept = [
            batch._replace(checks=[(k, r) for k, r in batch.checks if r != ABSENT or k not in absent])
            for batch in batches
        ]
        return await super().commit(kept)


@breaks("S-5", also=["S-7", "S-13"])
class UndoesNeighbours(TurnStore):
    """One conflict, and nothing of the call is carried out."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        refuse_long_values(batches)
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            entries = dict(self.shelf.entries)
            outcomes = [self._apply(batch) for batch in batches]
            if not any(isinstance(outcome, Conflict) for outcome in outcomes):
                return outcomes
            self.shelf.entries = entries
        return [outcome if isinstance(outcome, Conflict) else Conflict() for outcome in outcomes]


@breaks("S-6", also=["S-4"])
class StartsRevisionsAgain(TurnStore):
    """Each handle counts for itself."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.revision = 0

    def _next_revision(self, batch: Batch) -> int:
        self.revision += 1
        return self.revision


@breaks("S-6", also=["S-10"])
class CountsRevisionsPerKey(TurnStore):
    """A key's revision says how often it was written, not when."""

    def _next_revision(self, batch: Batch) -> int:
        counts = self.shelf.__dict__.setdefault("counts", {})
        keys = [*(key for key, _ in batch.puts), *batch.deletes]
        revision = 1 + max((counts.get(key, 0) for key in keys), default=0)
        counts.update(dict.fromkeys(keys, revision))
        return int(revision)


@breaks("S-7", also=["S-13"])
class IgnoresWindows(TurnStore):
    """Early or late is the same to it."""

    def _is_inside(self, window: Window | None) -> bool:
        return True


@breaks("S-7")
class TrustsClientsClocks(TurnStore):
    """The window is compared with the clock of whoever commits."""

    def _is_inside(self, window: Window | None) -> bool:
        now = time.time_ns() // 1_000
        return window is None or ((window.at_least or 0) <= now and (window.at_most is None or now <= window.at_most))


@breaks("S-8")
class AnswersClientsTime(TurnStore):
    """Store time is whatever this client's clock says."""

    async def time(self) -> int:
        return time.time_ns() // 1_000


@breaks("S-9", also=["S-17"])
class ForgetsWakes(TurnStore):
    """A watch that says nothing after its first item."""

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        yield None
        await anyio.sleep_forever()


@breaks("S-9", also=["S-17"], features=frozenset({Feature.NOTIFIES}))
class SaysThatItNotifies(TurnStore):
    """Declares NOTIFIES, and polls as it inherits it."""


@breaks("S-9", features=frozenset({Feature.NOTIFIES}))
class TellsBeforeItWrites(TurnStore):
    """Wakes whoever watches, and writes a moment later."""

    rung: ClassVar[list[int]] = [0]

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        self.rung[0] += len(wake)
        await anyio.sleep(0.02 if wake else 0)  # as a server's notice may be faster than its commit
        return await super().turn(batches, take)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return (await self.turn(batches, None, wake=wake)).outcomes if wake else await super().commit(batches)

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        while True:
            seen = self.rung[0]
            yield None
            while self.rung[0] == seen:  # noqa: ASYNC110  # a toy that polls, but often
                await anyio.sleep(0.001)


@breaks("S-18", also=["S-1", "S-10", "S-11", "S-17", "S-21"], call_limit_sec=1.5)
class NeverCounts(TurnStore):
    """Waits for an answer that never comes."""

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        await anyio.sleep_forever()
        raise AssertionError


# Takes.


@breaks("S-10")
class TakesLaneAfterLane(TurnStore):
    """The first range is emptied before the second is looked at."""

    def smallest(self, take: Take) -> list[tuple[Rest, Key]]:
        lanes = [super(TakesLaneAfterLane, self).smallest(take._replace(ranges=[wanted])) for wanted in take.ranges]
        return [found for lane in lanes for found in lane][: take.limit]


@breaks("S-10", also=["S-12", "S-13"])
class TakesWithoutChecks(TurnStore):
    """Moves whatever the checks say."""

    def refusal(self, take: Take) -> Conflict | None:
        return None


@breaks("S-11")
class TakesOneKeyTwice(TurnStore):
    """Looks for keys, then moves them, though another may have moved them since."""

    async def take(self, take: Take) -> Taken | Conflict:
        chosen = self.smallest(take)
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            return self.refusal(take) or self.move(take, chosen)


@breaks("S-12")
class TakesAfterTheLeaseHasEnded(TurnStore):
    """Compares its checks, then takes."""

    async def take(self, take: Take) -> Taken | Conflict:
        refusal = self.refusal(take)
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            return refusal or self.move(take, self.smallest(take))


@breaks("S-13")
class TakesOnlyAfterSuccess(TurnStore):
    """The take waits for all batches to be committed."""

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        outcomes = await self.commit(batches)
        if take is None:
            return Turned(outcomes, None)
        if any(isinstance(outcome, Conflict) for outcome in outcomes):
            return Turned(outcomes, self.refusal(take) or Taken(0, (), (), [None] * len(take.ranges), self.shelf.now()))
        return Turned(outcomes, await self.take(take))


# Handles.

_KEPT: dict[int, tuple[ToyOptions, Shelf]] = {}


@breaks("S-14", also=["S-20"], features=frozenset({Feature.PERSISTENT}))
class LosesTheLastWrite(TurnStore):
    """What was written last is gone after a restart."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        _, shelf = _KEPT.setdefault(id(options), (options, Shelf(options)))
        try:
            yield cls(shelf)
        finally:
            last = max(shelf.entries.values(), key=lambda entry: entry.revision, default=None)
            if last is not None:
                del shelf.entries[last.key]


_CUTS: dict[int, Cut] = {}


@pytest.fixture
def cut(self: StoreContract, options: ToyOptions) -> Callable[[Cut], None]:
    """Break the connection of the next commit of the store that was opened with these options."""
    return lambda moment: _CUTS.update({id(options): moment})


class SaysWhatIsUnknown(TurnStore):
    """A store behind a connection that can be cut."""

    lost: type[Exception] = OutcomeUnknown

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        moment = _CUTS.pop(id(self.shelf.options), None)
        if moment is Cut.BEFORE:
            raise StoreUnavailable("the connection broke before the request was sent")
        outcomes = await super().commit(batches)
        if moment is Cut.AFTER:
            raise self.lost("the connection broke before the reply came")
        return outcomes


@breaks("S-16", cut=cut)
class CallsTheUnknownNotApplied(SaysWhatIsUnknown):
    """A reply that is lost counts as a request that never arrived."""

    lost = StoreUnavailable


@breaks("S-17", also=["S-1", "S-4", "S-11", "S-12"])
class BelongsToOneThread(TurnStore):
    """Its handles work only in the thread in which the store was opened."""

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self._refuse_strangers()
        return await super().get(keys)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self._refuse_strangers()
        return await super().commit(batches)

    def _refuse_strangers(self) -> None:
        if self.shelf.__dict__.setdefault("thread", threading.get_ident()) != threading.get_ident():
            raise RuntimeError("this store belongs to another thread")


class HonestKit(BrokenStoreContract):
    """What the broken stores are made of, unbroken."""

    backend = attrs.evolve(TOY, open=SaysWhatIsUnknown.open)
    cut = cut


@pytest.mark.parametrize("kit", BROKEN, ids=lambda kit: kit.store_class.__name__)
def test_a_broken_store_fails_the_clause_that_it_breaks_and_no_other(kit: type[BrokenStoreContract]) -> None:
    """Without FULL_TESTS=1 the tests of that clause are run until one fails, so that it says nothing of others."""
    run = run_contract(kit) if IS_FULL else run_contract(kit, tests=citing(kit, [kit.clause]), until=[kit.clause])
    assert run.failed(kit.clause), f"no test of {kit.clause} failed, but {[(f.test, f.said) for f in run.failures]}"
    others = [(failure.test, failure.said) for failure in run.failures if failure.clause not in {kit.clause, *kit.also}]
    assert not others, "\n".join(f"{test}: {said}" for test, said in others)


@pytest.mark.skipif(not IS_FULL, reason="with FULL_TESTS=1 only: the toy's own tests are the kit once more")
def test_the_store_from_which_the_broken_ones_are_made_is_whole() -> None:
    run = run_contract(HonestKit)
    assert run.failures == ()
    assert run.passed > 70


def test_every_clause_has_a_store_that_breaks_it() -> None:
    assert {kit.clause for kit in BROKEN} | PLACES == {clause for clause in CLAUSES if clause.startswith("S-")}


class InheritedTurnKit(BrokenStoreContract):
    """A store with a broken turn, run with the turn that every store inherits."""

    backend = attrs.evolve(TOY, open=TakesLaneAfterLane.open)
    inherited_turn = True


class BothLoopsKit(BrokenStoreContract):
    """A store for every event loop."""

    backend = TOY
    loops = ("asyncio", "trio")


class AsyncioOnlyKit(BothLoopsKit):
    """A store whose driver needs asyncio."""

    backend = attrs.evolve(TOY, features=frozenset({Feature.ASYNCIO_ONLY}))


def test_the_kit_with_the_inherited_turn_does_not_see_the_stores_own() -> None:
    assert run_contract(InheritedTurnKit, tests="take").failures == ()


def test_a_store_runs_on_both_loops_unless_it_declares_asyncio_only() -> None:
    passed = [run_contract(kit, tests="get_takes_as_many_keys").passed for kit in (BothLoopsKit, AsyncioOnlyKit)]
    assert passed == [2, 1]


def test_a_failure_quotes_the_clause() -> None:
    (failure,) = run_contract(cast("type", globals()["CountsOnePageKit"]), tests="count_goes_beyond_a_page").failures
    assert failure.said.startswith("S-18: counts")
    assert f"S-18 says: {CLAUSES['S-18']}" in failure.report


def test_a_class_that_pytest_cannot_collect_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="pytest ran no test"):
        run_contract(TurnStore)
