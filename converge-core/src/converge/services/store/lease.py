"""The process's lease: opened and ended with one write, renewed with one write on a thread and connection of its own.

The only liveness there is: claims, descriptors and memberships name it and end with it. It runs on store time; this
process measures what is left of it on its monotonic clock, from before each renewal was sent.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import anyio
import attrs

from converge.codec import encode, stored_text
from converge.contracts.store import ABSENT, Batch, Check, Committed, Conflict, Entry, Store, Window
from converge.env import Env
from converge.errors import LeaseEnded, OutcomeUnknown, StoreBusy, StoreError, StoreRolledBack, StoreUnavailable
from converge.model.keys import DEAD, EXPIRY, LEASE
from converge.services.store.commits import Commits
from converge.services.store.history import ROLLED_BACK
from converge.services.store.outage import Outage
from converge.threads import NoThread, in_own_thread

log = logging.getLogger("converge.lease")

MARGIN = 0.1
"""The part of a lease that its holder does not use: it stops before others may take over."""

CLOSE_SEC = 1.5
"""How long closing may take; what is not ended then ends by itself."""

ANSWER_PART, LOOK_PART = 1 / 4, 1 / 8
"""The parts of a lease that a renewal, and a look at what became of it, may take: then another try has time."""

BLOCKED_SEC = 2.0
"""A loop that has not run for so long, or for a third of the lease, is logged with its stack."""

LOOK_SEC = 1.0
"""How often the thread looks at the loop between renewals."""

NOT_RENEWED = "renewals did not reach the store"

STARTING = "starting"
"""What a node's lease says of it until its node has looked at its own health."""

TOUCHES = 10
"""How often a write of the lease's own keys is tried again: only a call of this process can be first."""


@attrs.frozen(kw_only=True)
class LeaseSettings:
    """`lease_sec`: how long a process may be away before its work goes back. `stall_sec`: its event loop.

    `node_key` and `endpoints` stand in the lease's record, for readers.
    """

    lease_sec: float = 15.0
    stall_sec: float = 150.0
    call_sec: float = 10.0
    node_key: str = ""
    endpoints: tuple[str, ...] = ()


class Lease:
    """This process's lease on one store. Its methods may be called at any time from the loop that opened it."""

    def __init__(
        self, store: Store, commits: Commits, env: Env, settings: LeaseSettings, outage: Outage | None = None
    ) -> None:
        self.id = env.entropy(16)
        self.settings = settings
        self.renewals = 0
        self.worst_renewal_sec = 0.0
        self.blocked_sec = 0.0
        self.asked_since: float | None = None
        """Since when a renewal has been under way (monotonic seconds)."""
        self._store, self._commits, self._env = store, commits, env
        self._outage = outage or Outage(env)
        self._revision = 0
        self._expiry_revision = 0
        self._record: dict[str, Any] = {}
        self._values: set[bytes] = set()  # of the record, that this process has written or tried to
        self._deadline = 0.0  # monotonic: until when this process may act
        self._unanswered: dict[bytes, float] = {}  # values of renewals without an answer: when each was sent
        self._beaten: float | None = None  # a node beats; claims made by hand live as long as the process
        self._logged_beat: float | None = None  # the beat after which a block was logged
        self._ended: str | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._owner = threading.get_ident()

    @property
    def channel(self) -> str:
        """Woken by who cancels a claim of this lease, and by each renewal: who does not hear its own is deaf."""
        return f"lease.{self.id.hex()}"

    def check(self) -> Check:
        """Return the check that a claim carries: it fails once the lease has ended."""
        return LEASE(self.id), self._revision

    def check_alive(self) -> None:
        """Raise if the lease has ended, or may have.

        Raises:
            LeaseEnded: It has.
        """
        if self._ended is not None or self.remaining_sec() <= 0:
            raise LeaseEnded(self.id.hex())

    async def check_not_ended(self, conflict: Conflict) -> None:
        """Raise if the lease has ended, where the conflict names it; else it was touched meanwhile: then try again.

        Raises:
            LeaseEnded: Somebody has ended it.
            StoreUnavailable: That could not be found out.
        """
        if any(key[0] is LEASE and key[1] == self.id for key in conflict.keys):
            await self._read()

    def remaining_sec(self) -> float:
        """Return how long this process may still act under the lease, by its own clock, the margin taken off."""
        return 0.0 if self._ended is not None else self._deadline - self._env.monotonic()

    @property
    def deadline(self) -> float:
        """Until when this process may act, by its monotonic clock."""
        return self._deadline

    @property
    def why_ended(self) -> str | None:
        """Why the lease has ended, if it has."""
        return self._ended

    def beat(self) -> None:
        """Record that the event loop runs; without it renewal stops after `stall_sec`."""
        self._beaten = self._env.monotonic()

    async def open(self) -> None:
        """Write the lease and start renewing it.

        Raises:
            StoreError: It could not be written.
        """
        began = self._env.monotonic()
        outcome = await self._write()
        self._revision = self._expiry_revision = outcome.revision
        self._deadline = began + self.settings.lease_sec * (1 - MARGIN)
        self._outage.works("renewal")
        thread = threading.Thread(target=self._run, name="converge-lease", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has none left
            await self.close()
            raise StoreUnavailable(f"nothing would renew the lease: {error}; nothing is held, try again") from error
        self._thread = thread

    async def _write(self) -> Committed:
        process = self._env.process()
        for _ in range(TOUCHES):
            now = await self._store.time()
            until = now + self._lease_us()
            # Earlier releases read this record as any mapping, and look at the first two.
            self._record = {
                "node": self.settings.node_key,
                "endpoints": list(self.settings.endpoints),
                "host": stored_text(process.host),
                "pid": process.pid,
                "release": process.release,
                "started": now - int(process.age_sec * 1_000_000),
            }
            if self.settings.node_key:
                self._record["unready"] = [STARTING]
            self._values = {encode(self._record)}
            puts = [(LEASE(self.id), encode(self._record)), (EXPIRY(self.id), str(until).encode())]
            # The window fails if the store's clock was moved beyond it since it was read.
            batch = Batch([(key, ABSENT) for key, _ in puts], puts, (), Window(at_most=until))
            (outcome,) = await self._commits.commit([batch])
            if isinstance(outcome, Committed):
                return outcome
            assert outcome.window, "16 random bytes were drawn twice"
        raise StoreBusy(f"the store's clock was moved {TOUCHES} times while a lease was opened; try again")

    async def touch(self) -> None:
        """Put the lease's key again, so that every take still in flight with the old revision conflicts.

        Raises:
            LeaseEnded: It has.
        """
        for _ in range(TOUCHES):
            entry, value = await self._read(), encode(self._record)
            (outcome,) = await self._commits.commit([Batch([(entry.key, entry.revision)], [(entry.key, value)])])
            if isinstance(outcome, Committed):
                self._revision = max(self._revision, outcome.revision)
                return
        raise StoreBusy(f"the lease was touched by others {TOUCHES} times; try again")

    async def tell(self, unready: Sequence[str]) -> None:
        """Write into the lease's record why this process is not ready, as codes; none: it is. For listings.

        Raises:
            LeaseEnded, StoreError: It was not written, or may not have been.
        """
        self._record = self._record | {"unready": list(unready)}
        self._values.add(encode(self._record))
        await self.touch()

    async def _read(self) -> Entry:
        """Read the lease's key: only this process writes it, so its revision is ours, even of an unanswered touch."""
        (entry,) = await self._store.get([LEASE(self.id)])
        if entry is None:
            self._ended = self._ended or "it was ended in the store"
            raise LeaseEnded(self.id.hex())
        if entry.value not in self._values:
            self._ended = self._ended or "something else wrote over its record"
            log.error("lease %s is given up: %s", self.id.hex(), self._ended)
            raise LeaseEnded(self.id.hex())
        self._revision = max(self._revision, entry.revision)
        return entry

    def abandon(self) -> None:
        """Stop renewing without ending the lease, like a process that dies; for tests."""
        self._stopping.set()

    def give_up(self, why: str) -> None:
        """Give the lease up: the next renewal is not made. Whoever closes the lease ends it in the store."""
        self._ended = self._ended or why

    async def close(self) -> None:
        """Stop renewing and end the lease in the store; its claims, if any are left, go back at the next sweep."""
        self._stopping.set()
        self._ended = self._ended or ("it was closed" if self.remaining_sec() > 0 else NOT_RENEWED)
        with anyio.move_on_after(CLOSE_SEC, shield=True):
            try:
                await self._end()
            except StoreError as error:
                log.warning("lease %s could not be ended in the store, it ends by itself: %s", self.id.hex(), error)
            if self._thread is not None:  # last: a renewal that waits for the store must not use up the time
                with suppress(NoThread):
                    await in_own_thread(self._thread.join, CLOSE_SEC, abandon_on_cancel=True)

    async def _end(self) -> None:
        for _ in range(TOUCHES):
            (entry,) = await self._store.get([EXPIRY(self.id)])
            if entry is None:
                return
            batch = Batch([(entry.key, entry.revision)], [(DEAD(self.id), b"")], [LEASE(self.id), EXPIRY(self.id)])
            (outcome,) = await self._commits.commit([batch])
            if isinstance(outcome, Committed):
                return  # else a last renewal was still on its way

    # The thread. It shares only floats and flags with the loop, so neither waits for the other.

    def _run(self) -> None:
        try:
            anyio.run(self._renew_until_stopped, backend="asyncio")
        except Exception:
            log.exception("renewal of lease %s died; the lease will end", self.id.hex())
            self._ended = "its renewal died"

    async def _renew_until_stopped(self) -> None:
        """Renew on a connection of its own; one that the store refuses is opened again, since there is time."""
        due = self._deadline - self.settings.lease_sec * (1 - MARGIN - 1 / 3)  # the lease may have been long in coming
        while not self._stopping.is_set() and self._ended is None:
            self.asked_since = self._env.monotonic()  # a store that is away may leave its opening unanswered, too
            try:
                async with self._store.reopen() as store:
                    self.asked_since = None
                    await self._renew_on(store, due - self._env.monotonic())
            except StoreError as error:
                self.asked_since = None
                self._outage.failed("renewal", error)
                await self._waited(self._again_sec())

    async def _renew_on(self, store: Store, interval: float) -> None:
        while not self._stopping.is_set() and self._ended is None:
            if await self._waited(interval):
                return
            interval = self.settings.lease_sec / 3
            if self._is_stalled():
                return
            if not await self._renew(store):
                interval = min(interval, self._again_sec())

    def _again_sec(self) -> float:
        """Return how long after a renewal that failed the next one is tried."""
        return max(0.02, self.settings.lease_sec / 15)

    async def _waited(self, seconds: float) -> bool:
        """Wait as `_wait` does, or for a moment where the system has no thread for that: it is no reason to die."""
        try:
            return await in_own_thread(self._wait, seconds)
        except NoThread:
            await anyio.sleep(min(seconds, LOOK_SEC))
            return self._wait(0.0)

    def _wait(self, seconds: float) -> bool:
        """Wait for the next renewal; return whether there is none. Look meanwhile whether the loop runs."""
        while seconds > 0:
            if self._stopping.wait(min(seconds, LOOK_SEC)):
                return True
            seconds -= LOOK_SEC
            self._look_at_loop()
        return self._stopping.is_set()

    async def _renew(self, store: Store) -> bool:
        began = self.asked_since = self._env.monotonic()
        try:
            return await self._renew_from(store, began)
        finally:
            self.asked_since = None

    async def _renew_from(self, store: Store, began: float) -> bool:
        history, key = self._commits.history, EXPIRY(self.id)
        floor, epoch = history.greatest, history.epoch
        with anyio.move_on_after(self.settings.lease_sec * ANSWER_PART):
            try:
                until = await store.time() + self._lease_us()
                renewed = [(key, str(until).encode())]
                self._unanswered[renewed[0][1]] = began
                batch = Batch([(key, self._expiry_revision), epoch], renewed, (), Window(at_most=until))
                outcome, *_ = await store.commit([batch], wake=[self.channel])
                if epoch is history.epoch:  # else an operator has accepted another one meanwhile
                    history.check([outcome], floor)
                if history.is_rolled_back:
                    raise StoreRolledBack(ROLLED_BACK)
                if isinstance(outcome, Conflict):
                    return await self._look_again(store)
                self._expiry_revision = outcome.revision
            except OutcomeUnknown:
                return await self._look_again(store)
            except StoreError as error:
                if isinstance(error, StoreRolledBack) and epoch is history.epoch:
                    history.is_rolled_back = True
                self._outage.failed("renewal", error)
                return False
            self._renewed(began)
            return True
        return await self._look_again(store)

    def _renewed(self, began: float) -> None:
        self._outage.works("renewal")
        self._unanswered.clear()
        self._deadline = max(self._deadline, began + self.settings.lease_sec * (1 - MARGIN))
        self.renewals += 1
        self.worst_renewal_sec = max(self.worst_renewal_sec, self._env.monotonic() - began)

    async def _look_again(self, store: Store) -> bool:
        """Read what became of a renewal that may have been applied without an answer. Only this process renews, so what
        is found is its own: it prolongs the lease from when it was sent. Return False: the next one is due soon.
        """
        with anyio.move_on_after(self.settings.lease_sec * LOOK_PART):
            try:
                (entry,) = await store.get([EXPIRY(self.id)])
            except StoreError as error:
                self._outage.failed("renewal", error)
                return False
            if entry is None:
                self._ended = self._ended or "the store was not reached in time, and another process took its work back"
                level = logging.DEBUG if self._stopping.is_set() else logging.ERROR
                log.log(level, "lease %s has ended: %s", self.id.hex(), self._ended)
            elif entry.revision < self._expiry_revision:
                self._commits.history.is_rolled_back = True
                self._outage.failed("renewal", StoreRolledBack(ROLLED_BACK))
            else:
                self._expiry_revision = entry.revision
                if (began := self._unanswered.get(entry.value)) is not None:
                    self._renewed(began)
                else:  # reads are answered, and writes are not: another program keeps the file locked, say
                    self._outage.failed("renewal", StoreUnavailable("a renewal of the lease was not answered in time"))
            return False
        unanswered = StoreUnavailable("neither a renewal of the lease nor a look at it was answered in time")
        self._outage.failed("renewal", unanswered)
        return False

    def _is_stalled(self) -> bool:
        if self._beaten is None:
            return False
        self.blocked_sec = self._env.monotonic() - self._beaten
        if self.blocked_sec > self.settings.stall_sec:
            self._ended = f"the event loop was blocked for {self.blocked_sec:.0f} s, more than stall_sec"
            log.error("lease %s is given up: %s", self.id.hex(), self._ended)
            return True
        return False

    def _look_at_loop(self) -> None:
        """Log where the loop stands if it is blocked: once for each block."""
        beaten = self._beaten
        if (
            beaten is None
            or beaten == self._logged_beat
            or self._env.monotonic() - beaten <= min(self.settings.lease_sec / 3, BLOCKED_SEC)
        ):
            return
        frame = sys._current_frames().get(self._owner)
        if frame is None:
            return
        self._logged_beat = beaten
        blocked_sec, code = self._env.monotonic() - beaten, frame.f_code
        text = "the event loop has been blocked for %.1f s, at %s:%d in %s; the lease goes on"
        stack = "".join(traceback.format_stack(frame))
        log.warning(text, blocked_sec, code.co_filename, frame.f_lineno, code.co_qualname, extra={"detail": stack})

    def _lease_us(self) -> int:
        return int(self.settings.lease_sec * 1_000_000)


def ended(lease_id: bytes, expiry_revision: int, until: int) -> Batch:
    """Return the batch that ends another process's lease whose time has passed, by store time."""
    key = EXPIRY(lease_id)
    return Batch([(key, expiry_revision)], [(DEAD(lease_id), b"")], [LEASE(lease_id), key], Window(at_least=until + 1))
