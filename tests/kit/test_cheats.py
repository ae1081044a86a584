"""Backends that cheat: each is right where its author looked, and saves work that the contract asks for. The kit finds
each by its clause, in simple tests, without a random history.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import attrs
import pytest

from converge.contracts.store import Batch, Committed, Conflict, Entry, Key, Prefix, Range, Store, Take, Taken
from converge.model.keys import Rest
from converge.testing.running import run_contract
from converge.testing.store import StoreContract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore

CHEATS: list[type[Cheating]] = []
FEW = 3
"""How many are tried without FULL_TESTS."""


class Cheating(StoreContract):
    """The kit for a store that cheats.

    Attributes:
        clause: By which it is found.
        said: What the kit says then.
        tests: Which tests see it, as pytest's `-k`.
    """

    clause: ClassVar[str]
    said: ClassVar[str]
    tests: ClassVar[str]
    loops: ClassVar[tuple[str, ...]] = ("asyncio",)
    rounds = 6
    near_sec = 0.3


def cheats(clause: str, said: str, tests: str) -> Callable[[type[ToyStore]], type[ToyStore]]:
    """Declare by which clause a store is found, and make the kit's class for it at the top of this module."""

    def declare(store_class: type[ToyStore]) -> type[ToyStore]:
        name = f"{store_class.__name__}Kit"
        kit = cast("type[Cheating]", type(name, (Cheating,), {"__module__": __name__}))
        kit.backend = attrs.evolve(TOY, open=store_class.open)
        kit.clause, kit.said, kit.tests = clause, said, tests
        globals()[name] = kit
        CHEATS.append(kit)
        return store_class

    return declare


@cheats("S-6", "revision", "revision")
class TakesTheClockForASequence(ToyStore):
    """Its revisions are milliseconds, so two commits of one have the same."""

    def _next_revision(self, batch: Batch) -> int:
        return time.time_ns() // 1_000_000


@cheats("S-4", "carried out", "check")
class ComparesValues(ToyStore):
    """Takes a key for unchanged that has the value of the time when it was read, whoever wrote it since."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.read: dict[tuple[Key, int], bytes] = vars(shelf).setdefault("read", {})

    def _apply(self, batch: Batch) -> Committed | Conflict:
        checks = []
        for key, revision in batch.checks:
            entry = self.shelf.entries.get(key)
            is_alike = entry is not None and self.read.get((key, revision)) == entry.value
            checks.append((key, entry.revision if is_alike and entry is not None else revision))
        outcome = super()._apply(batch._replace(checks=checks))
        if isinstance(outcome, Committed):
            self.read |= {(key, outcome.revision): value for key, value in batch.puts}
        return outcome


@cheats("S-18", "counts", "count")
class CountsOnceAnHour(ToyStore):
    """Keeps its counts for a while, as statistics do."""

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        kept: dict[Prefix, tuple[float, int]] = vars(self.shelf).setdefault("kept", {})
        for prefix in prefixes:
            if prefix not in kept or kept[prefix][0] < time.monotonic() - 3_600.0:
                kept[prefix] = time.monotonic(), (await super().count([prefix]))[0]
        return [kept[prefix][1] for prefix in prefixes]


class Changes(ToyStore):
    """Changes parts of keys on their way in."""

    def part(self, value: Any) -> Any:
        """Return what becomes of a part."""
        return value

    def changed(self, parts: Sequence[Any]) -> tuple[Any, ...]:
        """Return a key, or a rest, as it is kept."""
        return tuple(self.part(value) if at or not hasattr(value, "parts") else value for at, value in enumerate(parts))

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return await super().get([self.changed(key) for key in keys])

    def _page(self, wanted: Range) -> list[Entry]:
        after = None if wanted.after is None else self.changed(wanted.after)
        return super()._page(wanted._replace(prefix=self.changed(wanted.prefix), after=after))

    def _apply(self, batch: Batch) -> Committed | Conflict:
        checks = [(self.changed(key), revision) for key, revision in batch.checks]
        puts = [(self.changed(key), value) for key, value in batch.puts]
        return super()._apply(batch._replace(checks=checks, puts=puts, deletes=list(map(self.changed, batch.deletes))))


@cheats("S-15", "key", "name or key or type")
class FoldsCase(Changes):
    """Compares names as many a collation does."""

    def part(self, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


@cheats("S-15", "key", "name or key or type")
class DropsSpaces(Changes):
    """Takes names that differ in spaces at their end for one, as CHAR columns do."""

    def part(self, value: Any) -> Any:
        return value.rstrip() if isinstance(value, str) else value


@cheats("S-15", "key", "name or key or type")
class KeepsNumbersAsFloats(Changes):
    """Has one type for numbers, so 64 bits do not come back."""

    def part(self, value: Any) -> Any:
        return int(float(value)) if type(value) is int and abs(value) < 2**62 else value


class Takes(ToyStore):
    """Has a take of its own, which chooses by `order`."""

    extra = 0

    def order(self, found: list[tuple[Rest, Key]]) -> list[tuple[Rest, Key]]:
        """Return what is to be taken first."""
        return sorted(found)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Any = ()) -> Any:
        turned = await super().turn(batches, None, wake=wake)
        if take is None:
            return turned
        with self.shelf.lock:
            failed = tuple(key for key, revision in take.checks if self._revision(key) != revision)
            if failed:
                return turned._replace(taken=Conflict(failed))
            pages = [(one.prefix, self._page(one._replace(limit=1_000))) for one in take.ranges]
            found = [(entry.key[len(prefix) :], entry.key) for prefix, page in pages for entry in page]
            chosen = self.order(found)[: take.limit + self.extra]
            now = self.shelf.now()
            puts = [(take.to + rest + take.tail, b"%d" % now) for rest, _ in chosen]
            outcome = self._apply(Batch((), puts, [key for _, key in chosen])) if chosen else Committed(0)
            assert isinstance(outcome, Committed)
            rests = [rest for rest, _ in chosen]
            values = [[self.shelf.entries.get(kind(rest[-1])) for kind in take.also] for rest in rests]
            also = [[one and one.value for one in some] for some in values]
            return turned._replace(taken=Taken(outcome.revision, rests, also, [None] * len(take.ranges), now))


@cheats("S-10", "", "take")
class TakesTheNewestFirst(Takes):
    """A stack is quicker than a queue."""

    def order(self, found: list[tuple[Rest, Key]]) -> list[tuple[Rest, Key]]:
        return sorted(found, reverse=True)


@cheats("S-10", "", "take")
class TakesOneMore(Takes):
    """Its limit is off by one."""

    extra = 1


@cheats("S-19", "have left open", "leaves_nothing_open")
class LeavesAFileOpen(ToyStore):
    """Opens a file for each handle, and leaves it to the garbage."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        left = os.open(os.devnull, os.O_RDONLY)
        LEFT.append(left)
        yield cls(Shelf(options))


LEFT: list[int] = []


@cheats("S-18", "`count` let out an error of its driver, which callers do not know: sqlite3.OperationalError", "count")
class LetsErrorsOfItsDriverOut(ToyStore):
    """Translates no error."""

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        raise sqlite3.OperationalError("disk I/O error")


@cheats("S-8", "", "time or clock")
class CountsItsCalls(ToyStore):
    """Its clock never runs backwards, and stands still between calls."""

    async def time(self) -> int:
        self.shelf.revision += 0
        vars(self.shelf)["ticks"] = vars(self.shelf).get("ticks", 0) + 1
        return int(vars(self.shelf)["ticks"])


@cheats("S-14", "", "handle or reopen or stays")
class KeepsACopyInEachHandle(ToyStore):
    """Reads from the handle's own copy, which only its own commits bring up to date."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.copy = dict(shelf.entries)

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        await super().get(())
        return [self.copy.get(key) for key in keys]

    def _apply(self, batch: Batch) -> Committed | Conflict:
        outcome = super()._apply(batch)
        self.copy = dict(self.shelf.entries)
        return outcome


@pytest.fixture(autouse=True)
def nothing_left_open() -> Any:
    """Close what the store that leaves files open has left."""
    yield
    while LEFT:
        os.close(LEFT.pop())


@pytest.mark.parametrize("kit", CHEATS if os.environ.get("FULL_TESTS") == "1" else CHEATS[:FEW])
def test_a_cheat_is_found_by_its_clause(kit: type[Cheating]) -> None:
    run = run_contract(kit, tests=f"({kit.tests}) and not histor and not process")
    found = run.failed(kit.clause)
    assert found, f"no test of {kit.clause} failed, but {[(f.test, f.said) for f in run.failures]}"
    assert any(kit.said in failure.said for failure in found), [failure.said for failure in found]


def test_there_are_enough_of_them() -> None:
    assert len(CHEATS) >= 12
