"""Stores that are well until their place suffers, broken one way each: certification finds each, and says what it saw.
And two releases side by side, of which the other one is broken.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs
import pytest

from converge.builtin.local.plugin import LOCAL
from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Store
from converge.errors import StoreRefused
from converge.operations.plugins.scaffold import TEMPLATES, write_plugin
from converge.plugins.declaration import Backend
from converge.plugins.loaded import Loaded
from converge.testing import Bench
from converge.testing._check import card
from converge.testing._check.card import Asked, Card
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import PLACES, Shelf, ToyStore

EVERYTHING = os.environ.get("FULL_TESTS") == "1"


class Guard:
    """What the server of the toy would be told by its operator."""

    is_read_only = False
    password = 0
    in_file = 0


GUARD = Guard()


class GuardedToy(ToyStore):
    """A toy that can be read-only, and whose password changes: right, and in parts that can be broken."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.password = GUARD.in_file

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        yield cls(PLACES.shelf("guarded", options))

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self.login()
        return await super().get(keys)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self.login()
        return await (self.refuse(batches) if GUARD.is_read_only else super().commit(batches, wake=wake))

    def login(self) -> None:
        self.password = GUARD.in_file

    async def refuse(self, batches: Sequence[Batch]) -> Sequence[Committed | Conflict]:
        raise StoreRefused("the toy is read-only")


class Swallows(GuardedToy):
    """A commit that was refused is acknowledged."""

    async def refuse(self, batches: Sequence[Batch]) -> Sequence[Committed | Conflict]:
        return [Committed(1) for _ in batches]


class RefusesWhatItDid(GuardedToy):
    """A commit is said not to be applied, and is."""

    async def refuse(self, batches: Sequence[Batch]) -> Sequence[Committed | Conflict]:
        await ToyStore.commit(self, batches)
        raise StoreRefused("the toy is read-only")


class RefusesReads(GuardedToy):
    """With the writes it refuses the reads."""

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        if GUARD.is_read_only:
            raise StoreRefused("the toy is read-only")
        return await super().get(keys)


class StaysReadOnly(GuardedToy):
    """It does not ask again after it was refused."""

    is_refused = False

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self.is_refused = self.is_refused or GUARD.is_read_only
        return await (self.refuse(batches) if self.is_refused else super().commit(batches, wake=wake))


class KeepsItsPassword(GuardedToy):
    """It reads its password once, when it is opened."""

    def login(self) -> None:
        if self.password != GUARD.password:
            raise StoreRefused("the password is wrong")


class ReadsItsPasswordOnce(KeepsItsPassword):
    """It finds the new password, but only the handles that were open then do."""

    first: ClassVar[list[int]] = []

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self.first.append(self.password)
        self.is_first = self.password == self.first[0]

    def login(self) -> None:
        if not self.is_first and self.first[0] != GUARD.password:
            raise StoreRefused("the password is wrong")


class GuardedBench(Bench):
    """The operator of the toy."""

    near_sec, suffer_sec = 30.0, 0.2

    @contextmanager
    def refuse_writes(self) -> Iterator[None]:
        GUARD.is_read_only = True
        try:
            yield
        finally:
            GUARD.is_read_only = False

    def rotate(self) -> None:
        GUARD.in_file = GUARD.password = GUARD.password + 1


def certified(backend: Backend, kind: str, monkeypatch: pytest.MonkeyPatch, only: str, **means: Any) -> Card:
    """Return the card of a backend that no package has."""
    cls = type("Bench", (GuardedBench,), means)
    monkeypatch.setattr(card, "bench_of", lambda name, backend, url, folder: cls(backend, url, folder))
    loaded = Loaded(name="guarded", distribution="", version="", target="", backends={kind: [backend]}, hooks=())
    return card.check(loaded, backend, "", Asked(quick=True, certify=True, only=only), on_test=lambda *_: None)


REFUSED, ROTATED = "test_refused_writes", "test_rotated_credentials"
CASES = [
    (Swallows, REFUSED, "no commit was refused, though the server refuses writes"),
    (RefusesWhatItDid, REFUSED, "was refused with NotApplied, and is there"),
    (RefusesReads, REFUSED, "a read fails while writes are refused"),
    (StaysReadOnly, REFUSED, "refuse_writes: no commit is acknowledged within 0.5 s"),
    (KeepsItsPassword, ROTATED, "rotate: no commit is acknowledged within 0.5 s"),
    (ReadsItsPasswordOnce, ROTATED, "the password is wrong"),
]


HOPELESS = (Swallows, StaysReadOnly, KeepsItsPassword)
"""Those for which no patience helps."""


@pytest.mark.parametrize(("store", "test", "said"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_store_that_does_not_bear_it_is_found(
    store: type[GuardedToy], test: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ReadsItsPasswordOnce.first.clear()
    near_sec = 0.5 if store in HOPELESS else 30.0
    found = certified(attrs.evolve(TOY, open=store.open), "store", monkeypatch, test, near_sec=near_sec)
    (broken,) = found.broken
    assert said in broken.report, broken.report
    assert not found.certified


@pytest.mark.parametrize(("test", "name"), [(REFUSED, "refuse_writes"), (ROTATED, "rotate")])
def test_a_store_that_bears_it_is_certified(test: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = certified(attrs.evolve(TOY, open=GuardedToy.open), "store", monkeypatch, test)
    assert found.broken == ()
    assert [*found.certified] == [name]


def test_a_server_that_was_given_is_left_alone_and_the_card_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    given = property(lambda self: False, lambda *_: None)
    found = certified(TOY, "store", monkeypatch, REFUSED, is_own=given)
    assert found.passed == {}
    assert found.not_tried["refused writes"].startswith("the server was given")


def test_a_bench_without_the_means_is_said_not_to_try_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = certified(TOY, "store", monkeypatch, "test_two_releases_side_by_side")
    assert found.not_tried == {"two releases side by side": "the bench has no `other_python`"}


def test_a_transport_whose_bytes_are_not_seen_is_certified_without_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = certified(LOCAL, "transport", monkeypatch, "TestCertification", address=lambda bench: "local:")
    assert found.broken == ()
    assert sorted(found.certified) == ["fork", "restart"]
    assert found.not_tried["connections that are cut"].startswith("seen between TCP connections")


ENTRIES = """
[converge]
acme = converge_store_acme.plugin

[converge.testing]
acme = converge_store_acme.testing:AcmeBench
"""
ELSEWHERE = ("network: str = attrs.field(", "network: str = attrs.field(converter=lambda name: f'{name}_',")
"""A release that keeps a network's keys elsewhere: what the other one has written is not there."""


def beside(
    folder: Path, other: Callable[..., str], card: Callable[..., dict[str, Any]], version: str, **change: Any
) -> dict[str, Any]:
    """Certify the store that is written for authors, as release 9.9.9, beside another one."""
    (package, *_) = write_plugin(TEMPLATES["store --server"], "acme", folder)
    sources = package / "src/converge_store_acme"
    python = other(sources, ENTRIES, version, **change)
    mine = sources.parent / "converge_store_acme-9.9.9.dist-info"
    mine.mkdir()
    (mine / "METADATA").write_text("Metadata-Version: 2.1\nName: converge-store-acme\nVersion: 9.9.9\n")
    (mine / "entry_points.txt").write_text(ENTRIES)
    asked = {"certify": True, "only": "test_two_releases_side_by_side", "other_python": python}
    return card("acme", path=str(sources.parent), **asked)


def test_a_release_that_does_not_see_what_the_other_one_writes_is_found(
    tmp_path: Path, other_release: Callable[..., str], checked_card: Callable[..., dict[str, Any]]
) -> None:
    (broken,) = beside(tmp_path, other_release, checked_card, "9.9.8", change=ELSEWHERE)["broken"]
    assert broken["clause"] == "S-4"
    assert "increments were committed beside another" in broken["said"]


@pytest.mark.skipif(not EVERYTHING, reason="with FULL_TESTS=1 only, for its length")
def test_two_releases_that_agree_are_certified(
    tmp_path: Path, other_release: Callable[..., str], checked_card: Callable[..., dict[str, Any]]
) -> None:
    found = beside(tmp_path, other_release, checked_card, "9.9.8")
    assert found["broken"] == []
    assert found["certified"]["releases"].startswith("9.9.9 and 9.9.8: ")


@pytest.mark.skipif(not EVERYTHING, reason="with FULL_TESTS=1 only, for its length")
def test_one_release_beside_itself_is_not_tried(
    tmp_path: Path, other_release: Callable[..., str], checked_card: Callable[..., dict[str, Any]]
) -> None:
    found = beside(tmp_path, other_release, checked_card, "9.9.9")
    assert found["not_tried"]["two releases side by side"].endswith("has the same release, 9.9.9")
