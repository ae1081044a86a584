"""Store time of a file: one clock for all, close to UTC, which follows a corrected wall clock without ending a lease,
and is rebased by a boot so that every lease has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from converge import Agent, Node, Task
from converge.builtin.file import clock
from converge.builtin.file.store import FileStore
from converge.contracts.store import Batch, Committed, Conflict, Key, Store, Window
from converge.model.keys import EXPIRY
from converge.testing.fixtures import wait_until

HOUR = 3_600_000_000
LEASE_ID = b"l" * 16


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file:{tmp_path / 'state.db'}"


@pytest.fixture
def set_wall_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Move this process's wall clock, in microseconds; its boot-time clock goes on."""

    def move(by: int) -> None:
        monkeypatch.setattr(clock, "wall_time", lambda: wall() + by)

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


STEPS = {"an hour": HOUR, "a year": 365 * 24 * HOUR}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
async def test_time_follows_a_wall_clock_that_is_set_forward_and_no_live_lease_ends(
    url: str, set_wall_clock: Callable[[int], None], step: int
) -> None:
    async with FileStore.open(url) as store, FileStore.open(url) as idle:
        before = await idle.time()
        lives, died = before + 15_000_000, before - 1
        await put(store, (EXPIRY(LEASE_ID), lives), (EXPIRY(b"m" * 16), died))
        set_wall_clock(step)
        assert await idle.time() - before < 5_000_000, "time moves in a transaction, for all at once"
        await put(store, (EXPIRY(b"n" * 16), before))
        for handle in (store, idle):
            now = await handle.time()
            assert abs(now - wall() - step) < 5_000_000
            entries = await handle.get([EXPIRY(LEASE_ID), EXPIRY(b"m" * 16)])
            assert [entry is not None and int(entry.value) > now for entry in entries] == [True, False]
            assert abs(now - await handle.retention_time() - step) < 5_000_000, "all that is kept would go at once"
        (outcome,) = await idle.commit([Batch(puts=[(EXPIRY(LEASE_ID), b"1")], window=Window(at_most=lives))])
        assert type(outcome) is Conflict and outcome.window, "a renewal by the time before would end the lease"


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
async def test_time_stands_still_for_a_lease_when_the_wall_clock_is_set_back_and_then_runs_ahead(
    url: str,
    set_wall_clock: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: int,
) -> None:
    booted = Clock(monkeypatch)
    async with FileStore.open(url) as store, FileStore.open(url) as idle:
        first = await idle.time()
        booted.wall -= step
        await put(store, (EXPIRY(LEASE_ID), first + 15_000_000))
        still = await idle.time()
        assert 0 <= still - first < 1_000
        booted.pass_by(14.0)
        await put(store, (EXPIRY(b"n" * 16), 1))
        assert [await handle.time() for handle in (store, idle)] == [still, still]
        booted.pass_by(11.0)
        await put(store, (EXPIRY(b"n" * 16), 1))
        assert abs(await idle.time() - still - 10_000_000) < 1_000
        await store.time()
        assert abs(store.clock_ahead_sec - (step / 1_000_000 - 15)) < 1
        assert f"{step / 1_000_000 - 15:.0f} s ahead" in caplog.text
        booted.wall += step  # it was an error, and is right again: nothing moves
        await put(store, (EXPIRY(b"n" * 16), 1))
        assert abs(await idle.time() - still - 10_000_000) < 16_000_000
        await store.time()
        assert store.clock_ahead_sec == 0


async def test_a_small_correction_of_the_wall_clock_moves_nothing(
    url: str, set_wall_clock: Callable[[int], None]
) -> None:
    async with FileStore.open(url) as store:
        for step in (500_000, -500_000):
            before = await store.time()
            set_wall_clock(step)
            await put(store, (EXPIRY(LEASE_ID), 1))
            assert 0 <= await store.time() - before < 400_000


async def test_who_opens_the_file_alone_sets_a_clock_right_that_was_ahead(
    url: str, set_wall_clock: Callable[[int], None]
) -> None:
    set_wall_clock(365 * 24 * HOUR)
    async with FileStore.open(url) as store:
        await put(store, (EXPIRY(LEASE_ID), await store.time() + 15_000_000))  # of one that is killed now
    set_wall_clock(0)
    async with FileStore.open(url) as store:
        now = await store.time()
        assert abs(now - wall()) < 5_000_000
        (entry,) = await store.get([EXPIRY(LEASE_ID)])
        assert entry is not None and int(entry.value) < now, "a lease that ended would live for a year"
        set_wall_clock(-HOUR)
        async with FileStore.open(url) as other:  # not alone: time never runs back
            assert await other.time() >= now


async def test_a_node_is_not_ready_while_store_time_is_ahead_and_says_by_how_much(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    booted = Clock(monkeypatch)
    async with Node(store=url, grace_sec=0.5, poll_sec=0.1) as node:
        await node.spawn(Idle, pool="p")
        booted.wall -= HOUR
        await wait_until(lambda: not node.health().is_ready, timeout=20)
        assert [(one.code, "3585 s ahead" in one.text) for one in node.health().reasons if "clock" in one.code] == [
            ("clock_ahead", True)
        ]
        booted.wall += HOUR
        await wait_until(lambda: "clock_ahead" not in [one.code for one in node.health().reasons], timeout=20)


async def test_retention_follows_a_step_by_one_lease_a_minute(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    booted = Clock(monkeypatch)
    async with FileStore.open(url) as store:
        booted.wall += HOUR
        await put(store, (EXPIRY(LEASE_ID), 1))
        for minutes in (0, 1, 10):
            booted.pass_by(60.0 * minutes)
            lag = await store.time() - await store.retention_time()
            passed = sum(n for n in (0, 1, 10) if n <= minutes)
            assert abs(lag - (HOUR - passed * 15_000_000)) < 1_000_000
        booted.pass_by(7 * 86_400.0)
        assert await store.time() == await store.retention_time()


class Idle(Agent):
    """Has nothing to do, but a lease that is renewed."""

    async def on_task(self, task: Task) -> None:
        """See the class."""


class Clock:
    """Both clocks of the host, which move only when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot, self.wall = 1_000_000_000, wall()
        monkeypatch.setattr(clock, "boot_time", lambda: self.boot)
        monkeypatch.setattr(clock, "wall_time", lambda: self.wall)

    def pass_by(self, seconds: float) -> None:
        self.boot += int(seconds * 1_000_000)
        self.wall += int(seconds * 1_000_000)


async def put(store: Store, *pairs: tuple[Key, int]) -> None:
    (outcome,) = await store.commit([Batch(puts=[(key, str(value).encode()) for key, value in pairs])])
    assert type(outcome) is Committed


async def test_after_a_boot_time_is_that_of_the_wall_clock(
    url: str, boot: Callable[[], None], set_wall_clock: Callable[[int], None]
) -> None:
    await store_time(url)
    boot()
    set_wall_clock(5 * HOUR)
    async with FileStore.open(url) as store:
        rebased = await store.time()
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
    async with FileStore.open(url) as store, FileStore.open(url) as other:
        first = await store.time()
        set_wall_clock(-HOUR)
        await put(store, (EXPIRY(LEASE_ID), 1))
        assert first <= await store.time() <= await other.time()
        set_wall_clock(HOUR)
        await put(other, (EXPIRY(LEASE_ID), 1))
        assert abs(await store.time() - wall() - HOUR) < 5_000_000
