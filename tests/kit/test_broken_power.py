"""A store whose host loses power, right and broken: class D2 is tried where the author can drop what was not synced."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from converge.contracts.store import Batch, Channel, Committed, Conflict, Durability, Entry, Feature, Store
from converge.model.keys import FAMILIES, Key, pack, unpack
from converge.plugins.loaded import Loaded
from converge.testing import Bench
from converge.testing._check import card
from converge.testing._check.card import Asked, Card
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import Shelf, ToyStore

EVERYTHING = os.environ.get("FULL_TESTS") == "1"
TEST = "test_what_was_acknowledged_survives_a_power_loss"


@attrs.frozen(kw_only=True)
class JournalOptions(ToyOptions):
    """Options with a place."""

    path: str = ""


class Journal(Shelf):
    """A shelf in a file, to which each commit is appended. A second file says how much of it was synced."""

    def __init__(self, options: JournalOptions) -> None:
        super().__init__(options)
        self.file = open(options.path, "a+")  # noqa: SIM115  # left with the handle
        self.synced = synced_of(options)
        self.file.seek(0)
        for line in self.file:
            self.revision, puts, deletes = json.loads(line)
            self.entries |= {key_of(key): Entry(key_of(key), value.encode(), self.revision) for key, value in puts}
            for key in deletes:
                del self.entries[key_of(key)]

    def append(self, batch: Batch, revision: int) -> None:
        puts = [(text_of(key), value.decode()) for key, value in batch.puts]
        deletes = [text_of(key) for key in batch.deletes if key in self.entries]
        self.file.write(json.dumps([revision, puts, deletes]) + "\n")
        self.file.flush()

    def sync(self) -> None:
        os.fsync(self.file.fileno())
        new = self.synced.with_suffix(".new")
        new.write_text(str(self.file.tell()))
        new.replace(self.synced)  # who is killed leaves the old one, or the new one


class JournalToy(ToyStore):
    """The toy on a journal, which is synced before a commit is acknowledged."""

    shelf: Journal
    durability = Durability.D2

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        assert isinstance(options, JournalOptions)
        shelf = Journal(options)
        with shelf.file:
            yield cls(shelf)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches, wake=wake)
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Committed):
                self.shelf.append(batch, outcome.revision)
        self.sync()
        return outcomes

    def sync(self) -> None:
        self.shelf.sync()


class NeverSyncs(JournalToy):
    """A commit is acknowledged when the system has it, which a killed process bears, and a host without power not."""

    breaks: ClassVar[str] = "S-14"

    def sync(self) -> None:
        pass


class SaysSo(NeverSyncs):
    """The same, and claims no more than that."""

    durability = Durability.D1


def synced_of(options: JournalOptions) -> Path:
    """Return the file that says how much of a journal was synced."""
    return Path(f"{options.path}.synced")


def text_of(key: Key) -> tuple[str, str]:
    return str(key[0]), pack(key).hex()


def key_of(text: tuple[str, str]) -> Key:
    return (FAMILIES[text[0]], *unpack(FAMILIES[text[0]], bytes.fromhex(text[1])))


class JournalBench(Bench):
    """A journal for each test, and no means to drop anything."""

    def options(self) -> JournalOptions:
        return JournalOptions(path=str(self.fresh() / "journal"))


class PowerBench(JournalBench):
    """A host whose power can be cut."""

    def drop_unsynced(self, url: str, options: Any) -> None:
        synced = synced_of(options)
        os.truncate(options.path, int(synced.read_text()) if synced.exists() else 0)


def card_of(
    store: type[JournalToy], bench: type[Bench], monkeypatch: pytest.MonkeyPatch, durability: Durability = Durability.D2
) -> Card:
    """Return the card of a backend that no package has."""
    features = frozenset({Feature.PERSISTENT})
    backend = attrs.evolve(TOY, open=store.open, options=JournalOptions, features=features, durability=durability)
    monkeypatch.setattr(card, "bench_of", lambda name, backend, url, folder: bench(backend, url, folder))
    loaded = Loaded(name="toy", distribution="", version="", target="", backends={"store": [backend]}, hooks=())
    return card.check(loaded, backend, "", Asked(quick=True, only=TEST), on_test=lambda *_: None)


def test_a_store_that_never_syncs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (broken,) = card_of(NeverSyncs, PowerBench, monkeypatch).broken
    assert broken.clause == "S-14"
    assert "acknowledged commits are lost with the host's power" in broken.said


def test_a_store_that_syncs_first_bears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = card_of(JournalToy, PowerBench, monkeypatch)
    assert found.broken == ()
    assert found.passed == {"S-14": 1}
    assert found.not_tried == {}


def test_without_the_means_the_card_says_that_it_was_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    found = card_of(NeverSyncs, JournalBench, monkeypatch)
    assert found.not_tried == {"S-14": "D2, since `drop_unsynced` gives nothing, so what was not synced is not dropped"}


@pytest.mark.skipif(not EVERYTHING, reason="with FULL_TESTS=1 only, for its length")
def test_a_lower_class_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = card_of(SaysSo, PowerBench, monkeypatch, Durability.D1)
    assert found.broken == ()
    assert found.not_applicable == {"S-14": "the declaration is below class D2"}
