"""A lease: counted from before each renewal was sent, and once ended never alive again."""

from __future__ import annotations

import errno
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import anyio
import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Channel, Committed, Conflict, Store
from converge.env import Env
from converge.errors import LeaseEnded, StoreRolledBack, StoreUnavailable
from converge.model.keys import DEAD, EPOCH, EXPIRY, LEASE
from converge.services.store import lease as lease_module
from converge.services.store.commits import Commits
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import MARGIN, Lease, LeaseSettings, ended
from converge.testing.fixtures import wait_until
from converge.threads import NoThread

# The thread of a lease so long renews nothing during a test: the tests do it themselves.
LEASE_SEC = 3_000.0


class Clock:
    """A monotonic clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class Slow(MemoryStore):
    """A store whose every commit takes some time by the clock, or fails."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.takes_sec, self.is_away = clock, 0.0, False

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        self.clock.now += self.takes_sec
        if self.is_away:
            raise StoreUnavailable("it is away")
        return await super().commit(batches, wake=wake)


@asynccontextmanager
async def opened_lease(store: Store, clock: Clock) -> AsyncIterator[Lease]:
    """Open a lease of LEASE_SEC that counts by the clock."""
    env = Env(monotonic=clock.monotonic)
    commits: Commits = await StoreHandle.of(store, env).commits()
    lease = Lease(store, commits, env, LeaseSettings(lease_sec=LEASE_SEC))
    await lease.open()
    try:
        yield lease
    finally:
        await lease.close()


async def end_by_another(store: Store, lease: Lease) -> None:
    """End the lease as another process does once its time has passed."""
    (entry,) = await store.get([EXPIRY(lease.id)])
    assert entry is not None
    (outcome,) = await store.commit([ended(lease.id, entry.revision, 0)])
    assert isinstance(outcome, Committed)


async def test_what_remains_is_counted_from_before_the_renewal_was_sent() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        store.takes_sec = 200.0
        clock.now += 1_000.0
        assert await lease._renew(store)
        assert lease.remaining_sec() == pytest.approx(LEASE_SEC * (1 - MARGIN) - 200.0)
        assert lease.worst_renewal_sec == 200.0


async def test_what_remains_of_a_new_lease_is_counted_from_before_it_was_written() -> None:
    clock = Clock()
    store = Slow(clock)
    await StoreHandle.of(store).commits()
    store.takes_sec = 200.0
    async with opened_lease(store, clock) as lease:
        assert lease.remaining_sec() == pytest.approx(LEASE_SEC * (1 - MARGIN) - 200.0)


async def test_a_lease_that_was_long_in_being_written_is_renewed_at_once() -> None:
    clock = Clock()
    store = Slow(clock)
    await StoreHandle.of(store).commits()
    store.takes_sec = LEASE_SEC * 2 / 3
    async with opened_lease(store, clock) as lease:
        store.takes_sec = 0.0
        await wait_until(lambda: lease.renewals == 1, what="the renewal that was due meanwhile")
        assert lease.remaining_sec() == pytest.approx(LEASE_SEC * (1 - MARGIN))


async def test_a_renewal_that_fails_prolongs_nothing() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        store.is_away = True
        clock.now += 1_000.0
        assert not await lease._renew(store)
        assert lease.remaining_sec() == pytest.approx(LEASE_SEC * (1 - MARGIN) - 1_000.0)
        store.is_away = False


async def test_a_renewal_never_revives_a_lease_that_another_process_has_ended() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        await end_by_another(store, lease)
        for _ in range(2):
            assert not await lease._renew(store)
        assert await store.get([LEASE(lease.id), EXPIRY(lease.id)]) == [None, None]
        assert lease.remaining_sec() == 0
        with pytest.raises(LeaseEnded):
            lease.check_alive()


async def test_a_renewal_whose_answer_was_lost_does_not_end_the_lease() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        (entry,) = await store.get([EXPIRY(lease.id)])
        assert entry is not None
        await store.commit([Batch([(entry.key, entry.revision)], [(entry.key, entry.value)])])  # it was applied
        assert not await lease._renew(store)
        assert await lease._renew(store)
        lease.check_alive()


class Lossy(MemoryStore):
    """A store that carries out the next commit and never answers it."""

    is_lossy = False

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        outcomes = await super().commit(batches, wake=wake)
        if self.is_lossy:
            self.is_lossy = False
            await anyio.sleep_forever()
        return outcomes


async def test_a_renewal_that_is_never_answered_counts_from_when_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converge.services.store.lease.ANSWER_PART", 0.05 / LEASE_SEC)
    clock, store = Clock(), Lossy()
    async with opened_lease(store, clock) as lease:
        store.is_lossy = True
        clock.now += 1_000.0
        assert not await lease._renew(store), "the next one is due soon"
        assert lease.remaining_sec() == pytest.approx(LEASE_SEC * (1 - MARGIN))
        assert lease.renewals == 1
        assert await lease._renew(store)


async def test_a_renewal_finds_that_the_stores_revisions_fell_back() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        commits = await StoreHandle.of(store).commits()
        assert await lease._renew(store)
        assert commits.history.greatest == lease._expiry_revision, "what the thread sees, all know of"
        store._core.revision -= 2  # as a replica that takes over without the last writes
        assert not await lease._renew(store)
        assert commits.is_rolled_back
        with pytest.raises(StoreRolledBack):
            await commits.commit([Batch((), ())])
        assert not await lease._renew(store), "a lease on another history is not renewed"
        commits.history.is_rolled_back = False


async def test_a_renewal_finds_that_the_store_has_another_epoch() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        await store.commit([Batch((), ((EPOCH(), b'"another"'),))])
        assert not await lease._renew(store)
        assert (await StoreHandle.of(store).commits()).is_rolled_back


async def test_a_renewal_finds_its_own_key_as_it_was_before() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        assert await lease._renew(store)
        lease._expiry_revision += 100  # as after a restore: the key stands at a revision from before our last renewal
        assert not await lease._renew(store)
        assert (await StoreHandle.of(store).commits()).is_rolled_back


async def test_a_lease_is_not_ended_by_another_before_its_time() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        (entry,) = await store.get([EXPIRY(lease.id)])
        assert entry is not None
        (outcome,) = await store.commit([ended(lease.id, entry.revision, int(entry.value))])
        assert isinstance(outcome, Conflict)


async def test_a_process_stops_by_its_own_clock_before_others_may_take_over() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        clock.now += LEASE_SEC * (1 - MARGIN)
        with pytest.raises(LeaseEnded):
            lease.check_alive()
        (entry,) = await store.get([EXPIRY(lease.id)])
        assert entry is not None


async def test_a_closed_lease_is_ended_in_the_store_and_marked_for_the_sweep() -> None:
    clock = Clock()
    store = Slow(clock)
    async with opened_lease(store, clock) as lease:
        pass
    alive, expiry, dead = await store.get([LEASE(lease.id), EXPIRY(lease.id), DEAD(lease.id)])
    assert (alive, expiry) == (None, None)
    assert dead is not None
    with pytest.raises(LeaseEnded):
        lease.check_alive()


class Unopened(MemoryStore):
    """A store that refuses the first connections beside the first one."""

    refusals = 3

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        if self.refusals:
            self.refusals -= 1
            raise StoreUnavailable("it takes no more connections")
        async with super().reopen() as store:
            yield store


async def test_a_store_that_refuses_the_connection_of_renewals_for_a_while_ends_no_lease() -> None:
    store = Unopened()
    lease = await StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=6.0)).lease()
    try:
        await wait_until(lambda: lease.renewals >= 1, what="the lease is renewed")
        assert store.refusals == 0
        lease.check_alive()
    finally:
        await StoreHandle.of(store).close()


class SlowToOpen(MemoryStore):
    """A store whose connection of renewals is not there before it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.may_open = threading.Event()

    @asynccontextmanager
    async def reopen(self) -> AsyncIterator[Store]:
        await anyio.to_thread.run_sync(self.may_open.wait, 60)
        async with super().reopen() as store:
            yield store


async def test_a_connection_that_is_not_opened_counts_as_a_store_that_does_not_answer() -> None:
    clock = Clock()
    store = SlowToOpen()
    async with opened_lease(store, clock) as lease:
        await wait_until(lambda: lease.asked_since == clock.now, what="it is seen that the store is asked")
        store.may_open.set()
        await wait_until(lambda: lease.asked_since is None, what="it is seen that the store has answered")


async def test_a_system_that_starts_no_further_thread_ends_no_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> NoReturn:
        raise NoThread(errno.EAGAIN, "can't start new thread")

    monkeypatch.setattr(lease_module, "LOOK_SEC", 0.01)
    handle = StoreHandle.of(MemoryStore(), lease_settings=LeaseSettings(lease_sec=LEASE_SEC))
    monkeypatch.setattr(lease_module, "in_own_thread", refuse)
    lease = await handle.lease()
    try:
        await wait_until(lambda: lease.renewals >= 2, what="the lease is renewed")
        lease.check_alive()
    finally:
        await handle.close()
    assert lease._thread is not None
    lease._thread.join(30)
    assert not lease._thread.is_alive()
