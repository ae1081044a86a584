"""Discoveries that are well until what is behind them suffers, broken one way each: certification finds each, and says
what it saw. And another release that speaks otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import anyio
import pytest
from bending import Bent, bent

from converge.builtin.static.plugin import STATIC
from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.contracts.discovery import Changes, DiscoveryBackend, Reader, Sighting
from converge.errors import InvalidValue, StoreError, StoreUnavailable
from converge.operations.plugins.scaffold import TEMPLATES, write_plugin
from converge.plugins.loaded import Loaded
from converge.testing import Bench
from converge.testing._check import card
from converge.testing._check.builtins import StaticBench
from converge.testing._check.card import Asked, Card
from converge_discovery_dns.plugin import DNS
from converge_discovery_dns.testing import DnsBench

EVERYTHING = os.environ.get("FULL_TESTS") == "1"
RESTART, CUT, REFUSE, FORK, RELEASES = (
    "test_a_restart_of_what_is_behind_it",
    "test_connections_that_are_cut",
    "test_refused_registrations",
    "test_a_forked_child",
    "test_two_releases_side_by_side",
)


class Failing(Bent):
    """Notes that a call has failed: right, and in parts that can be broken."""

    has_failed = False

    async def tried(self, call: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await call()
        except StoreError as error:
            self.has_failed = True
            return self.failed(error)

    def failed(self, error: StoreError) -> Any:
        raise error

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await self.tried(lambda: self.straight.publish(sightings))

    async def snapshot(self) -> list[Sighting]:
        found: list[Sighting] = await self.tried(self.straight.snapshot)
        return found


class Forgets(Failing):
    """It begins anew after a failure: what was published before is not told any more."""

    async def snapshot(self) -> list[Sighting]:
        found = await super().snapshot()
        return [one for one in found if one.id == "load"] if self.has_failed else found


class SaysNobody(Failing):
    """While it knows nothing it says that nobody is there."""

    async def snapshot(self) -> list[Sighting]:
        return await super().snapshot() or []

    def failed(self, error: StoreError) -> Any:
        return []


class Swallows(Failing):
    """A registration that was refused is said to be done."""

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        try:
            await super().publish(sightings)
        except StoreError:
            return

    async def snapshot(self) -> list[Sighting]:
        return await self.straight.snapshot()


class StaysDown(Failing):
    """It does not ask again after a failure."""

    async def snapshot(self) -> list[Sighting]:
        if self.has_failed:
            raise StoreUnavailable("it was down")
        return await super().snapshot()


class LetsErrorsOut(Failing):
    """A failure comes out as the driver's."""

    def failed(self, error: StoreError) -> Any:
        raise OSError("connection reset by peer") from error


class WatchesOnce(Failing):
    """A watch that has failed waits for ever, as does each that is begun later."""

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        async with aclosing(self.straight.watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
            async for found in watch:
                if self.has_failed:
                    break
                yield found
        await self.after()

    async def after(self) -> None:
        await anyio.sleep_forever()


class EndsItsWatch(WatchesOnce):
    """A watch that has failed ends."""

    async def after(self) -> None:
        return


class ReadsOnce(Failing):
    """A reader tells no more once a call has failed."""

    def reader(self) -> Reader:
        discovery = self

        class Tired(Reader):
            async def look(self) -> Changes:
                return Changes([], []) if discovery.has_failed else await super().look()

        return Tired(self)


class RefusesReads(Failing):
    """With what is published it refuses what is asked."""

    async def snapshot(self) -> list[Sighting]:
        if REFUSED.is_on:
            raise StoreUnavailable("nothing is taken in")
        return await super().snapshot()

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        try:
            await super().publish(sightings)
            REFUSED.is_on = False
        except StoreError:
            REFUSED.is_on = True
            raise


class _Refused:
    is_on = False


REFUSED = _Refused()


class Forks:
    """How often this process has forked."""

    number = 0

    @classmethod
    def count(cls) -> None:
        cls.number += 1


os.register_at_fork(after_in_parent=Forks.count)


class EndsWithAFork(Bent):
    """Nothing works any more once this process has forked."""

    async def snapshot(self) -> list[Sighting]:
        if Forks.number:
            raise StoreUnavailable("this process has forked")
        return await super().snapshot()


class StaysForAChild(Bent):
    """Once this process has forked, what was published stays: a child might still be there."""

    seen: ClassVar[dict[str, Sighting]] = {}

    async def snapshot(self) -> list[Sighting]:
        now = {one.id: one for one in await super().snapshot()}
        self.seen.update(now)
        return list(({**self.seen, **now} if Forks.number else now).values())


def certified(
    backend: DiscoveryBackend,
    monkeypatch: pytest.MonkeyPatch,
    only: str = "TestCertification",
    bench: type[Bench] = Bench,
    **means: Any,
) -> Card:
    """Return the card of a discovery that no package has."""
    monkeypatch.setattr(Forks, "number", 0)
    cls = type("Bench", (bench,), {"near_sec": 30.0, "suffer_sec": 0.1, **means})
    monkeypatch.setattr(card, "bench_of", lambda name, backend, url, folder: cls(backend, url, folder))
    loaded = Loaded(name="bent", distribution="", version="", target="", backends={"discovery": [backend]}, hooks=())
    return card.check(loaded, backend, "", Asked(quick=True, certify=True, only=only), on_test=lambda *_: None)


CASES = [
    (Forgets, RESTART, 30.0, "D-8", "a snapshot was answered without ['kept']"),
    (SaysNobody, RESTART, 30.0, "D-8", "a snapshot was answered without ['kept'"),
    (StaysDown, CUT, 0.5, "D-8", "cut: nothing that is published is seen within 0.5 s"),
    (LetsErrorsOut, CUT, 30.0, "D-8", "let out an error of its driver, which callers do not know: builtins.OSError"),
    (EndsItsWatch, RESTART, 30.0, "D-3", "a watch has ended by itself"),
    *([(WatchesOnce, RESTART, 10.0, "D-3", "restart: a watch tells ")] if EVERYTHING else []),
    (ReadsOnce, RESTART, 30.0, "D-7", "restart: a reader knows "),
    (Swallows, REFUSE, 30.0, "D-8", "a snapshot was answered without ['load']"),
    (RefusesReads, REFUSE, 30.0, "D-8", "a snapshot fails while nothing is taken in"),
    (EndsWithAFork, FORK, 0.5, "D-8", "fork: nothing that is published is seen within 0.5 s"),
    (StaysForAChild, FORK, 30.0, "D-6", "a process that has closed is still listed while a forked child of it lives"),
]


@pytest.mark.parametrize(
    ("discovery", "test", "near_sec", "clause", "said"), CASES, ids=lambda one: getattr(one, "__name__", "")
)
def test_a_discovery_that_does_not_bear_it_is_found(
    discovery: type[Bent], test: str, near_sec: float, clause: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    StaysForAChild.seen.clear()
    found = certified(bent(discovery), monkeypatch, test, near_sec=near_sec)
    (broken,) = found.broken
    assert said in broken.report, broken.report
    assert broken.clause == clause


def test_discovery_through_the_store_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    found = certified(STORE_DISCOVERY, monkeypatch)
    assert found.broken == ()
    assert sorted(found.certified) == ["cut", "fork", "freeze", "refuse_writes", "restart"]
    assert sorted(found.not_tried) == ["rotated credentials", "two releases side by side"]


def test_static_discovery_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    found = certified(STATIC, monkeypatch, bench=StaticBench)
    assert found.broken == ()
    assert sorted(found.certified) == ["fork", "restart"]
    assert found.not_applicable == {"refused registrations": "it does not publish"}
    assert found.not_tried["connections that are cut"] == "the bench has no `cut`"


def test_the_example_of_dns_is_certified(debian: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    debian("knot", "knotd")
    found = certified(DNS, monkeypatch, bench=DnsBench)
    assert found.broken == ()
    assert sorted(found.certified) == ["fork", "freeze", "restart"]
    assert found.not_applicable == {"refused registrations": "it does not publish"}


def test_a_test_that_the_kit_does_not_have_is_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValue, match=f'a test of the kit for this discovery; did you mean "{FORK}"'):
        certified(STORE_DISCOVERY, monkeypatch, f"{FORK}s")


ENTRIES = """
[converge]
acme = converge_discovery_acme.plugin

[converge.testing]
acme = converge_discovery_acme.testing:AcmeBench
"""
ELSEWHERE = ('default="", validator', "default=\"\", converter=lambda folder: f'{folder}.9', validator")
"""A release that keeps what is published elsewhere: what the other one says is not seen."""


def folder_plugin(folder: Path) -> Path:
    """Write the discovery that is written for authors, as release 9.9.9; return its sources."""
    (package, *_) = write_plugin(TEMPLATES["discovery"], "acme", folder)
    sources = package / "src/converge_discovery_acme"
    mine = sources.parent / "converge_discovery_acme-9.9.9.dist-info"
    mine.mkdir()
    (mine / "METADATA").write_text("Metadata-Version: 2.1\nName: converge-discovery-acme\nVersion: 9.9.9\n")
    (mine / "entry_points.txt").write_text(ENTRIES)
    return sources


def test_the_discovery_over_a_folder_is_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder_plugin(tmp_path).parent)
    acme, testing = (import_module(f"converge_discovery_acme.{name}") for name in ("plugin", "testing"))
    try:
        found = certified(acme.ACME, monkeypatch, bench=testing.AcmeBench)
    finally:
        for name in [name for name in sys.modules if name.startswith("converge_discovery_acme")]:
            del sys.modules[name]
    assert found.broken == ()
    assert sorted(found.certified) == ["fork", "restart"]
    assert found.not_tried["refused registrations"] == "the bench has no `refuse_writes`"


@pytest.mark.skipif(not EVERYTHING, reason="with FULL_TESTS=1 only, for its length")
@pytest.mark.parametrize("change", [None, ELSEWHERE], ids=["alike", "elsewhere"])
def test_another_release_is_seen_or_found_not_to_be(
    change: tuple[str, str] | None,
    tmp_path: Path,
    other_release: Callable[..., str],
    checked_card: Callable[..., dict[str, Any]],
) -> None:
    sources = folder_plugin(tmp_path)
    python = other_release(sources, ENTRIES, "9.9.8", **({"change": change} if change else {}))
    asked = {"certify": True, "only": RELEASES, "other_python": python}
    card = checked_card("acme", path=str(sources.parent), **asked)
    if change:
        assert [one["clause"] for one in card["broken"]] == ["D-6"]
        assert "what release 9.9.8 knows beside 9.9.9" in card["broken"][0]["said"]
    else:
        assert card["broken"] == []
        assert card["certified"]["releases"].startswith("9.9.9 and 9.9.8: ")
