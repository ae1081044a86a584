"""The shared state of one opened store: its epoch, coalescer, clock, lease, and the pools seen."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from contextlib import aclosing
from typing import NamedTuple

import anyio

from converge import forks
from converge.codec import FIRST, decode
from converge.contracts.store import ABSENT, LIMITS, Batch, Channel, Check, Conflict, Range, Store
from converge.env import SYSTEM, Env
from converge.errors import LeaseEnded, NoSuchPool, StoreError, StoreRefused, StoreReplaced
from converge.ids import check_name
from converge.model.keys import EPOCH, POOL
from converge.model.pool import Pool
from converge.services.store.commits import Commits
from converge.services.store.formats import raise_format
from converge.services.store.lease import Lease, LeaseSettings
from converge.services.store.limits import LimitedStore
from converge.services.store.outage import DEAF, HEARS, Outage
from converge.services.store.reads import Reads, Recent

POOL_FRESH_SEC = 1.0
"""How old a pool's record may be where a check of its revision would catch a change anyway."""

CHORES = "chores"
"""The channel that says that something is to be carried out for tasks: ends to be told, children to be submitted."""

CHORES_SEC = 0.01
"""How long after that its process sweeps: the ends of children that come together are told together."""

RECENT_BYTES = 2 * 1_048_576
"""About how much of what parked tasks have recorded a process keeps."""

CLOCK_FRESH_SEC = 10.0
"""How long the store's lead over the monotonic clock is relied on: clocks drift by less than a millisecond in it."""


class PoolSeen(NamedTuple):
    """A pool's record, its revision, and when it was read (monotonic seconds)."""

    pool: Pool
    revision: int
    seen: float


class StoreHandle:
    """Shared by every manager of one store handle; found through the handle, so that two managers have one lease."""

    def __init__(self, store: Store, env: Env = SYSTEM, lease_settings: LeaseSettings | None = None) -> None:
        self.env = env
        self.lease_settings = lease_settings or LeaseSettings()
        self.store: Store = LimitedStore(store, self.lease_settings.call_sec)
        self.reads = Reads(self.store)
        self.pools: dict[str, PoolSeen] = {}
        self.recent: Recent[object] = Recent(RECENT_BYTES)
        """What attempts had read of their tasks when these were parked."""
        self.newer_lanes: set[bytes] = set()
        """Lanes with tasks of a newer format: this process leaves them to others."""
        self.logged: set[str] = set()
        """Warnings that were logged, and are not repeated."""
        self.outage, self.watch_outage = Outage(env), Outage(env, DEAF, HEARS)
        # In the record of each task: so no longer than it takes. Processes that drew the same wake each other.
        self.origin = f"done.{env.entropy(4).hex()}"
        self._commits: Commits | None = None
        self._lease: Lease | None = None
        self.lost: Lease | None = None
        self.lease_came = anyio.Event()
        """Set while there is a lease."""
        self.due_at = float("inf")
        """When the next task put off here is due (monotonic seconds); `due_came` is set when that becomes sooner."""
        self.due_came = anyio.Event()
        self.unsettled: dict[bytes, bytes] = {}
        """Takes whose answers were lost: the nonce of each, and the lease that it was for. They are settled before
        anybody takes again: what they took would stay held as long as this process lives.
        """
        self.settling = anyio.Lock()
        self._lock = anyio.Lock()
        self._raising: anyio.Event | None = None
        self._format = FIRST  # the newest that is known to be recorded in the store
        self._offset = 0  # store time less monotonic time, microseconds
        self._offset_seen = float("-inf")
        # Before the store is asked: what a child inherits of calls under way has nobody who ends them.
        forks.watch(self, lambda handle: forks.refuse(handle, "commits", "lease", "now", "pool"))

    @classmethod
    def of(cls, store: Store, env: Env = SYSTEM, lease_settings: LeaseSettings | None = None) -> StoreHandle:
        """Return the store's handle, made on first use; `lease_settings` count only then."""
        if store.shared is None:
            store.shared = cls(store, env, lease_settings)
        assert isinstance(store.shared, StoreHandle), "only core writes Store.shared"
        return store.shared

    async def commits(self) -> Commits:
        """Return the coalescer; the first call reads the store's epoch, or draws one for a new store."""
        if self._commits is None:
            async with self._lock:
                if self._commits is None:
                    await self.now()  # what is sent from now on says when, without asking
                    epoch = await read_epoch(self.store, self.env)
                    self._commits = Commits(
                        self.store,
                        epoch,
                        self.env,
                        self._begin_anew,
                        on_wake=self._has_woken,
                        call_sec=self.lease_settings.call_sec,
                    )
        return self._commits

    def _has_woken(self, channels: Collection[Channel]) -> None:
        """Have this process's own sweep carry out what its commit has left to do: it need not wait for its next poll,
        nor for another process to hear of it.
        """
        if CHORES in channels:
            self.saw_due(self.about_now() + int(CHORES_SEC * 1_000_000))

    async def require_format(self, number: int) -> None:
        """Record in the store that this format is used, before it is: older releases refuse the store then.

        Raises:
            StoreError: It could not be recorded; nothing of the format may be written.
        """
        while self._format < number:
            if self._raising is not None:  # one caller records it for all, who go on together
                await self._raising.wait()
                continue
            raised = self._raising = anyio.Event()
            try:
                await raise_format(self.store, number)
                self._format = number
            finally:
                self._raising = None
                raised.set()

    def _begin_anew(self) -> None:
        """Forget what was known of a store whose history an operator has accepted: it need not be so there."""
        self.pools.clear()
        self.recent.clear()
        self._format = FIRST
        if self._lease is not None:
            self._lease.give_up("the store's history was replaced, and accepted by an operator")

    async def lease(self) -> Lease:
        """Return this process's lease; the first call opens it.

        Raises:
            LeaseEnded: It was opened, and has ended: what was claimed or joined under it has gone back. Where no node
                keeps it, the next call opens another.
        """
        commits = await self.commits()
        if self._lease is None:
            async with self._lock:
                if self._lease is None:
                    lease = Lease(self.store, commits, self.env, self.lease_settings, self.outage)
                    await lease.open()
                    self._lease = lease
                    self.lease_came.set()
        try:
            self._lease.check_alive()
        except LeaseEnded:
            await self.let_go()
            raise
        return self._lease

    async def watch_always(
        self, channels: Collection[Channel], part: str, on_wake: Callable[[], None], pause_sec: float
    ) -> None:
        """Call `on_wake` when a watch is in force and at each wake-up of the channels, until cancelled; a watch that
        fails is begun again.

        Args:
            channels: What is watched.
            part: Who watches, for the log of outages; who watches no more is not deaf.
            on_wake: Called once for several wake-ups that come together.
            pause_sec: How long to wait before a watch that failed is begun again; the caller polls meanwhile.
        """
        try:
            while True:
                try:
                    async with aclosing(self.store.watch(channels)) as watch:  # type: ignore[type-var]  # every watch is an async generator
                        async for _ in watch:
                            self.watch_outage.works(part)
                            on_wake()
                except StoreError as error:
                    self.watch_outage.failed(part, error)
                await anyio.sleep(pause_sec)
        finally:
            self.watch_outage.left(part)

    async def let_go(self) -> None:
        """Let the next caller open another lease, once the ended one's holder was told. A node does so itself."""
        lease = self._lease
        if lease is not None and not self.lease_settings.node_key and lease.remaining_sec() <= 0:
            await self.forget_lease(lease)

    async def forget_lease(self, lease: Lease) -> None:
        """Let the next caller of `lease` open another one: what was held under the ended one is the reaper's. It stays
        in `lost` until whoever opens another has put there what belongs under one.
        """
        if self._lease is lease:
            self._lease, self.lost = None, lease
            self.lease_came = anyio.Event()
            await lease.close()

    @property
    def lease_opened(self) -> Lease | None:
        """The lease, if one was opened."""
        return self._lease

    def may_act_under(self, lease_id: bytes) -> bool:
        """Return whether that is this process's lease still, and has not run out."""
        lease = self._lease
        return lease is not None and lease.id == lease_id and lease.remaining_sec() > 0

    async def now(self) -> int:
        """Return store time in microseconds, estimated from the last reading and the monotonic clock; while the store
        is away an older one serves.

        Raises:
            StoreError: It was never read, and cannot be.
        """
        if self.store.is_clock_local:
            self.saw_time(now := await self.store.time())  # for `about_now`
            return now
        monotonic = self.env.monotonic()
        if monotonic - self._offset_seen > CLOCK_FRESH_SEC:
            try:
                self.saw_time(await self.store.time())
            except StoreError:
                if self._offset_seen == float("-inf"):
                    raise
        return self._offset + int(self.env.monotonic() * 1_000_000)

    def about_now(self) -> int:
        """Return store time as it was last known, without a wait: for what only informs."""
        return self._offset + int(self.env.monotonic() * 1_000_000)

    def saw_time(self, now: int) -> None:
        """Record store time, read a moment ago.

        Readings are late, a take's by as long as its commit took: the least late one counts, while it is fresh.
        """
        monotonic = self.env.monotonic()
        offset = now - int(monotonic * 1_000_000)
        if offset >= self._offset or monotonic - self._offset_seen > CLOCK_FRESH_SEC:
            self._offset, self._offset_seen = offset, monotonic

    def saw_due(self, due: int) -> None:
        """Record when a task comes due that was put off here, so that the sweep of this process is there in time."""
        at = (due - self._offset) / 1_000_000
        if at < self.due_at:
            self.due_at = at
            self.due_came.set()

    async def pool(self, pool_id: str, *, is_fresh: bool = False) -> PoolSeen:
        """Return the pool's record, read within the last `POOL_FRESH_SEC` or, if `is_fresh`, now.

        Raises:
            NoSuchPool: With the nearest name.
        """
        seen = self.pools.get(pool_id)
        if seen is not None and not is_fresh and self.env.monotonic() - seen.seen < POOL_FRESH_SEC:
            return seen
        (entry,) = await self.store.get([POOL(check_name("pool", pool_id))])
        if entry is None:
            self.pools.pop(pool_id, None)
            (page,) = await self.store.scan([Range(POOL(), None, LIMITS.keys)])
            near = difflib.get_close_matches(pool_id, [found.key[1] for found in page], n=1)
            raise NoSuchPool(pool_id, nearest=near[0] if near else None)
        seen = PoolSeen(decode(entry.value, Pool, f"pool {pool_id}"), entry.revision, self.env.monotonic())
        self.pools[pool_id] = seen
        return seen

    @property
    def dead(self) -> StoreReplaced | None:
        """What ended the store's handle for good, if a part of the process has met it; may be asked from any thread."""
        return self.outage.dead or self.watch_outage.dead

    @property
    def asked_since(self) -> float | None:
        """Since when the oldest write or renewal waits for the store; may be asked from any thread."""
        commits, lease = self._commits, self._lease
        asked = (commits.asked_since if commits is not None else None, lease.asked_since if lease is not None else None)
        return min((one for one in asked if one is not None), default=None)

    @property
    def answered_at(self) -> float:
        """When the store was last seen to answer (monotonic seconds); may be asked from any thread."""
        return max(self._offset_seen, self._commits.answered_at if self._commits is not None else float("-inf"))

    def end_late_calls(self, *, is_last: bool = False) -> None:
        """End writes that have lasted for `call_sec`; see `Commits.end_late_calls`."""
        if self._commits is not None:
            self._commits.end_late_calls(is_last=is_last)

    def hurry(self, within_sec: float) -> None:
        """Bound every call of the store that others share from now on; see `Commits.hurry`."""
        if self._commits is not None:
            self._commits.hurry(within_sec)

    async def close(self) -> None:
        """End the lease, if one was opened; what it holds goes back at the next sweep of any process."""
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.close()


async def read_epoch(store: Store, env: Env) -> Check:
    """Return the check of the store's epoch, drawing one if the store is new.

    The check is of the key's revision: a restored or flushed store has another.
    """
    key = EPOCH()
    for _ in range(3):
        (entry,) = await store.get([key])
        if entry is not None:
            return key, entry.revision
        outcome, *_ = await store.commit([Batch([(key, ABSENT)], [(key, f'"{env.entropy(16).hex()}"'.encode())])])
        if not isinstance(outcome, Conflict):
            return key, outcome.revision
    raise StoreRefused(
        "the store's epoch appears and vanishes: another program writes to this network's keys; stop it, or use "
        "another network"
    )
