"""Stores and discoveries that are right in one process and wrong with several: the kit starts some, and finds each by
its clause.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import anyio
import anyio.lowlevel
import attrs
import pytest

from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Feature, Key, Store
from converge.model.keys import FAMILIES, pack, unpack
from converge.testing.discovery import DiscoveryContract
from converge.testing.running import run_contract
from converge.testing.store import StoreContract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore

pytestmark = pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")

BROKEN: list[type[BrokenProcesses]] = []
FOUND_SEC = 10.0
"""How long it may take to find one, on a quiet machine."""

BOTH = frozenset({Feature.SHARED, Feature.PERSISTENT})


@attrs.frozen(kw_only=True)
class PlacedOptions(ToyOptions):
    """Options with a place."""

    path: str = ""


class FileShelf(Shelf):
    """A shelf in a file: read when its lock is taken, written when it is left."""

    def __init__(self, options: PlacedOptions) -> None:
        super().__init__(options)
        self.path, self.depth, self.file = Path(options.path), 0, -1
        self.lock = cast("Any", self)
        self.offset_us = 0

    def now(self) -> int:
        return time.time_ns() // 1_000 + self.offset_us

    def __enter__(self) -> FileShelf:
        self.file = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.save()
        os.close(self.file)

    def load(self) -> None:
        revision, rows = json.loads(self.path.read_text()) if self.path.exists() else (0, [])
        self.revision = revision
        entries = [
            Entry((FAMILIES[name], *unpack(FAMILIES[name], bytes.fromhex(packed))), value.encode(), at)
            for name, packed, value, at in rows
        ]
        self.entries = {entry.key: entry for entry in entries}

    def save(self) -> None:
        rows = [(one.key[0], pack(one.key).hex(), one.value.decode(), one.revision) for one in self.entries.values()]
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps([self.revision, rows]))
        new.replace(self.path)  # who is killed leaves the old one, or the new one


class FileToy(ToyStore):
    """The toy on a shelf in a file, which is right for any number of processes."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        assert isinstance(options, PlacedOptions)
        yield cls(FileShelf(options))


class BrokenProcesses(StoreContract):
    """The kit for a broken store; `clauses` are those of which one is found broken, whichever `tests` meet first."""

    clauses: ClassVar[frozenset[str]]
    tests: ClassVar[str]
    loops: ClassVar[tuple[str, ...]] = ("asyncio",)

    @pytest.fixture
    def options(self, tmp_path: Path) -> PlacedOptions:
        return PlacedOptions(path=str(tmp_path / "shelf"))


class HonestKit(BrokenProcesses):
    """The store from which the broken ones are made."""

    backend = attrs.evolve(TOY, open=FileToy.open, options=PlacedOptions, features=BOTH)


def breaks(
    *clauses: str, features: frozenset[Feature] = BOTH, tests: str = "that_count"
) -> Callable[[type[ToyStore]], type[ToyStore]]:
    """Declare what a store breaks, and make the kit's class for it: `XKit` for the store `X`."""

    def declare(store_class: type[ToyStore]) -> type[ToyStore]:
        name = f"{store_class.__name__}Kit"
        kit = cast("type[BrokenProcesses]", type(name, (BrokenProcesses,), {"__module__": __name__}))
        kit.backend = attrs.evolve(TOY, open=store_class.open, options=PlacedOptions, features=features)
        kit.clauses, kit.tests = frozenset(clauses), tests
        globals()[name] = kit
        BROKEN.append(kit)
        return store_class

    return declare


@breaks("S-4", "S-11")
class ComparesOutsideTheLock(FileToy):
    """Compares checks under one hold of the lock, and writes under the next."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        await anyio.lowlevel.checkpoint()
        with self.shelf.lock:
            wrong = [tuple(key for key, at in batch.checks if self._revision(key) != at) for batch in batches]
        await anyio.sleep(0.005)  # as long as another process may take to come in between
        with self.shelf.lock:
            return [
                Conflict(keys) if keys else self._apply(batch._replace(checks=()))
                for keys, batch in zip(wrong, batches, strict=True)
            ]


@breaks("S-4", "S-11", "S-14")
class IsSharedWithNobody(FileToy):
    """Says SHARED, and keeps all in its own process."""

    shelves: ClassVar[dict[str, Shelf]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        assert isinstance(options, PlacedOptions)
        yield cls(cls.shelves.setdefault(options.path, Shelf(options)))


@breaks("S-14", features=frozenset({Feature.PERSISTENT}))
class IsGoneWithItsProcess(IsSharedWithNobody):
    """Says PERSISTENT: handles of one process do see it again, no other process does."""


@breaks("S-14", features=frozenset({Feature.PERSISTENT}))
class WritesWhenItIsClosed(FileToy):
    """Acknowledges what is in memory, and writes it when it is closed, which whoever is killed never is."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        assert isinstance(options, PlacedOptions)
        kept, shelf = FileShelf(options), Shelf(options)
        with kept:
            shelf.entries, shelf.revision = kept.entries, kept.revision
        yield cls(shelf)
        with kept:
            kept.entries, kept.revision = shelf.entries, shelf.revision


@breaks("S-8")
class HasAClockInEachProcess(FileToy):
    """Tells each process's own clock for the store's, and they differ by seconds."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        assert isinstance(shelf, FileShelf)
        shelf.offset_us = (os.getpid() % 1_000) * 1_000_000


@breaks("S-6")
class CountsRevisionsInEachProcess(FileToy):
    """Gives revisions of its own process; each begins at another number."""

    def _next_revision(self, batch: Batch) -> int:
        assert isinstance(self.shelf, FileShelf)
        self.shelf.depth += 1
        return self.shelf.depth + os.getpid() * 1_000_000


@breaks("S-3")
class PutsOneKeyAfterTheOther(FileToy):
    """Puts the first key of a batch under one hold of the lock, and the rest under the next."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        with self.shelf.lock:
            outcomes = [self._apply(batch._replace(puts=batch.puts[:1])) for batch in batches]
        await anyio.sleep(0.005)  # as long as another process may take to come in between
        with self.shelf.lock:
            for batch, outcome in zip(batches, outcomes, strict=True):
                if isinstance(outcome, Committed):
                    rest = {key: Entry(key, value, outcome.revision) for key, value in batch.puts[1:]}
                    self.shelf.entries.update(rest)
        return outcomes


@breaks("S-14")
class ReadsWhatItKept(FileToy):
    """Keeps what it has read until its own process writes: in one process nobody notices."""

    kept: ClassVar[dict[Key, Entry | None]] = {}

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        new = [key for key in keys if key not in self.kept]
        self.kept.update(zip(new, await super().get(new), strict=True))
        return [self.kept[key] for key in keys]

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches)
        self.kept.clear()
        return outcomes


@breaks("S-9", features=BOTH | {Feature.NOTIFIES})
class WakesItsOwnProcess(FileToy):
    """Tells the watchers of its own process at once, and those of others when they look by themselves."""

    rung: ClassVar[list[int]] = [0]

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches)
        self.rung[0] += len(wake)
        return outcomes

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        while True:
            seen = self.rung[0]
            yield None
            with anyio.move_on_after(1):
                while self.rung[0] == seen:  # noqa: ASYNC110  # a toy that polls, but often
                    await anyio.sleep(0.001)


@breaks("S-11", "S-10", tests="that_take")
class TakesOutsideTheLock(ComparesOutsideTheLock):
    """The same, for what takes are made of."""


def test_the_store_from_which_the_broken_ones_are_made_is_right_with_several_processes() -> None:
    run = run_contract(HonestKit, tests="processes_that")
    assert (run.failures, run.passed) == ((), 2)


@pytest.mark.parametrize("kit", BROKEN, ids=lambda kit: kit.__name__)
def test_a_store_that_is_wrong_with_several_processes_is_found(kit: type[BrokenProcesses]) -> None:
    began = time.monotonic()
    run = run_contract(kit, tests=f"processes_{kit.tests}")
    assert run.failures, "it was not found"
    found = {failure.clause for failure in run.failures}
    assert found <= kit.clauses, [(failure.clause, failure.said) for failure in run.failures]
    assert time.monotonic() - began < 6 * FOUND_SEC, "other tests run beside this one, but not so many"


class KnowsItsOwnProcess(Discovery):
    """Keeps what is published in the memory of its process, which all handles there share."""

    kept: ClassVar[dict[str, tuple[object, Sighting]]] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, options: Any, *, store: Store, poll_sec: float) -> AsyncIterator[Discovery]:
        discovery = cls()
        yield discovery
        await discovery.withdraw([*cls.kept])

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        self.kept.update({one.id: (self, one) for one in sightings})

    async def withdraw(self, ids: Sequence[str]) -> None:
        for id_ in [id_ for id_ in ids if id_ in self.kept and self.kept[id_][0] is self]:
            del self.kept[id_]

    async def snapshot(self) -> list[Sighting]:
        await anyio.lowlevel.checkpoint()
        return [one for _, one in self.kept.values()]

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        while True:
            yield await self.snapshot()
            await anyio.sleep(0.01)


class WholeDiscoveryKit(DiscoveryContract):
    """The discovery on the store of the nodes."""

    backend = STORE_DISCOVERY
    loops = ("asyncio",)


class OwnProcessKit(WholeDiscoveryKit):
    """The discovery that knows its own process."""

    backend = attrs.evolve(STORE_DISCOVERY, open=KnowsItsOwnProcess.open)


@pytest.mark.parametrize(("kit", "clauses"), [(WholeDiscoveryKit, []), (OwnProcessKit, ["D-6"])])
def test_a_discovery_that_knows_its_own_process_only_is_found(kit: type[DiscoveryContract], clauses: list[str]) -> None:
    run = run_contract(kit, tests="what_another_process")
    assert [failure.clause for failure in run.failures] == clauses
