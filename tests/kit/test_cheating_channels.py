"""Transports, discoveries and stores that cheat: each is right where its author looked, and spares itself what nobody
notices on a quiet machine. The kit finds each by its clause, and names the line.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, closing, suppress
from typing import Any

import attrs
import pytest
from bending import Bent, bent

from converge.builtin.local.plugin import LOCAL
from converge.builtin.store_discovery.plugin import STORE_DISCOVERY
from converge.contracts.discovery import Sighting
from converge.contracts.store import Batch, Committed, Conflict, Entry, Key, Store
from converge.contracts.transport import Channel, Transport
from converge.testing import DiscoveryContract, StoreContract, TransportContract
from converge.testing.running import run_contract
from converge_store_toy.options import ToyOptions
from converge_store_toy.plugin import TOY
from converge_store_toy.store import PLACES, ToyStore

LEFT: list[int] = []
LONG_SEC, WORDS = 0.001, "have left open: /dev/null"


@attrs.frozen
class Cheat:
    """A contract's class for a backend that cheats, which clause finds it, what is said then, and by which test."""

    kit: type[Any]
    clause: str
    said: str
    test: str


CHEATS: list[Cheat] = []


def cheats(clause: str, said: str, test: str) -> Callable[[type[Any]], type[Any]]:
    """Declare by which clause a contract's class is to fail."""

    def declare(kit: type[Any]) -> type[Any]:
        CHEATS.append(Cheat(kit, clause, said, test))
        return kit

    return declare


def sleep() -> None:
    """Wait as a driver does that blocks."""
    time.sleep(LONG_SEC)  # it blocks on purpose: that is what has to be found


def leave_open() -> None:
    """Open a file that nobody closes."""
    LEFT.append(os.open(os.devnull, os.O_RDONLY))


def lock() -> None:
    """Wait for a lock that nobody has, as it is mostly."""
    file = os.open(os.devnull, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    finally:
        os.close(file)


# Transports.


class Wrapped(Transport):
    """The transport of one process, whose channels can be bent."""

    def __init__(self, straight: Transport, bend: Callable[[Channel], None]) -> None:
        self._straight, self._bend = straight, bend
        self.listen = straight.listen  # type: ignore[method-assign]  # as it is

    def listen(self, address: str) -> Any:  # the abstract method, which the instance's own hides
        raise NotImplementedError

    async def connect(self, address: str) -> Channel:
        channel = await self._straight.connect(address)
        self._bend(channel)
        return channel


def local(bend: Callable[[Channel], None]) -> Any:
    @asynccontextmanager
    async def open_bent(options: Any) -> AsyncIterator[Transport]:
        async with LOCAL.open(options) as straight:
            yield Wrapped(straight, bend)

    return attrs.evolve(LOCAL, open=open_bent)


def before_send(act: Callable[[], None]) -> Callable[[Channel], None]:
    """Return what makes a channel act before each send."""

    def bend(channel: Channel) -> None:
        straight = channel.send

        async def send(frames: Sequence[bytes]) -> None:
            act()
            await straight(frames)

        channel.send = send  # type: ignore[method-assign]  # of this channel alone

    return bend


class OnLocal(TransportContract):
    """The kit on a transport of this process."""

    loops = ("asyncio",)
    carrier_bytes = 0
    backend = LOCAL

    @pytest.fixture
    def address(self) -> str:
        return "local:"


@cheats("C-9", "`time.sleep` at ", "test_c9_no_call")
class SleepsInSend(OnLocal):
    backend = local(before_send(sleep))


@cheats("C-9", "`fcntl.flock` at ", "test_c9_no_call")
class LocksInConnect(OnLocal):
    backend = local(lambda channel: lock())


@cheats("C-11", WORDS, "test_c11_what_was_left")
class LeavesAFileForEachChannel(OnLocal):
    backend = local(lambda channel: leave_open())


@cheats("C-11", WORDS, "test_c11_what_was_left")
class LeavesAFileForEachSend(OnLocal):
    backend = local(before_send(leave_open))


# Discoveries.


class OnDiscovery(DiscoveryContract):
    """The kit on a discovery that cheats."""

    loops = ("asyncio",)
    backend = STORE_DISCOVERY


class SleepyLook(Bent):
    async def snapshot(self) -> list[Sighting]:
        sleep()
        return await super().snapshot()


@cheats("D-10", "`time.sleep` at ", "test_d10_what_was_left")
class SleepsInSnapshot(OnDiscovery):
    backend = bent(SleepyLook)


class Littering(Bent):
    async def publish(self, sightings: Sequence[Sighting]) -> None:
        leave_open()
        await super().publish(sightings)


@cheats("D-10", WORDS, "test_d10_what_was_left")
class LeavesAFileForEachPublish(OnDiscovery):
    backend = bent(Littering)


class Counting(Bent):
    """A watch tells of a change if the number of what is known has changed."""

    async def watch(self) -> AsyncIterator[list[Sighting]]:
        count = -1
        async with aclosing(super().watch()) as watch:  # type: ignore[type-var]  # as above
            async for found in watch:
                if len(found) != count:
                    count = len(found)
                    yield found


@cheats("D-3", "", "test_d3")
class ComparesNumbers(OnDiscovery):
    near_sec = 0.5
    backend = bent(Counting)


class Cached(Bent):
    """Answers a look from the one before, for a while."""

    found: tuple[float, list[Sighting]] = (0.0, [])

    async def snapshot(self) -> list[Sighting]:
        if self.found[0] < time.monotonic() - 60.0:
            self.found = time.monotonic(), await super().snapshot()
        return self.found[1]


@cheats("D-1", "", "test_d1")
class RemembersALook(OnDiscovery):
    near_sec = 0.5
    backend = bent(Cached)


# Stores.


class OnToy(StoreContract):
    """The kit on a store that cheats."""

    loops = ("asyncio",)
    backend = TOY


def toy(cls: type[ToyStore]) -> Any:
    @asynccontextmanager
    async def open_bent(url: str, options: ToyOptions) -> AsyncIterator[Store]:
        yield cls(PLACES.shelf("", options))

    return attrs.evolve(TOY, open=open_bent)


class SleepyToy(ToyStore):
    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        sleep()
        return await super().get(keys)


@cheats("S-17", "`time.sleep` at ", "test_no_call_keeps")
class SleepsInGet(OnToy):
    backend = toy(SleepyToy)


class LockingToy(ToyStore):
    def _apply(self, batch: Batch) -> Committed | Conflict:
        lock()
        return super()._apply(batch)


@cheats("S-17", "`fcntl.flock` at ", "test_no_call_keeps")
class LocksInCommit(OnToy):
    backend = toy(LockingToy)


def write_through_sqlite() -> None:
    """Write as a store does that has its engine in the thread of the event loop."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as engine:
        for statement in ("create table t (k)", "begin immediate", "insert into t values (1)", "commit"):
            engine.execute(statement)


def sync() -> None:
    """Wait for a disk."""
    file = os.open(os.devnull, os.O_RDONLY)
    try:
        with suppress(OSError):  # what is no file cannot be synced
            os.fsync(file)
    finally:
        os.close(file)


class SqliteToy(ToyStore):
    def _apply(self, batch: Batch) -> Committed | Conflict:
        write_through_sqlite()
        return super()._apply(batch)


class SyncingToy(ToyStore):
    def _apply(self, batch: Batch) -> Committed | Conflict:
        sync()
        return super()._apply(batch)


@cheats("S-17", "`sqlite3.execute in a transaction` at ", "test_no_call_keeps")
class WritesInTheLoop(OnToy):
    backend = toy(SqliteToy)


@cheats("S-17", "`os.fsync` at ", "test_no_call_keeps")
class SyncsInTheLoop(OnToy):
    backend = toy(SyncingToy)


@pytest.fixture(autouse=True)
def nothing_left_open() -> Any:
    """Close what those have left that leave files open."""
    yield
    while LEFT:
        os.close(LEFT.pop())


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.kit.__name__)
def test_a_cheat_is_found_by_its_clause_and_told_where(cheat: Cheat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge.testing.blocks.LEAVE_SEC", 0.5)  # nothing here ends in a thread of its own
    run = run_contract(cheat.kit, tests=cheat.test)
    found = run.failed(cheat.clause)
    assert found, f"no test of {cheat.clause} failed, but {[(f.test, f.said) for f in run.failures]}"
    assert any(cheat.said in failure.said for failure in found), [failure.said for failure in found]
    if "` at " in cheat.said:
        assert any(f"{__file__}:" in failure.said for failure in found), [failure.said for failure in found]


@pytest.mark.parametrize("kit", [OnLocal, OnDiscovery, OnToy])
def test_the_same_backends_pass_where_nothing_is_bent(kit: type[Any]) -> None:
    run = run_contract(kit, tests=" or ".join(sorted({cheat.test for cheat in CHEATS})))
    assert run.failures == (), run.output
    assert run.passed
