"""Store time of a file: one clock for all, close to UTC, not moved by the wall clock, rebased by a boot so that every
lease has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from converge.builtin.file import clock
from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Committed, Window
from converge.model.keys import EXPIRY

HOUR = 3_600_000_000
LEASE_ID = b"l" * 16


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'state.db'}"


@pytest.fixture
def set_wall_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Move this process's wall clock, in microseconds; its boot-time clock goes on."""

    def move(by: int) -> None:
        moved = SimpleNamespace(time_ns=lambda: time.time_ns() + by * 1_000, clock_gettime_ns=time.clock_gettime_ns)
        monkeypatch.setattr(clock, "time", moved)

    return move


@pytest.fixture
def boot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Boot the host: another boot id."""
    return lambda: monkeypatch.setattr(clock, "boot_id", lambda: "00000000-another-boot")


async def store_time(url: str) -> int:
    async with FileStore.open(url) as store:
        return await store.time()


def wall() -> int:
    return time.time_ns() // 1_000


async def test_store_time_is_close_to_utc_and_the_same_for_each_handle(url: str) -> None:
    async with FileStore.open(url) as store, store.reopen() as other, FileStore.open(url) as third:
        times = [await each.time() for _ in range(100) for each in (store, other, third)]
    assert times == sorted(times)
    assert abs(times[0] - wall()) < 5_000_000


async def test_a_jump_of_the_wall_clock_moves_nothing(url: str, set_wall_clock: Callable[[int], None]) -> None:
    first = await store_time(url)
    for jump in (HOUR, -HOUR):
        set_wall_clock(jump)
        assert 0 <= await store_time(url) - first < 60_000_000


async def test_after_a_boot_time_is_that_of_the_wall_clock(
    url: str, boot: Callable[[], None], set_wall_clock: Callable[[int], None]
) -> None:
    await store_time(url)
    boot()
    set_wall_clock(5 * HOUR)
    rebased = await store_time(url)
    assert abs(rebased - (wall() + 5 * HOUR)) < 60_000_000
    set_wall_clock(0)
    assert 0 <= await store_time(url) - rebased < 60_000_000, "the same boot was rebased twice"


@pytest.mark.parametrize("jump", [0, -10 * HOUR], ids=["right", "ten hours slow"])
async def test_after_a_boot_every_lease_has_passed(
    url: str, boot: Callable[[], None], set_wall_clock: Callable[[int], None], jump: int
) -> None:
    async with FileStore.open(url) as store:
        until = await store.time() + 2 * HOUR
        await store.commit([Batch(puts=[(EXPIRY(LEASE_ID), str(until).encode()), (EXPIRY(b"m" * 16), b"1")])])
    boot()
    set_wall_clock(jump)
    async with FileStore.open(url) as store:
        assert await store.time() > until
        (outcome,) = await store.commit([Batch(deletes=[EXPIRY(LEASE_ID)], window=Window(at_least=until + 1))])
        assert type(outcome) is Committed, "the window is compared with another clock"


async def test_a_host_without_a_boot_id_has_a_clock_that_does_not_run_backwards(
    url: str, monkeypatch: pytest.MonkeyPatch, set_wall_clock: Callable[[int], None]
) -> None:
    monkeypatch.setattr(clock, "boot_id", lambda: "")
    async with FileStore.open(url) as store:
        first = await store.time()
        set_wall_clock(-HOUR)
        assert await store.time() >= first
