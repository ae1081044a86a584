"""The coalescer: what one loop step asks of the store goes out in one call, with the feed's take where there is one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from math import inf

import anyio
from anyio import lowlevel

from converge.contracts.store import Batch, Channel, Check, Committed, Conflict, Store, Take, Taken, Turned
from converge.env import SYSTEM, Env
from converge.errors import (
    ConvergeError,
    InputError,
    NotApplied,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreRolledBack,
    StoreUnavailable,
)
from converge.model.batch import grows
from converge.services.store import epoch as epochs
from converge.services.store.detached import Running, detached
from converge.services.store.grouping import fits, split
from converge.services.store.history import ROLLED_BACK, History
from converge.services.store.limits import LIMIT, Home

IN_FLIGHT = 2
"""Calls under way at a time: the store works on one while Python prepares the next; a third gained nothing."""

ACCEPT_LOOK_SEC = 0.2
"""Between looks for an operator's accept of another history: callers try again and again meanwhile."""

_Result = Committed | Conflict | ConvergeError


class _Asked:
    """Batches of one caller, on their way."""

    __slots__ = ("are_apart", "batches", "done", "error", "outcomes", "wake")

    def __init__(self, batches: Sequence[Batch], wake: Collection[Channel], are_apart: bool) -> None:
        self.batches, self.wake, self.are_apart = batches, wake, are_apart
        self.done: anyio.Event | None = None
        self.outcomes: Sequence[Committed | Conflict] | None = None
        self.error: BaseException | None = None

    @property
    def is_answered(self) -> bool:
        return self.outcomes is not None or self.error is not None

    def tell(self) -> None:
        if self.done is not None:
            self.done.set()


class Commits:
    """Groups the commits of many callers; adds the check of the store's epoch to every batch (G15).

    A call is shielded from cancellation once it is on its way: its outcome is then known to the callers that were not
    cancelled. `hurry` bounds that.
    """

    def __init__(
        self,
        store: Store,
        epoch: Check,
        env: Env = SYSTEM,
        on_accepted: Callable[[], None] = lambda: None,
        *,
        on_wake: Callable[[Collection[Channel]], None] = lambda _: None,
        call_sec: float = inf,
    ) -> None:
        """Make the coalescer; `on_accepted` is called when the process goes on with another history: nothing that it
        knew of the store need be true; `on_wake` with the channels of each call that was applied. `call_sec`: how long
        a call may take.
        """
        self._store, self._env, self._on_accepted, self._home = store, env, on_accepted, Home()
        self._on_wake = on_wake
        self.history = History(epoch)
        self._asked: list[_Asked] = []
        self._is_flush_due = False
        # A store in this process may never wait: then this is where other tasks run, and join.
        self._slots = anyio.Semaphore(IN_FLIGHT, fast_acquire=store.is_remote)
        # Of the calls under way, with the moment at which each began.
        self._shields: dict[anyio.CancelScope, float] = {}
        self._patience_sec = self._call_sec = call_sec
        self._is_watched = False  # somebody ends late calls, so that each need not have a timer of its own
        self._detached: Running = set()  # calls that several callers share
        self._good_at = env.monotonic()  # when the history was last seen to be whole
        self._looked_at = -inf

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = (), are_apart: bool = False
    ) -> Sequence[Committed | Conflict]:
        """Commit as `Store.commit`, but batches may touch each other's keys: such ones go out in separate calls.

        Checks that are a list get the epoch's added in place.

        Args:
            are_apart: The caller has made sure that no batch writes a key that another one reads or writes.

        Raises:
            StoreRolledBack: The store's epoch is not the one that this process saw, or its revisions fell back.
            ValueTooLarge: Nothing of the caller's was written.
            StoreError: As `Store.commit`, of the caller's own batches.
        """
        self._home.check()
        if not batches:
            return []
        asked = _Asked(batches, wake, are_apart)
        # Its caller's time ends by itself, and others' calls must not end with it; or there is nobody to wait for.
        if LIMIT.get() is not None or (self._store.is_remote and not self._shields and not self._asked):
            async with self._slots:
                await self._send([asked], None)
        else:
            self._asked.append(asked)
        try:
            while not asked.is_answered:
                if not self._is_flush_due and asked in self._asked:
                    await self._lead()
                else:  # another one leads, or a turn has taken it along
                    asked.done = anyio.Event()
                    await asked.done.wait()
        except BaseException:
            if asked in self._asked:  # or it would go out with a later call, whatever its caller has read meanwhile
                self._asked.remove(asked)
            raise
        if asked.error is not None:
            raise asked.error
        assert asked.outcomes is not None, "a caller that was answered without an error has its outcomes"
        return asked.outcomes

    async def turn(
        self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = (), are_apart: bool = False
    ) -> Turned:
        """Commit and take as `Store.turn` does; what others asked in this loop step rides along. `are_apart`, as in
        `commit`: from the take too.

        Raises: As `commit`.
        """
        self._home.check()
        own = _Asked(batches, wake, are_apart)
        async with self._slots:
            asked = [own, *self._asked]
            self._asked = []
            taken = await self._send(asked, take)
        if own.error is not None:
            raise own.error
        return Turned(own.outcomes or (), taken)

    @property
    def is_rolled_back(self) -> bool:
        """Whether the store's history was found to be another one."""
        return self.history.is_rolled_back

    @property
    def asked_since(self) -> float | None:
        """Since when the oldest call under way waits (monotonic seconds); may be asked from any thread."""
        return min(tuple(self._shields.values()), default=None)

    @property
    def answered_at(self) -> float:
        """When a write was last answered as it should be (monotonic seconds)."""
        return self._good_at

    def end_late_calls(self, *, is_last: bool = False) -> None:
        """End the calls that have lasted for `call_sec`. Until it is the last time, calls need no timers."""
        if self._patience_sec < self._call_sec:
            return  # it hurries, and each call has a timer
        self._is_watched = not is_last
        now, loop_now = self._env.monotonic(), anyio.current_time()
        for scope, began in self._shields.items():
            if is_last or now - began >= self._call_sec:
                scope.deadline = min(scope.deadline, loop_now + max(0.0, began + self._call_sec - now))

    def hurry(self, within_sec: float) -> None:
        """Bound every call from now on, for a process that stops: one that takes longer counts as unknown. `inf` ends
        that.
        """
        self._patience_sec, self._is_watched = min(self._call_sec, within_sec), False
        for scope in self._shields:
            scope.deadline = min(scope.deadline, anyio.current_time() + within_sec)

    async def _lead(self) -> None:
        """Send what is asked; whoever else asks in this loop step joins."""
        self._is_flush_due = True
        try:
            with anyio.CancelScope(shield=True):
                await lowlevel.checkpoint()
                async with self._slots:
                    self._is_flush_due = False
                    asked, self._asked = self._asked, []
                    if asked:  # else a turn took them along
                        await self._send(asked, None)
        except BaseException:
            # Cancelled past the shield, as plain asyncio can: one of those that are still to be sent leads instead.
            self._is_flush_due = False
            for one in self._asked:
                one.tell()
            raise

    async def _send(self, asked: list[_Asked], take: Take | None) -> Taken | Conflict | None:
        """Make the call, and give each caller its own answer; return the take's, which is the first caller's."""
        if len(asked) == 1 or self._store.is_immediate:
            return await self._send_all(asked, take)
        return await detached(partial(self._send_all, asked, take), self._detached)

    async def _send_all(self, asked: list[_Asked], take: Take | None) -> Taken | Conflict | None:
        are_apart = len(asked) == 1 and asked[0].are_apart
        batches = asked[0].batches if len(asked) == 1 else [batch for one in asked for batch in one.batches]
        wake = {channel for one in asked for channel in one.wake}
        try:
            results, taken = await self._call(batches, take, wake, are_apart)
            self._on_wake(wake)
            at = 0
            for one in asked:
                mine = results if len(asked) == 1 else results[at : at + len(one.batches)]
                at += len(one.batches)
                one.error = _error_of([*mine, taken] if take is not None and one is asked[0] else mine)
                if one.error is None:
                    one.outcomes = mine  # type: ignore[assignment]  # there is no error among them
        except BaseException as error:
            for one in asked:
                one.error = (
                    error
                    if one is asked[0] or isinstance(error, Exception)
                    else OutcomeUnknown(
                        "the call that it went out in was cancelled: it may have been applied; read before you retry"
                    )
                )
            raise
        finally:
            for one in asked:
                one.tell()
        return taken if not isinstance(taken, BaseException) else None

    async def _call(
        self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel], are_apart: bool
    ) -> tuple[list[_Result], Taken | Conflict | ConvergeError | None]:
        """Send the batches in as many calls as they need; a failure is the result of those whose call it was."""
        if self.history.is_rolled_back and not await self._is_accepted():
            rolled_back = StoreRolledBack(ROLLED_BACK)
            return [rolled_back] * len(batches), None if take is None else rolled_back
        groups = [] if (are_apart and fits(batches)) or (take is None and len(batches) == 1) else split(batches, take)
        if len(groups) <= 1:
            return await self._try(self._with_epoch(batches), take, wake)
        results: list[_Result | None] = [None] * len(batches)
        taken = None
        failed: StoreError | None = None
        for at, group in enumerate(groups):
            is_last = at == len(groups) - 1
            if failed is None:
                sent = self._with_epoch(batches[index] for index in group)
                answers, taken = await self._try(sent, take if is_last else None, wake if is_last else ())
                failed = next((one for one in (*answers, taken) if isinstance(one, StoreError)), None)
            else:
                lost = (
                    failed
                    if isinstance(failed, NotApplied)
                    else StoreUnavailable(f"it was not sent, since the call before it failed; try again: {failed}")
                )
                answers, taken = [lost] * len(group), lost if is_last and take is not None else None
            for index, answer in zip(group, answers, strict=True):
                results[index] = answer
        return [result for result in results if result is not None], taken

    async def _try(
        self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]
    ) -> tuple[list[_Result], Taken | Conflict | ConvergeError | None]:
        """Make one call of the store; its failure is the result of each batch, but for a value that is too large."""
        history = self.history
        floor, epoch = history.greatest, history.epoch
        try:
            outcomes, taken = await self._shielded(batches, take, wake)
        except InputError as error:
            if len(batches) == 1 and take is None:
                return [error], None
            if not batches:
                return [], error
            # Nothing was written. Each goes by itself now: what is wrong with one batch is not the others' trouble.
            answers = [(await self._try([batch], None, wake))[0][0] for batch in batches]
            return answers, None if take is None else (await self._try([], take, wake))[1]
        except StoreFull as error:
            room = [batch for batch in batches if not grows(batch)]
            if len(room) == len(batches) or not (room or take):
                return [error] * len(batches), None if take is None else error
            # Nothing was written. What may make room, and the take, go by themselves.
            some, took = await self._try(room, take, wake)
            rest = iter(some)
            return [error if grows(batch) else next(rest) for batch in batches], took
        except StoreError as error:
            if isinstance(error, StoreRolledBack) and epoch is history.epoch:
                history.is_rolled_back = True
            return [error] * len(batches), None if take is None else error
        if epoch is history.epoch:
            history.check([*outcomes, taken] if take is not None else outcomes, floor)
        # It went out before another history was accepted, and says nothing of that one.
        if history.is_rolled_back or epoch is not history.epoch:
            rolled_back = StoreRolledBack(ROLLED_BACK)
            return [rolled_back] * len(batches), None if take is None else rolled_back
        self._good_at = self._env.monotonic()
        return outcomes, taken

    async def _is_accepted(self) -> bool:
        """Return whether an operator has accepted the store since it was last good; then go on with its history."""
        now = self._env.monotonic()
        if now - self._looked_at < ACCEPT_LOOK_SEC:
            return False
        self._looked_at = now
        try:
            found, now_us = await epochs.read(self._store), await self._store.time()
            # However long that took: what was accepted while it was on its way counts.
            is_accepted = found.accepted_at > now_us - int((self._env.monotonic() - self._good_at) * 1_000_000)
        except StoreError:
            return False  # the next call looks again
        if is_accepted:
            self.history.begin_anew(found.revision)
            self._good_at = self._env.monotonic()
            self._on_accepted()
        return is_accepted

    async def _shielded(
        self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]
    ) -> tuple[list[_Result], Taken | Conflict | None]:
        limit = LIMIT.get()
        if self._store.is_immediate and limit is None:
            return await self._sent(batches, take, wake)
        deadline = inf if self._is_watched else anyio.current_time() + self._patience_sec
        if limit is not None:
            deadline, limit.is_written = min(deadline, limit.deadline), True
        with anyio.CancelScope(shield=True, deadline=deadline) as scope:
            self._shields[scope] = self._env.monotonic()
            try:
                return await self._sent(batches, take, wake)
            finally:
                del self._shields[scope]
        raise OutcomeUnknown(
            "the store did not answer in time (`call_sec`): this may have been applied; read before you retry"
        )

    async def _sent(
        self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]
    ) -> tuple[list[_Result], Taken | Conflict | None]:
        if take is None:
            return list(await self._store.commit(batches, wake=wake)), None
        turned = await self._store.turn(batches, take._replace(checks=(*take.checks, self.history.epoch)), wake=wake)
        return list(turned.outcomes), turned.taken

    def _with_epoch(self, batches: Iterable[Batch]) -> list[Batch]:
        epoch, sent = self.history.epoch, []
        key = epoch[0]
        for batch in batches:
            checks = batch[0]
            if type(checks) is not list:
                sent.append(batch._replace(checks=(*checks, epoch)))
                continue
            if not checks or checks[-1][0] != key:
                checks.append(epoch)
            else:  # it is sent again, perhaps after another epoch was accepted
                checks[-1] = epoch
            sent.append(batch)
        return sent


def _error_of(results: Sequence[_Result | Taken | None]) -> ConvergeError | None:
    """Return the error of a caller whose batches, and take, came to these; it says if only a part was applied."""
    if _NO_ERRORS.issuperset(map(type, results)):
        return None
    errors = [result for result in results if isinstance(result, ConvergeError)]
    if not errors:
        return None
    unknown = next((error for error in errors if not isinstance(error, NotApplied | InputError)), None)
    if unknown is not None or len(errors) == len(results):
        return unknown or errors[0]
    if not any(isinstance(result, Committed | Taken) for result in results):
        return errors[0]
    part = OutcomeUnknown(f"a part of the call was applied, then it failed; read before you retry: {errors[0]}")
    part.__cause__ = errors[0]
    return part


_NO_ERRORS = frozenset((Committed, Conflict, Taken, type(None)))
