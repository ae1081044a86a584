"""Discoveries, and a core, that are broken on purpose, one way each: the kit finds each of them, by the clause that it
breaks.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import anyio
import attrs
import pytest
from bending import Bent, bent

from converge.builtin.static import StaticOptions
from converge.builtin.static.plugin import STATIC
from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.contracts.discovery import Changes, Discovery, Reader, Sighting
from converge.contracts.store import Store
from converge.errors import StoreError
from converge.model.keys import AGENT, EXPIRY
from converge.services.discovery import reader as mirror
from converge.services.discovery.directory import Directory
from converge.services.discovery.reader import StoreReader
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import read_all
from converge.services.tasks.surroundings import lease_ids
from converge.testing import DiscoveryContract
from converge.testing._check.builtins import StaticBench
from converge.testing.clauses import cited
from converge.testing.running import Run, run_contract

IS_FULL = os.environ.get("FULL_TESTS") == "1"


class Repeating(Bent):
    """A snapshot has an id twice."""

    async def snapshot(self) -> list[Sighting]:
        found = await super().snapshot()
        return found + found[:1]


class Deaf(Bent):
    """Withdrawing does nothing."""

    async def withdraw(self, ids: Sequence[str]) -> None:
        await anyio.lowlevel.checkpoint()


class Silent(Bent):
    """A snapshot never comes."""

    async def snapshot(self) -> list[Sighting]:
        await anyio.sleep_forever()
        raise AssertionError


class Leaking(Bent):
    """An error of its driver gets out of a snapshot."""

    async def snapshot(self) -> list[Sighting]:
        raise LookupError("no such row")


class Keeping(Bent):
    """An id that was published is not replaced."""

    def __init__(self, straight: Discovery, store: Store) -> None:
        super().__init__(straight, store)
        self.known: set[str] = set()

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await super().publish([one for one in sightings if one.id not in self.known])
        self.known.update(one.id for one in sightings)

    async def withdraw(self, ids: Sequence[str]) -> None:
        await super().withdraw(ids)
        self.known.difference_update(ids)


class Strict(Bent):
    """To withdraw what is not there is an error."""

    async def withdraw(self, ids: Sequence[str]) -> None:
        known = {one.id for one in await self.straight.snapshot()}
        if set(ids) - known:
            raise KeyError(ids)
        await super().withdraw(ids)


class Sleepy(Bent):
    """A watch tells what is known, and nothing after that."""

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        yield await self.snapshot()
        await anyio.sleep_forever()


class Shy(Bent):
    """A watch tells only changes, not what is known at first."""

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        is_first = True
        async with aclosing(self.straight.watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
            async for found in watch:
                if not is_first:
                    yield found
                is_first = False


class Clinging(Bent):
    """A watch does not tell of somebody who has gone, until another one comes."""

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        known: set[Sighting] | None = None
        async with aclosing(super().watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
            async for found in watch:
                if known is None or set(found) - known:
                    yield found
                known = set(found)


class Mixing(Bent):
    """The answer to a snapshot that was cancelled is given to the next one, as on a connection that all calls share."""

    def __init__(self, straight: Discovery, store: Store) -> None:
        super().__init__(straight, store)
        self.answers: list[list[Sighting]] = []

    async def snapshot(self) -> list[Sighting]:
        self.answers.append(await self.straight.snapshot())
        await anyio.lowlevel.checkpoint()
        return self.answers.pop(0)


class Texting(Bent):
    """A descriptor is passed on as text."""

    async def snapshot(self) -> list[Sighting]:
        return [
            one._replace(descriptor=one.descriptor.decode("utf-8", "ignore").encode())
            for one in await super().snapshot()
        ]


class Listing(Bent):
    """Endpoints lose their order, and what stands twice."""

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await super().publish([one._replace(endpoints=tuple(sorted(set(one.endpoints)))) for one in sightings])


class Learning(Bent):
    """It declares that it does not publish, and says to its own process what it was given."""

    def __init__(self, straight: Discovery, store: Store) -> None:
        super().__init__(straight, store)
        self.own: dict[str, Sighting] = {}

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        self.own |= {one.id: one for one in sightings}

    async def snapshot(self) -> list[Sighting]:
        return [*await super().snapshot(), *self.own.values()]


class Private(Bent):
    """A process sees what it has published itself, and nothing else."""

    def __init__(self, straight: Discovery, store: Store) -> None:
        super().__init__(straight, store)
        self.own: dict[str, Sighting] = {}

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await super().publish(sightings)
        self.own |= {one.id: one for one in sightings}

    async def withdraw(self, ids: Sequence[str]) -> None:
        await super().withdraw(ids)
        for id_ in ids:
            self.own.pop(id_, None)

    async def snapshot(self) -> list[Sighting]:
        return list(self.own.values())


class Grasping(Bent):
    """To withdraw takes away what other processes have published under the id."""

    async def withdraw(self, ids: Sequence[str]) -> None:
        await super().withdraw(ids)
        opened = StoreHandle.of(self.store)
        for _ in range(3):
            others = [key for lease in await leases(self.store) for key in [AGENT(lease, id_) for id_ in ids]]
            if others:
                await forget(opened, others)


async def leases(store: Store) -> list[bytes]:
    return list(await lease_ids(store))


async def forget(opened: StoreHandle, keys: list[Any]) -> None:
    """Delete them, and let readers look at all agents of their leases again."""
    from converge.contracts.store import Batch
    from converge.services.discovery.reader import marker_key, marker_value

    puts = [(marker_key(lease), marker_value(10_000, [])) for lease in {key[1] for key in keys}]
    await opened.store.commit([Batch((), puts, [key for key in keys if key[2]])])


class Telling(Bent):
    """Each look tells everything again."""

    def reader(self) -> Reader:
        discovery = self

        class Forgetful(Reader):
            async def look(self) -> Changes:
                gone = set(self._known)
                found = await discovery.snapshot()
                self._known = {one.id: one for one in found}
                return Changes(found, [id_ for id_ in gone if id_ not in self._known])

        return Forgetful(self)


class Holding(Bent):
    """A look does not tell who has gone."""

    def reader(self) -> Reader:
        class Loyal(Reader):
            async def look(self) -> Changes:
                return (await super().look())._replace(gone=[])

        return Loyal(self)


class Untyped(Bent):
    """Errors of the store come through as something else."""

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        try:
            await super().publish(sightings)
        except StoreError as error:
            raise OSError(str(error)) from error


class Dropping(Bent):
    """A look that fails has told all the same what it had read until then."""

    def reader(self) -> Reader:
        inner = super().reader()

        class Hasty(Reader):
            async def look(self) -> Changes:
                changes = await inner.look()
                await discovery.store.time()  # which may fail, and then the changes are lost
                return changes

        discovery = self
        return Hasty(self)


class Kit(DiscoveryContract):
    """The kit with little patience, on one loop."""

    loops = ("asyncio",)
    near_sec = 0.5
    examples = 5
    breaks: ClassVar[str] = ""
    also: ClassVar[frozenset[str]] = frozenset()
    """Clauses that break with it: a withdrawal that does nothing is seen by whoever withdraws."""


class StaticKit(Kit):
    """The kit on a discovery that does not publish."""

    backend = bent(Learning, STATIC)
    breaks = "D-5"
    also = frozenset(("D-1", "D-2", "D-3", "D-4", "D-6", "D-7", "D-8", "D-9"))

    @pytest.fixture
    def options(self) -> StaticOptions:
        return StaticOptions(endpoints=("local:a",))

    @pytest.fixture
    def configured(self) -> list[Sighting]:
        return [Sighting("local:a", ("local:a",))]


class Stale(Bent):
    """A snapshot says what it said at first."""

    first: list[Sighting] | None = None

    async def snapshot(self) -> list[Sighting]:
        self.first = self.first or await super().snapshot()
        return self.first


class Once(Bent):
    """A watch tells one list."""

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        yield await self.snapshot()
        await anyio.sleep_forever()


class ConfiguredKit(StaticKit):
    """The kit on a list in a file, which changes."""

    backend = STATIC
    breaks = ""
    also = frozenset()
    near_sec = 10.0

    @pytest.fixture
    def options(self, tmp_path: Path) -> StaticOptions:
        file = tmp_path / "nodes"
        file.write_text("local:a")
        return StaticOptions(file=str(file))

    @pytest.fixture
    def configure(self, options: StaticOptions) -> Callable[[int], Sequence[Sighting]]:
        return partial(StaticBench.configure, cast(StaticBench, None), options)


class StaleContract(ConfiguredKit):
    backend = bent(Stale, STATIC)
    breaks = "D-1"
    also = frozenset(("D-3",))
    near_sec = 0.5


class OnceContract(ConfiguredKit):
    backend = bent(Once, STATIC)
    breaks = "D-3"
    near_sec = 0.5


class RepeatingContract(Kit):
    backend = bent(Repeating)
    breaks = "D-1"


class SilentContract(Kit):
    backend = bent(Silent)
    breaks = "D-1"
    also = frozenset(("D-2", "D-3", "D-4", "D-5", "D-6", "D-7", "D-8", "D-9", "D-10"))
    call_limit_sec = 0.2


class LeakingContract(Kit):
    backend = bent(Leaking)
    breaks = "D-1"
    also = frozenset(("D-2", "D-3", "D-4", "D-5", "D-6", "D-7", "D-8", "D-9", "D-10"))


class DeafContract(Kit):
    backend = bent(Deaf)
    breaks = "D-1"
    also = frozenset(("D-2", "D-3", "D-4", "D-6", "D-7", "D-8", "D-9"))


class KeepingContract(Kit):
    backend = bent(Keeping)
    breaks = "D-2"
    also = frozenset(("D-1", "D-8", "D-9", "D-7"))


class StrictContract(Kit):
    backend = bent(Strict)
    breaks = "D-2"
    also = frozenset(("D-1", "D-8", "D-9", "D-6", "D-7"))


class SleepyContract(Kit):
    backend = bent(Sleepy)
    breaks = "D-3"
    also = frozenset(("D-7",))


class ShyContract(Kit):
    backend = bent(Shy)
    breaks = "D-3"
    also = frozenset(("D-7",))


class ClingingContract(Kit):
    backend = bent(Clinging)
    breaks = "D-3"
    also = frozenset(("D-7",))


class MixingContract(Kit):
    backend = bent(Mixing)
    breaks = "D-1"


class TextingContract(Kit):
    backend = bent(Texting)
    breaks = "D-4"
    also = frozenset(("D-1", "D-7", "D-8", "D-9"))


class ListingContract(Kit):
    backend = bent(Listing)
    breaks = "D-4"
    also = frozenset(("D-1", "D-8", "D-7"))


class PrivateContract(Kit):
    backend = bent(Private)
    breaks = "D-6"
    also = frozenset(("D-1", "D-4", "D-5", "D-7", "D-8", "D-9"))


class GraspingContract(Kit):
    backend = bent(Grasping)
    breaks = "D-6"
    also = frozenset(("D-1", "D-2", "D-7", "D-8"))


class TellingContract(Kit):
    backend = bent(Telling)
    breaks = "D-7"


class HoldingContract(Kit):
    backend = bent(Holding)
    breaks = "D-7"
    also = frozenset(("D-6", "D-8", "D-9", "D-1"))


class UntypedContract(Kit):
    backend = bent(Untyped)
    breaks = "D-8"


class DroppingContract(Kit):
    backend = bent(Dropping)
    breaks = "D-8"


@asynccontextmanager
async def open_wrapping(options: Any, *, store: Store, poll_sec: float) -> AsyncIterator[Discovery]:
    """What the block raised comes out in a group."""
    async with (
        STORE_DISCOVERY.open(options, store=store, poll_sec=poll_sec) as discovery,
        anyio.create_task_group(),
    ):
        yield discovery


class WrappingContract(Kit):
    backend = attrs.evolve(STORE_DISCOVERY, open=open_wrapping)
    breaks = "D-10"


BROKEN = (
    RepeatingContract,
    DeafContract,
    KeepingContract,
    StrictContract,
    SleepyContract,
    ShyContract,
    ClingingContract,
    MixingContract,
    SilentContract,
    LeakingContract,
    TextingContract,
    ListingContract,
    PrivateContract,
    GraspingContract,
    TellingContract,
    HoldingContract,
    UntypedContract,
    DroppingContract,
    StaticKit,
    WrappingContract,
    StaleContract,
    OnceContract,
)


@pytest.mark.parametrize("contract", BROKEN, ids=lambda contract: contract.__name__)
def test_a_broken_discovery_fails_the_clause_that_it_breaks(contract: type[Kit]) -> None:
    """Without FULL_TESTS=1 the tests of that clause are run until one fails, so that it says nothing of others."""
    run = tried(contract, contract.breaks)
    found = {failure.clause for failure in run.failures}
    assert contract.breaks in found, run.output
    assert found - {contract.breaks} <= contract.also, "\n".join(failure.said for failure in run.failures)
    assert run.passed or not IS_FULL


def tried(contract: type[Kit], clause: str) -> Run:
    """Run the tests that cite a clause until one fails by it; with FULL_TESTS=1 all."""
    if IS_FULL:
        return run_contract(contract)
    names = [name for name in dir(contract) if name.startswith("test_") and clause in cited(getattr(contract, name))]
    return run_contract(contract, tests=" or ".join(names), until=[clause])


class StraightContract(Kit):
    """Nothing is bent."""

    backend = bent(Bent)
    near_sec = 10.0


class OwnContract(Kit):
    """The store's discovery itself, for cores that are broken."""

    backend = STORE_DISCOVERY


def test_the_same_discovery_unbroken_fails_nothing() -> None:
    run = run_contract(StraightContract)
    assert run.failures == (), run.output
    assert run.passed


def test_a_configured_discovery_that_tells_its_changes_fails_nothing() -> None:
    run = run_contract(ConfiguredKit, tests="test_d3_what_is_configured_anew_is_told")
    assert run.failures == () and run.passed, run.output


def test_every_clause_has_a_broken_discovery_or_core() -> None:
    assert {contract.breaks for contract in BROKEN} | {"D-9"} == {f"D-{number}" for number in range(1, 11)}


def caught(monkeypatch: pytest.MonkeyPatch, breaks: str) -> None:
    run = tried(OwnContract, breaks)
    assert breaks in {failure.clause for failure in run.failures}, run.output
    assert run.passed or not IS_FULL


def test_a_core_in_which_a_lower_descriptor_sequence_wins_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Directory, "highest", lambda self, agent_id: 0)
    caught(monkeypatch, "D-9")


def test_a_core_that_forgets_the_sequences_of_agents_that_are_gone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge.services.discovery.directory.GONE", 0)
    caught(monkeypatch, "D-9")


def test_a_core_that_lists_agents_of_an_ended_lease_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def live(self: StoreReader) -> set[bytes]:
        return {entry.key[1] for entry in await read_all(self._handle.store, EXPIRY())}

    monkeypatch.setattr(StoreReader, "_live", live)
    caught(monkeypatch, "D-6")
    caught(monkeypatch, "D-9")


def test_a_core_in_which_the_older_of_two_records_counts_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mirror, "max", lambda *found, key, default: min(*found, key=key, default=default), raising=False
    )
    caught(monkeypatch, "D-1")


def test_a_core_that_believes_descriptors_without_verifying_them_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge.model.descriptor.verify", lambda key, signature, data: True)
    caught(monkeypatch, "D-9")


def test_a_reader_that_trusts_a_marker_which_names_too_few_changes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = mirror.read_marker

    def short(lease: bytes, value: bytes) -> tuple[int, list[str]]:
        count, recent = straight(lease, value)
        return count, ["nobody"] * (count + 1) if len(recent) == mirror.RECENT else recent

    monkeypatch.setattr(mirror, "read_marker", short)
    caught(monkeypatch, "D-7")


def test_a_reader_that_forgets_what_a_failed_look_had_read_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    straight = StoreReader.look

    async def look(self: StoreReader) -> Changes:
        self._touched = set()
        return await straight(self)

    monkeypatch.setattr(StoreReader, "look", look)
    caught(monkeypatch, "D-8")
