"""The feed of one group of agents: finishes and the next take go out together, two turns in flight; it sleeps on the
store's wake-up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from typing import NamedTuple

import anyio
import attrs

from converge.contracts.store import Batch, Channel, Conflict, Take, Taken, Turned
from converge.env import Env
from converge.errors import ConvergeError, InputError, LeaseEnded, SchemaTooNew, StaleClaim, StoreError, TornRecord
from converge.ids import id_text
from converge.machines.pace import PAUSE_SEC, Pace
from converge.machines.task import Completed, Event, Failed, Found, Released
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.boundary import Boundary
from converge.runtime.agents.supervision import Supervision
from converge.runtime.claiming.lane_watch import LaneWatch
from converge.runtime.claiming.slots import OnClaimed, Slots, Why
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import LEASE_WAS_LOST, Claims, settle_takes, turn
from converge.services.tasks.finish import Finishes

log = logging.getLogger("converge.feed")

PUMPS = 2
"""Turns in flight: the store works on one while Python runs the handlers of the other."""

GATHER_SEC = 0.01
"""How long finishes may wait for others while claims are queued here: handlers that hold the loop for long must not
keep back what has ended.
"""

REFUSALS = 3
"""Takes in a row that may be refused, though what they check was read again, before the next one waits."""

BACKOFF_LEAST_SEC, BACKOFF_GREATEST_SEC = 0.05, 2.0
"""Waits between calls to a store that does not answer: claims resume within the greater of its return."""


class Observers(NamedTuple):
    """Called for attempts: when one begins, and when one has ended and the store knows. None: nobody, which costs
    nothing.
    """

    claimed: OnClaimed | None = None
    finished: Callable[[Found, Event], None] | None = None


NO_OBSERVERS = Observers()


@attrs.frozen(kw_only=True)
class Basis:
    """What all feeds of a node stand on."""

    handle: StoreHandle
    env: Env
    boundary: Boundary
    poll_sec: float
    observers: Observers = NO_OBSERVERS


class Feed:
    """Claims for a group's free slots, and ends what they have finished."""

    def __init__(self, basis: Basis, claims: Claims, supervision: Supervision | None = None) -> None:
        boundary, observers = basis.boundary, basis.observers
        self._handle, self._claims, self._env = basis.handle, claims, basis.env
        self._background, self._poll_sec, self._observers = boundary.background, basis.poll_sec, observers
        self.slots = Slots(basis.env, boundary, self._on_finished, self._on_all_begun, observers.claimed, supervision)
        self._finishes = Finishes(basis.handle)
        self._finished: list[tuple[Found, Event]] = []
        self._wanted = 0  # slots that a take under way will fill
        self._refusals = 0  # takes in a row whose checks failed
        self._event, self._is_signalled = anyio.Event(), False
        self._watch = LaneWatch(basis.handle, boundary.background, basis.poll_sec, self._on_wake_up)
        self._pace = Pace()
        self._wakes: set[Channel] = set()  # to be told with the next call
        self._has_told: set[Channel] = set()  # lanes for which another process was woken since nothing was ready here
        self._must_look = True
        self._pass_on_at = inf  # when to pass on a wake-up that came while no slot was free
        self._is_assuming = False
        self._slow = 0
        self._pumping = 0
        self._sending = 0
        self._idle = anyio.Event()
        self._look_due = 0.0
        self._turned_at = 0.0
        self.is_draining = self.is_ended = False
        self.completed = 0
        self.failed = 0
        self.stale = 0
        self.error: str | None = None

    def add(self, agent: Agent, count: int | None = None) -> None:
        """Let the agent work too, in all of its slots or in so many."""
        self.slots.add(agent, count)
        self._wake()

    def remove(self, agent: Agent) -> int:
        """Let the agent begin nothing more; what waited for its slots goes back. Return how many
        removed slots are busy.
        """
        owed = self.slots.remove(agent)
        if self.slots.is_deserted:
            self._stop_hearing()
        self._give_back_excess()
        return owed

    def start(self) -> None:
        """Start claiming."""
        for _ in range(PUMPS):
            self._background.loop(self._run)

    async def _run(self) -> None:
        self._pumping += 1
        try:
            await self._pump()
        finally:
            self._pumping -= 1
            self._idle.set()

    def end(self) -> None:
        """Stop for good, after `drain`: no task of this feed is left."""
        self.is_ended = True
        self._stop_hearing()
        self._handle.outage.works(f"claims.{id(self)}")
        self._wake()

    @property
    def in_hand(self) -> int:
        """Claims held here: running, queued, or not yet acknowledged as finished."""
        return self.slots.busy + len(self._finished) + self._slow + self._sending

    @property
    def hears(self) -> bool:
        """Whether it listens for the store's wake-ups: not while nothing could be taken."""
        return self._watch.hears

    def hand_back(self) -> None:
        """Stop claiming, and release the claims that no worker has begun."""
        self.is_draining = True
        self._stop_hearing()
        self._give_back(self.slots.take_back())
        self._wake()

    def _give_back(self, claims: list[Found], why: str = "its agent rests, or has left the pool") -> None:
        why = "its process is stopping" if self.is_draining else why
        self._finished += [(found, Released("", why)) for found in claims]

    def _give_back_excess(self) -> None:
        """Release claims that there is no slot for: an agent has gone since the take left, and those that are here may
        be busy for long.
        """
        if self.slots.free < 0:
            self._give_back(self.slots.take_back(-self.slots.free))
            self._wake()

    async def drain(self) -> None:
        """Stop claiming; return when everything claimed has ended and the store knows."""
        self.is_draining = True
        while self.in_hand or self._wanted:
            if not self._pumping:
                await self._flush()  # handlers that were cancelled may still be ending
                if not self.in_hand:
                    return
            if self._idle.is_set():
                self._idle = (
                    anyio.Event()
                )  # not another one while somebody waits: a group that ends and a node that stops may both drain
            self._wake()
            await self._idle.wait()

    async def _flush(self) -> None:
        """Tell the store what is left here: the node's block was cancelled, and the pumps with it."""
        while self._finished:
            finished, self._finished = self._finished, []
            self._sending += len(finished)
            try:
                await self._send(finished, None)
            except ConvergeError as error:
                self._failed(error)
                await anyio.sleep(BACKOFF_LEAST_SEC)
            finally:
                self._sending -= len(finished)

    def _failed(self, error: ConvergeError) -> None:
        if isinstance(error, StoreError):
            self._handle.outage.failed(f"claims.{id(self)}", error)
        elif self.error != str(error):
            log.warning("claiming waits: %s", error)
        self.error = str(error)
        self._must_look = True  # whatever was about to be looked at still must be

    def _on_finished(self, found: Found, event: Event | None) -> None:
        if event is not None:
            self._finished.append((found, event))
        if self.is_draining:
            self._idle.set()
        if not self._pace.is_steady:
            self._pace.claim_ended()
        if not self._is_signalled and self._is_worth_a_turn():
            self._wake()

    def _on_all_begun(self) -> None:
        """What has ended waits for company no longer: the claims that have begun may take long."""
        if self._finished:
            self._wake()

    def _wake(self) -> None:
        if not self._is_signalled:
            self._is_signalled = True
            self._event.set()

    def _on_wake_up(self) -> None:
        self._must_look = True
        if self.slots.free <= 0 and self._pass_on_at == inf:
            self._pass_on_at = self._env.monotonic() + PAUSE_SEC  # by then a quick task has ended
        self._wake()

    async def _pump(self) -> None:
        backoff_sec = BACKOFF_LEAST_SEC
        while not self.is_ended or self.in_hand:
            try:
                if await self._turn():
                    backoff_sec = BACKOFF_LEAST_SEC
                    if self.error is not None:
                        self.error = None
                        self._handle.outage.works(f"claims.{id(self)}")
                    continue
            except LeaseEnded as error:
                # The node's watchdog cancels the handlers, and has another lease opened: its own task, so that the
                # store cannot keep it waiting.
                self.error = str(error)
                self._must_look = True
                await anyio.sleep(min(self._poll_sec, BACKOFF_GREATEST_SEC))
                continue
            except ConvergeError as error:
                self._failed(error)
                await anyio.sleep(backoff_sec * self._env.uniform(0.5, 1.0))
                backoff_sec = min(backoff_sec * 2, BACKOFF_GREATEST_SEC)
                continue
            if self.error is not None:
                self.error = None
                self._handle.outage.works(f"claims.{id(self)}")
            await self._wait()

    async def _wait(self) -> None:
        """Wait for a signal, for the end of a pause between takes, or for the poll interval to pass."""
        due = self._pace.due
        pause_sec = min(self._pass_on_at, due if due > self._turned_at else inf) - self._env.monotonic()
        is_pausing = pause_sec < self._poll_sec
        wait_sec = max(0.0, pause_sec) if is_pausing else self._poll_sec * self._env.uniform(0.75, 1.25)
        with anyio.move_on_after(wait_sec) as scope:
            await self._event.wait()
        if self._is_signalled:
            self._event, self._is_signalled = anyio.Event(), False
        if scope.cancelled_caught and not is_pausing:
            self._must_look = True
            if self.slots.free <= 0:
                self._stop_hearing()

    async def _turn(self) -> bool:
        """Do one turn; tell whether there was anything to do."""
        if self._pass_on_at <= self._env.monotonic():
            await self._pass_on()
        if not self._wakes and not self._is_worth_a_turn():
            return False
        self._turned_at = self._env.monotonic()
        try:
            take = await self._next_take()
        except ConvergeError:  # whatever keeps it from claiming keeps nothing from ending
            finished, self._finished = self._finished, []
            await self._send_counted(finished, None)
            raise
        finished, self._finished = self._finished, []
        if take is None and not finished and not self._wakes:
            return False
        await self._send_counted(finished, take)
        return True

    async def _send_counted(self, finished: list[tuple[Found, Event]], take: Take | None) -> None:
        limit = take.limit if take is not None else 0
        self._wanted += limit
        self._sending += len(finished)
        taken = 0
        try:
            taken = await self._send(finished, take)
        finally:
            self._wanted -= limit
            self._sending -= len(finished)
            self._idle.set()
            if take is not None:
                self._took(limit, taken)

    def _took(self, asked: int, taken: int) -> None:
        """Set the pace by what a take brought, and have another process woken for what is left behind."""
        now = self._env.monotonic()
        if not self._claims.has_ready:
            self._has_told.clear()
            self._pace.found_nothing(now)
        elif taken >= asked and (not self._pace.is_steady or self.slots.free <= self._wanted):
            self._tell_others()
        self._pace.came_back(asked, taken, now)

    def _tell_others(self) -> None:
        """Wake another process for each lane that has something left; once, until nothing was ready here."""
        channels = self._claims.ready_channels - self._has_told
        if channels:
            self._wakes |= channels
            self._has_told |= channels
            self._wake()

    def _is_worth_a_turn(self) -> bool:
        """While claims here still wait for their workers, let half of the slots come free first: a turn of one task
        costs as much as one of ten.
        """
        slots = self.slots
        count = len(slots.slots)
        return (
            not slots.queued
            or 2 * (count - slots.busy - self._wanted) >= count
            or self._env.monotonic() - self._turned_at >= GATHER_SEC
        )

    async def _next_take(self) -> Take | None:
        if self.is_draining or self.slots.free - self._wanted <= 0:
            return None
        if self._handle.unsettled:
            await settle_takes(self._handle)
        if self._claims.unread:
            await self._claims.put_unread_away()
        if self._must_look or self._turned_at >= self._look_due:
            await self._look_or_assume()
        # Counted only now: while this pump waited the other one may have taken, or the node may have begun to stop.
        free = self.slots.free - self._wanted
        if free <= 0 or self._is_stopping():
            return None
        now = self._env.monotonic()
        if not self._claims.has_ready:
            self._pace.found_nothing(now)
            self._watch.watch(self._claims.channels)  # its first answer has this feed look again
            return None
        limit = self._pace.wanted(free, now)
        if limit <= 0:
            return None
        take = None
        self._pace.left(now)
        try:
            take = await self._claims.take(limit, self._env.entropy(16))
        finally:
            if take is None:
                self._pace.came_back(limit, 0, now)
        return take

    async def _look_or_assume(self) -> None:
        """After a wake-up look at what is known first, in the take itself; read pools and lanes again each poll
        interval, or if that was empty.
        """
        self._must_look = False
        now = self._env.monotonic()
        if now < self._look_due and not self._is_assuming and self._claims.assume_ready():
            self._is_assuming = True
            return
        self._is_assuming = False
        self._look_due = now + self._poll_sec
        try:
            await self._claims.look()
        except (TornRecord, SchemaTooNew):
            return  # it was logged; there is nothing to claim from a pool that cannot be read
        if self._watch.hears and not self.is_draining:
            self._watch.watch(self._claims.channels)

    def _is_stopping(self) -> bool:
        return self.is_draining

    async def _send(self, finished: list[tuple[Found, Event]], take: Take | None) -> int:
        """Make one call of the store; return how many tasks its take took."""
        try:
            batches, sent, slow, wake = await self._plan(finished)
            if self._wakes:
                wake |= self._wakes
                self._wakes.clear()
                await self._leave_sleepers()
            turned = (
                await turn(self._handle, batches, take, wake=wake, are_apart=_are_apart(finished))
                if batches or wake or take is not None
                else Turned((), None)
            )
        except StoreError as error:
            if isinstance(error.__cause__, InputError):
                await self._finish_slowly(finished)
                return 0
            self._finished += finished  # to say them again is safe
            raise
        except anyio.get_cancelled_exc_class():
            self._finished += finished
            raise
        except InputError:
            await self._finish_slowly(finished)  # one of them cannot be stored: each by itself, and that one fails
            return 0
        self._take_in(turned, take)
        slow += self._check_outcomes(sent, turned)
        await self._finish_slowly(slow)
        if self._claims.unread:
            await self._claims.put_unread_away()
        if take is not None and isinstance(turned.taken, Conflict):
            await self._claims.refused(turned.taken)
            self._refusals += 1
            if self._refusals > REFUSALS:  # what was read again explains nothing, or moves all the time
                await anyio.sleep(min(BACKOFF_GREATEST_SEC, 0.001 * 2 ** min(self._refusals - REFUSALS, 11)))
        elif take is not None:
            self._refusals = 0
        return len(turned.taken.rests) if isinstance(turned.taken, Taken) else 0

    async def _plan(
        self, finished: list[tuple[Found, Event]]
    ) -> tuple[list[Batch], list[tuple[Found, Event]], list[tuple[Found, Event]], set[Channel]]:
        batches: list[Batch] = []
        sent: list[tuple[Found, Event]] = []
        slow: list[tuple[Found, Event]] = []
        wake: set[Channel] = set()
        now = await self._handle.now() if finished else 0
        for one in finished:
            planned = self._finishes.plan(*one, now)
            if planned is None:
                slow.append(one)
            else:
                batches.append(planned[0])
                wake.add(planned[1])
                sent.append(one)
        wake.discard("")
        return batches, sent, slow, wake

    def _take_in(self, turned: Turned, take: Take | None) -> None:
        taken = turned.taken
        if take is None or not isinstance(taken, Taken):
            return
        claims = self._claims.taken(take, taken)
        if claims and (self.is_draining or not self._handle.may_act_under(take.to[1])):
            # Also where the lease was lost meanwhile: handlers would work under claims that are about to go back.
            self._give_back(claims, LEASE_WAS_LOST)
            self._wake()
        elif claims:
            self._is_assuming = False
            self.slots.give(claims)
            self._give_back_excess()
        elif self._is_assuming:
            self._must_look = True  # the wake-up was for a lane that is not known yet: look
            self._wake()

    def _check_outcomes(self, sent: list[tuple[Found, Event]], turned: Turned) -> list[tuple[Found, Event]]:
        """Count what ended; return what met a conflict, to be looked at one by one."""
        slow: list[tuple[Found, Event]] = []
        if self._observers.finished is None and Conflict not in set(map(type, turned.outcomes)):
            kinds = [type(event) for _, event in sent]
            self.completed += kinds.count(Completed)
            self.failed += kinds.count(Failed)
            return slow
        for (found, event), outcome in zip(sent, turned.outcomes, strict=True):
            if isinstance(outcome, Conflict):
                slow.append((found, event))
            else:
                self._count(found, event)
        return slow

    async def _finish_slowly(self, slow: list[tuple[Found, Event]]) -> None:
        """End what could not go out with the turn, in few calls; what cannot be stored as it is ends as failed."""
        if not slow:
            return
        self._slow += len(slow)
        try:
            answers = await self._finishes.finish_all(slow)
        except BaseException:
            self._finished += slow  # to say them again is safe
            raise
        finally:
            self._slow -= len(slow)
        failed: StoreError | None = None
        for (found, event), error in zip(slow, answers, strict=True):
            if error is None:
                self._count(found, event)
            elif isinstance(error, StaleClaim):
                self.stale += 1
                log.warning("%s", error)
            elif isinstance(error, TornRecord | SchemaTooNew):
                self._claims.put_away_later(found, error)  # it alone, for good: no outage of the store
            elif isinstance(error, StoreError):
                self._finished.append((found, event))
                failed = failed or error
            else:
                log.error("task %s could not be ended: %s", id_text(found.id), error)
                if isinstance(event, Completed):  # its result cannot be stored; that it failed can
                    self._finished.append((found, Failed(f"{type(error).__name__}: {error}", event.by)))
        if failed is not None:
            raise failed

    def _count(self, found: Found, event: Event) -> None:
        if isinstance(event, Completed):
            self.completed += 1
        elif isinstance(event, Failed):
            self.failed += 1
        if self._observers.finished is not None:
            self._observers.finished(found, event)

    def _stop_hearing(self) -> None:
        """Hear of nothing while nothing can be taken, then look again."""
        self._watch.leave()
        self._must_look, self._look_due = True, 0.0

    async def _leave_sleepers(self) -> None:
        """Hear of nothing before others are woken: a wake-up that comes back here would be lost to them."""
        if self._watch.hears:
            self._stop_hearing()
        await self._watch.left()

    async def _pass_on(self) -> None:
        """Tell others of what is ready: the wake-up that came here found no free slot."""
        self._pass_on_at = inf
        if self.slots.free > 0 or self.is_draining:
            return
        await self._claims.look()
        self._has_told.clear()
        self._tell_others()

    def lost(self) -> None:
        """The lease is gone, and with it every claim but those that have ended: these are still told to the store,
        which knows whether they count.
        """
        self.slots.take_back()
        self.slots.cancel(Why.LEASE_LOST)


def _are_apart(finished: list[tuple[Found, Event]]) -> bool:
    """Return whether these are finishes of different tasks: one whose outcome is unknown may meet the next attempt's,
    under another lease.
    """
    return len({found.id for found, _ in finished}) == len(finished)
