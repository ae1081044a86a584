"""Backends whose authors forgot something that a driver does by itself: cuts what is large, answers in its own types,
reads a name once where it was asked for twice, leaves an answer to whoever asks next. The kit finds each by its clause.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager, nullcontext
from decimal import Decimal
from typing import Any, cast

import anyio
import anyio.lowlevel
import attrs
import pytest
from bending import Bent, bent

from converge.builtin.local.plugin import LOCAL
from converge.builtin.memory.plugin import MEMORY
from converge.contracts.discovery import Reader, Sighting
from converge.contracts.store import (
    Batch,
    Channel,
    Committed,
    Conflict,
    Entry,
    Feature,
    Key,
    Prefix,
    Range,
    Store,
    Take,
    Turned,
)
from converge.contracts.transport import Channel as Wire
from converge.contracts.transport import Transport
from converge.errors import MessageTooLarge, NoSuchStore, StoreRefused, StoreUnavailable
from converge.testing import DiscoveryContract, StoreContract, TransportContract
from converge.testing.running import run_contract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import PLACES, ToyStore

MEGABYTE = 1_048_576
LEFT: list[int] = []


class CarelessStore(StoreContract):
    """The kit on a toy that has a place, so that its openings meet."""

    backend = TOY
    loops = ("asyncio",)

    @pytest.fixture
    def url(self) -> str:
        return f"toy:{secrets.token_hex(6)}"


class CarelessTransport(TransportContract):
    """The kit on the transport of one process."""

    backend = LOCAL
    loops = ("asyncio",)
    carrier_bytes = 0

    @pytest.fixture
    def address(self) -> str:
        return "local:"


class CarelessDiscovery(DiscoveryContract):
    """The kit on discovery through the store."""

    backend = bent(Bent)
    loops = ("asyncio",)


class Ringing(ToyStore):
    """The toy with wakes: right, and in parts that can be broken."""

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches)
        self.ring(wake)
        return outcomes

    def ring(self, wake: Collection[Channel]) -> None:
        for waiter in vars(self.shelf).get("waiters", []):
            if set(wake) & waiter[0]:
                waiter[1].set()

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        waiter = [set(channels), anyio.Event()]
        vars(self.shelf).setdefault("waiters", []).append(waiter)
        while True:
            yield None
            await waiter[1].wait()  # type: ignore[attr-defined]  # the second is an event
            waiter[1] = anyio.Event()


CASES: list[tuple[type[Any], str, str]] = []


def found_by(clause: str, test: str) -> Callable[[type[Any]], type[Any]]:
    """Declare which clause and test find a backend, and make the kit's class for it at the top of this module."""

    def declare(careless: type[Any]) -> type[Any]:
        if issubclass(careless, ToyStore):
            kit: type[Any] = CarelessStore
            features = frozenset({Feature.NOTIFIES}) if issubclass(careless, Ringing) else frozenset[Feature]()
            backend: Any = attrs.evolve(TOY, open=careless.open, features=features)
        elif issubclass(careless, Bent):
            kit, backend = CarelessDiscovery, bent(careless)
        else:
            kit, backend = CarelessTransport, attrs.evolve(LOCAL, open=careless.open)
        patience = {"near_sec": 0.5, "limit_sec": 4.0, "call_limit_sec": 2.0}  # little, for what never comes
        members = {"__module__": __name__, "backend": backend, **patience}
        name = f"{careless.__name__}Kit"
        globals()[name] = made = cast("type[Any]", type(name, (kit,), members))
        CASES.append((made, clause, test))
        return careless

    return declare


# Stores: types of a driver's own, which compare equal.


@found_by("S-1", "test_get_answers_what_was_written_last")
class GetsBytearrays(ToyStore):
    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        found = await super().get(keys)
        return [entry and entry._replace(value=cast("bytes", bytearray(entry.value))) for entry in found]


@found_by("S-3", "test_a_batch_whose_checks_hold")
class RevisionsAreDecimals(ToyStore):
    async def commit(self, batches: Sequence[Batch], *, wake: Any = ()) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches, wake=wake)
        return [Committed(Decimal(one.revision)) if isinstance(one, Committed) else one for one in outcomes]  # type: ignore[arg-type]  # that is the fault


@found_by("S-10", "test_take_reads_what_is_under_each_id")
class TakesViews(ToyStore):
    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Any = ()) -> Turned:
        turned = await super().turn(batches, take, wake=wake)
        if turned.taken is None or isinstance(turned.taken, Conflict):
            return turned
        also: Any = [[value and bytearray(value) for value in values] for values in turned.taken.also]
        return turned._replace(taken=turned.taken._replace(also=also))


@found_by("S-18", "test_count_answers")
class CountsAreFloats(ToyStore):
    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        return [float(count) for count in await super().count(prefixes)]  # type: ignore[misc]  # that is the fault


@found_by("S-8", "test_time_is_close")
class TimeIsAFloat(ToyStore):
    async def time(self) -> int:
        return float(await super().time())  # type: ignore[return-value]  # that is the fault


# What is large.


@found_by("S-2", "test_a_page_of_long_values")
class CutsPagesAtAMegabyte(ToyStore):
    def _page(self, wanted: Range) -> list[Entry]:
        page, size = list[Entry](), 0
        for entry in super()._page(wanted):
            size += len(entry.value)
            if page and size > MEGABYTE:
                break
            page.append(entry)
        return page


@found_by("S-2", "test_pages_of_a_scan")
class GoesOnWithTheNextLane(ToyStore):
    def _page(self, wanted: Range) -> list[Entry]:
        page, after = super()._page(wanted), wanted.after
        return [entry for entry in page if after is None or len(wanted.prefix) > 1 or entry.key[1] != after[0]]


@found_by("S-15", "test_as_many_bytes")
class RefusesLongAnswers(ToyStore):
    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        entries = await super().get(keys)
        if sum(len(entry.value) for entry in entries if entry) > 4 * MEGABYTE:
            raise StoreUnavailable("the answer is longer than a message may be")
        return entries


@found_by("S-15", "test_as_many_bytes")
class RefusesLongCalls(ToyStore):
    async def commit(self, batches: Sequence[Batch], *, wake: Any = ()) -> Sequence[Committed | Conflict]:
        if sum(len(value) for batch in batches for _, value in batch.puts) > 4 * MEGABYTE:
            raise StoreRefused("the call is longer than a message may be")
        return await super().commit(batches, wake=wake)


@found_by("S-5", "test_a_call_may_have_as_many_operations")
class RefusesManyOperations(ToyStore):
    async def commit(self, batches: Sequence[Batch], *, wake: Any = ()) -> Sequence[Committed | Conflict]:
        if sum(len(batch.puts) + len(batch.deletes) for batch in batches) > 10_000:
            raise StoreRefused("a statement has too many variables")
        return await super().commit(batches, wake=wake)


@found_by("S-15", "test_a_value_over_the_limit")
class TakesLongValuesInATurn(ToyStore):
    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Any = ()) -> Turned:
        if take is not None:
            return await super().turn(batches, take, wake=wake)
        with self.shelf.lock:
            return Turned([self._apply(batch) for batch in batches], None)


# Asked for twice.


@found_by("S-1", "test_get_answers_each_key")
class GetsEachKeyOnce(ToyStore):
    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return await super().get(list(dict.fromkeys(keys)))


@found_by("S-2", "test_scan_answers_each_range")
class ScansEachRangeOnce(ToyStore):
    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        return await super().scan(list(dict.fromkeys(ranges)))


@found_by("S-18", "test_count_answers")
class CountsEachPrefixOnce(ToyStore):
    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        return await super().count(list(dict.fromkeys(prefixes)))


# At the same time, and cancelled.


@found_by("S-1", "test_calls_at_the_same_time")
class LeavesAnAnswerToTheNext(ToyStore):
    """One connection, on which the answer to a cancelled call comes first."""

    def __init__(self, shelf: Any) -> None:
        super().__init__(shelf)
        self.answers: list[Sequence[Entry | None]] = []

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self.answers.append([self.shelf.entries.get(key) for key in keys])
        await anyio.lowlevel.checkpoint()
        return self.answers.pop(0)


@found_by("S-1", "test_calls_at_the_same_time")
class MixesUpCalls(ToyStore):
    """Two calls at once get each other's answers."""

    def __init__(self, shelf: Any) -> None:
        super().__init__(shelf)
        self.asked: list[Sequence[Key]] = []

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self.asked.append(keys)
        await anyio.lowlevel.checkpoint()
        return await super().get(self.asked.pop())


@found_by("S-1", "test_calls_at_the_same_time")
class KeepsItsTurnWhenCancelled(ToyStore):
    """A call that is cancelled never gives its turn back."""

    is_busy = False

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        while self.is_busy:  # noqa: ASYNC110  # the store of an author who knows no better
            await anyio.sleep(0.001)
        self.is_busy = True
        pages = await super().scan(ranges)
        self.is_busy = False
        return pages


@found_by("S-14", "test_handles_may_be_left")
class EndsWithItsFirstHandle(ToyStore):
    """Who opens a place first closes its engine."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        shelf = PLACES.shelf(url.partition(":")[2], options)
        is_first, vars(shelf)["is_open"] = not vars(shelf).get("is_open"), True
        try:
            yield cls(shelf)
        finally:
            if is_first:
                vars(shelf)["is_open"] = False

    async def commit(self, batches: Sequence[Batch], *, wake: Any = ()) -> Sequence[Committed | Conflict]:
        if not vars(self.shelf).get("is_open"):
            raise StoreUnavailable("the engine is closed")
        return await super().commit(batches, wake=wake)


@found_by("S-17", "test_what_is_said_to_wait")
class WaitsThoughItSaysNot(ToyStore):
    is_immediate = True

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        await anyio.sleep(5.0)  # however long the process stands still within the loop's next turns
        return await super().count(prefixes)


# Networks, time, facts, wakes.


@found_by("S-21", "test_networks_of_like_names")
class FoldsNetworks(ToyStore):
    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        network = options.network.lower()
        yield cls(PLACES.shelf(url.partition(":")[2], attrs.evolve(options, network=network)))


@found_by("S-21", "test_each_network")
class TakesFromAnyNetwork(ToyStore):
    """Its turn, written later, does not know of networks."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        shelf = PLACES.shelf(url.partition(":")[2], options)
        vars(shelf)["url"] = url
        yield cls(shelf)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Any = ()) -> Turned:
        for shelf in [one for one in PLACES._shelves.values() if vars(one).get("url") == vars(self.shelf)["url"]]:
            turned = await ToyStore.turn(type(self)(shelf), batches, take, wake=wake)
            if turned.taken is None or isinstance(turned.taken, Conflict) or turned.taken.rests:
                break
        return turned


@found_by("S-8", "test_retention_never")
class RemovesTooEarly(ToyStore):
    async def retention_time(self) -> int:
        return await self.time() + 3_600_000_000


@found_by("S-24", "test_what_a_store_tells")
class TellsItsPassword(ToyStore):
    async def facts(self) -> Any:
        return {"place": "toy://agents:canary@host/"}


@found_by("S-9", "test_every_channel")
class HearsTheFirstChannels(Ringing):
    def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        return super().watch(list(channels)[:32])


@found_by("S-9", "test_every_channel")
class HearsShortNames(Ringing):
    def ring(self, wake: Collection[Channel]) -> None:
        super().ring([name for name in wake if len(name) < 64])


@found_by("S-9", "test_a_wake_does_not_depend")
class ForgetsWakesBesideATake(Ringing):
    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Any = ()) -> Turned:
        return await super().turn(batches, take, wake=() if take else wake)


@found_by("S-9", "test_a_wake_does_not_depend")
class ForgetsWakesAfterAConflict(Ringing):
    async def commit(self, batches: Sequence[Batch], *, wake: Any = ()) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches)
        if not any(isinstance(outcome, Conflict) for outcome in outcomes):
            self.ring(wake)
        return outcomes


@found_by("S-20", "test_who_only_looks")
class RefusesWhoLooks(ToyStore):
    """Whatever is there."""

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, options: ToyOptions) -> AsyncIterator[Store]:
        if options.must_exist:
            raise NoSuchStore("look elsewhere")
        yield cls(PLACES.shelf(url.partition(":")[2], options))


# Threads.


@asynccontextmanager
async def open_unlocked(url: str, options: Any) -> AsyncIterator[Store]:
    async with MEMORY.open(url, options) as store:
        vars(store)["_core"].lock = nullcontext()
        yield store


class Unlocked(StoreContract):
    """The kit on a store whose calls are one step on one event loop alone."""

    backend = attrs.evolve(MEMORY, open=open_unlocked)
    loops = ("asyncio",)


CASES += [(Unlocked, "S-4", "test_no_increment"), (Unlocked, "S-12", "test_a_take_in_another_thread")]


# Transports.


class Careless(Transport):
    """The transport of one process, whose connecting ends are changed."""

    def __init__(self, straight: Transport) -> None:
        self._straight = straight
        self.listen = straight.listen  # type: ignore[method-assign]  # as it is

    def listen(self, address: str) -> Any:  # the abstract method, which the instance's own hides
        raise NotImplementedError

    @classmethod
    @asynccontextmanager
    async def open(cls, options: Any) -> AsyncIterator[Transport]:
        async with LOCAL.open(options) as straight:
            yield cls(straight)

    async def connect(self, address: str) -> Wire:
        channel = await self._straight.connect(address)
        self.change(channel)
        return channel

    def change(self, channel: Wire) -> None:
        """Change a channel."""


@found_by("C-11", "test_c11_leaving_the_transport")
class ClosesOneChannel(Careless):
    @classmethod
    @asynccontextmanager
    async def open(cls, options: Any) -> AsyncIterator[Transport]:
        async with LOCAL.open(options) as straight:
            yield cls(straight)
            for channel in list(vars(straight)["_channels"])[1:]:
                vars(straight)["_channels"].discard(channel)


def refuse(channel: Wire, error: Exception, is_too_much: Callable[[Sequence[bytes]], bool]) -> None:
    straight = channel.send

    async def send(frames: Sequence[bytes]) -> None:
        if is_too_much(frames):
            raise error
        await straight(frames)

    channel.send = send  # type: ignore[method-assign]  # of this channel alone


@found_by("C-1", "test_c1_frames_arrive")
class GivesViews(Careless):
    def change(self, channel: Wire) -> None:
        straight = channel.receive

        async def receive() -> Any:
            return [memoryview(frame) for frame in await straight()]

        channel.receive = receive  # type: ignore[method-assign]  # of this channel alone


@found_by("C-2", "test_c2_a_call")
class SendsFewFrames(Careless):
    def change(self, channel: Wire) -> None:
        refuse(channel, OSError(90, "Message too long"), lambda frames: len(frames) > 1_024)


@found_by("C-2", "test_c2_a_call")
class SendsWhatItCanHold(Careless):
    def change(self, channel: Wire) -> None:
        refuse(channel, MessageTooLarge("over the queue"), lambda frames: sum(map(len, frames)) > MEGABYTE)


@found_by("C-14", "test_c14_what_a_channel_says")
class HasNoPeer(Careless):
    def change(self, channel: Wire) -> None:
        channel.peer = None  # type: ignore[assignment]  # that is the fault


@found_by("C-11", "test_c11_what_was_left")
class LeavesASocketWhenCancelled(Careless):
    async def connect(self, address: str) -> Wire:
        LEFT.append(descriptor := socket_of())
        await anyio.lowlevel.checkpoint()
        LEFT.remove(descriptor)
        os.close(descriptor)
        return await super().connect(address)


# Discoveries.


@found_by("D-4", "test_d4_ids")
class NamesFilesByIds(Bent):
    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await super().publish([one for one in sightings if "/" not in one.id])


@found_by("D-4", "test_d4_ids")
class FoldsIds(Bent):
    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await super().publish([one._replace(id=one.id.lower()) for one in sightings])


@found_by("D-4", "test_d4_ids")
class CutsIds(Bent):
    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await super().publish(list({one.id[:100]: one for one in sightings}.values()))


@found_by("D-4", "test_d4_a_sighting")
class KeepsFourEndpoints(Bent):
    async def publish(self, sightings: Sequence[Sighting]) -> None:
        await super().publish([one._replace(endpoints=one.endpoints[:4]) for one in sightings])


@found_by("D-3", "test_d3_every_watch")
class TellsTheLastWatch(Bent):
    last: object = None

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        self.last = own = object()
        async with aclosing(super().watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
            async for found in watch:
                if self.last is own:
                    yield found


@found_by("D-3", "test_d3_every_watch")
class IsDeafToItself(Bent):
    own: frozenset[str] = frozenset()

    async def publish(self, sightings: Sequence[Sighting]) -> None:
        self.own |= {one.id for one in sightings}
        await super().publish(sightings)

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        async with aclosing(super().watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
            async for found in watch:
                yield [one for one in found if one.id not in self.own]


@found_by("D-7", "test_d7_a_look")
class HasOneReader(Bent):
    made: Reader | None = None

    def reader(self) -> Reader:
        self.made = self.made or super().reader()
        return self.made


def socket_of() -> int:
    """Open what a connection would have."""
    return os.open(os.devnull, os.O_RDONLY)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Any:
    """Close what the transport that leaves sockets open has left."""
    yield
    while LEFT:
        os.close(LEFT.pop())


@pytest.mark.parametrize(("kit", "clause", "test"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_what_an_author_forgot_is_found_by_its_clause(
    kit: type[Any], clause: str, test: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge.testing.blocks.LEAVE_SEC", 0.5)  # nothing here ends in a thread of its own
    run = run_contract(kit, tests=test)
    said = [(failure.test, failure.cited, failure.clause, failure.said) for failure in run.failures]
    assert said and {(cited, broken) for _, cited, broken, _ in said} == {(clause, clause)}, said


@pytest.mark.parametrize("kit", [CarelessStore, CarelessTransport, CarelessDiscovery], ids=lambda kit: kit.__name__)
def test_the_same_backends_pass_where_nothing_was_forgotten(kit: type[Any]) -> None:
    run = run_contract(kit, tests=" or ".join({test for made, _, test in CASES if issubclass(made, kit)}))
    assert run.failures == () and run.passed, run.output
