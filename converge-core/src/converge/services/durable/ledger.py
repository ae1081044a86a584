"""The ledger of one attempt: what it has recorded and records, each write together with a check of its claim."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import anyio
import msgspec

from converge.codec import decode, encode
from converge.contracts.store import Batch, Channel, Check, Committed, Key, Put
from converge.errors import (
    NotApplied,
    OutcomeUnknown,
    SchemaTooNew,
    StaleClaim,
    StoreBusy,
    StoreError,
    TooManyRecords,
    ValueTooLarge,
)
from converge.ids import id_text
from converge.machines.durable import Step, held_key, marked
from converge.machines.events import Parked, Resumed
from converge.machines.task import digest
from converge.model.keys import KEPT, STATE, STEP
from converge.model.place import Found, Held
from converge.model.task import DURABLE, Ended, State
from converge.services.durable.limits import KNOWN_FROM, RECORD_BYTES, STEP_BYTES, STEPS, STEPS_BYTES
from converge.services.store.handle import StoreHandle
from converge.services.store.patience import attempts
from converge.services.tasks.surroundings import Seen, adopted, look

BEGIN_ANEW = "`task.restart(inputs)` begins anew without them"
"""What a task can do that has recorded too much."""

NO_PUTS: Sequence[Put] = ()

T = TypeVar("T")


class Known(NamedTuple):
    """What an attempt knew that has parked its task: the next one need not read it, if no other came in between.

    Attributes:
        nonce, token, restarts: As the task's state has them after that attempt.
        digests: Those of its end: parked, or resumed in the same moment.
        steps, bytes, ended: As of a ledger.
    """

    nonce: str
    token: int
    restarts: int
    digests: tuple[str, str]
    steps: dict[str, Step]
    bytes: int
    ended: dict[str, Ended]

    def is_of(self, state: State) -> bool:
        """Return whether nobody has recorded anything since: each attempt that begins leaves its own end in the state,
        also one whose process dies.
        """
        same = (self.nonce, self.token, self.restarts) == (state.nonce, state.token, state.restarts)
        return same and not state.attempts and state.digest in self.digests


class Ledger:
    """What one attempt records. `found` is its claim, with the state as the attempt has changed it."""

    def __init__(self, handle: StoreHandle, found: Found) -> None:
        assert isinstance(found.place, Held), "only a claim records anything"
        self.handle, self.found = handle, found
        self.token = found.place.token
        self.steps: dict[str, Step] = {}
        self.ended: dict[str, Ended] = {}
        """The children that are known to have ended, by their ids."""
        self._bytes = 0
        self._unsure = 0  # writes that are under way, or of which nobody knows whether they were applied
        self._lock = anyio.Lock()
        self._is_loaded = found.state is None or found.state.v < DURABLE  # nothing was ever recorded
        self._is_marked = not self._is_loaded
        self.newer: SchemaTooNew | None = None
        """Why this process cannot go on with the attempt: a newer release has recorded something."""
        known = handle.recent.take(found.id)
        if isinstance(known, Known) and found.state is not None and known.is_of(found.state):
            self.steps, self._bytes, self.ended, self._is_loaded = known.steps, known.bytes, known.ended, True

    @property
    def id(self) -> bytes:
        """The task's id."""
        return self.found.id

    @property
    def restarts(self) -> int:
        """How often the task was restarted."""
        return self.found.state.restarts if self.found.state is not None else 0

    def key(self, label: str) -> Key:
        """Return the key of a step."""
        return STEP(self.id, self.restarts, label)

    async def recorded(self, label: str) -> Step | None:
        """Return what stands of a step, by this attempt or an earlier one.

        Raises:
            TornRecord, SchemaTooNew: It cannot be read.
            StoreError: As `Store.scan`.
        """
        if not self._is_loaded:
            async with self._lock:
                if not self._is_loaded:
                    with self.reading():
                        await self._load()
        return self.steps.get(label)

    async def _load(self) -> None:
        text = f"step of task {id_text(self.id)}"
        for entry in await self.patiently(lambda: self.handle.reads.all(STEP(self.id, self.restarts))):
            self.steps[entry.key[3]] = decode(entry.value, Step, text)
            self._bytes += len(entry.value)
        self._is_loaded = True

    def keep(self, event: Parked) -> None:
        """Keep what is known of the task for its next attempt, which this process may run, too: without it, an attempt
        that parks for each of many records reads all of them each time.
        """
        if not self._is_loaded or self._unsure or self.newer is not None or not isinstance(self.found.place, Held):
            return
        for key, value in event.puts:
            if key[0] is STEP:
                self.steps[key[3]] = decode(value, Step, f"step of task {id_text(self.id)}")
                self._bytes += len(value)
        if len(self.steps) < KNOWN_FROM:
            return
        place, digests = self.found.place, (digest(event), digest(Resumed(event.puts)))
        known = Known(place.nonce.hex(), place.token, self.restarts, digests, self.steps, self._bytes, self.ended)
        results = sum(len(ended.result) + len(ended.error) for ended in self.ended.values())
        records = len(self.steps) + len(self.ended)
        self.handle.recent.put(self.id, known, self._bytes + results + records * RECORD_BYTES)

    async def look(self, names: Sequence[str], *, counts: bool = False) -> Seen:
        """Read what has arrived for the task. See `waits.look`."""
        with self.reading():
            return await self.patiently(lambda: look(self.handle.reads, self.id, names, counts=counts))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Note a record that only a newer release can read: the attempt must not fail because of it."""
        try:
            yield
        except SchemaTooNew as error:
            self.newer = error
            raise

    async def patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Return what the read returns, trying again while the store is away: an attempt that outlives that when it
        writes must not fail when it reads.

        Raises:
            StoreError: The store was away for longer than the lease lasts.
        """
        failed: StoreError | None = None
        async for _ in attempts(self.handle.env, self.handle.lease_settings.lease_sec):
            try:
                return await read()
            except (NotApplied, OutcomeUnknown) as error:
                failed = error
        raise failed or StoreBusy(f"task {id_text(self.id)}: it could not be read")

    def check_room(self) -> None:
        """Refuse a step for which there is no room.

        Raises:
            TooManyRecords: The task has recorded as much as it may.
        """
        if len(self.steps) >= STEPS:
            raise TooManyRecords(f"task {id_text(self.id)} has {STEPS:,} steps, the limit; {BEGIN_ANEW}")
        if self._bytes >= STEPS_BYTES:
            raise TooManyRecords(f"task {id_text(self.id)} has {STEPS_BYTES:,} bytes of steps, the limit; {BEGIN_ANEW}")

    async def step(self, result: bytes = b"null", *, is_signal: bool = False, **more: object) -> Step:
        """Return the record of a step that ends now. That of a wait holds a signal, which was accepted when it came,
        and its name.

        Raises:
            ValueTooLarge: Its result is too long.
        """
        if len(result) > STEP_BYTES and not is_signal:
            raise ValueTooLarge("the result of a step", len(result), STEP_BYTES)
        fields = {"number": len(self.steps), "at": await self.handle.now(), "token": self.token}
        return Step(**(fields | {"result": msgspec.Raw(result)} | more))  # type: ignore[arg-type]  # named by callers

    async def record(
        self,
        label: str,
        step: Step,
        puts: Sequence[Put] = NO_PUTS,
        *,
        deletes: Sequence[Key] = (),
        checks: Sequence[Check] = (),
        wake: Collection[Channel] = (),
        change: Callable[[State], State] | None = None,
    ) -> bool:
        """Record a step, with whatever else goes with it; return False where one of the checks did not hold.

        Raises: As `write`.
        """
        value = encode(step)
        key = self.key(label)
        if not await self.write([(key, value), *puts], deletes, checks, wake=wake, mark=key, change=change):
            return False
        self._bytes += len(value)
        self.steps[label] = step
        return True

    async def write(
        self,
        puts: Sequence[Put],
        deletes: Sequence[Key] = (),
        checks: Sequence[Check] = (),
        *,
        wake: Collection[Channel] = (),
        mark: Key | None = None,
        change: Callable[[State], State] | None = None,
    ) -> bool:
        """Write under the claim; return False where one of the checks did not hold, and nothing was written.

        Args:
            puts, deletes, checks, wake: As of a batch.
            mark: A key among those put by which an answer that was lost is found out.
            change: Returns the task's state from now on.

        Raises:
            StaleClaim: The claim is not current; nothing was written.
            StoreError: The store was away for longer than the lease lasts.
        """
        self.handle.recent.take(self.id)  # what a handler has left running may still write before the task is parked
        self._unsure += 1
        written = None
        while written is None:  # the claim stands elsewhere now
            if self._is_marked and change is None:
                written = await self._write(puts, deletes, checks, wake, mark)
                continue
            async with self._lock:
                if self._is_marked and change is None:
                    continue
                await self.patiently(lambda: self.handle.require_format(DURABLE))
                state = marked(self.found) if change is None else change(marked(self.found))
                more: list[Put] = [(KEPT(self.id), b""), (STATE(self.id), encode(state))]
                written = await self._write([*puts, *more], deletes, checks, wake, mark or STATE(self.id))
                if written:
                    self.found = msgspec.structs.replace(self.found, state=state)
                    self._is_marked = True
        self._unsure -= 1
        return written

    async def _write(
        self,
        puts: Sequence[Put],
        deletes: Sequence[Key],
        checks: Sequence[Check],
        wake: Collection[Channel],
        mark: Key | None,
    ) -> bool | None:
        """Write once, trying again while the store is away; None: the claim stands elsewhere, nothing was written."""
        failed: StoreError | None = None
        is_unknown = False
        async for _ in attempts(self.handle.env, self.handle.lease_settings.lease_sec):
            own = held_key(self.found)
            batch = Batch([own, *checks], puts, deletes)
            try:
                (outcome,) = await (await self.handle.commits()).commit([batch], wake=wake)
                if isinstance(outcome, Committed) or (is_unknown and await self._is_there(puts, mark)):
                    return True
                if own[0] not in outcome.keys:
                    return False
                found = await adopted(self.handle, self.found)
            except (OutcomeUnknown, NotApplied) as error:
                is_unknown = is_unknown or isinstance(error, OutcomeUnknown)
                failed = error if failed is None or isinstance(error, OutcomeUnknown) else failed
                continue
            if found is None:
                raise StaleClaim(id_text(self.id), token=self.token)
            self.found = found
            return None
        raise failed or StoreBusy(f"task {id_text(self.id)}: what it records was refused again and again")

    async def _is_there(self, puts: Sequence[Put], mark: Key | None) -> bool:
        """Return whether a write whose answer was lost was applied: its mark then has the value that was put."""
        key = mark if mark is not None else puts[0][0] if puts else None
        if key is None:
            return False
        (entry,) = await self.handle.store.get([key])
        return entry is not None and (key, entry.value) in puts
