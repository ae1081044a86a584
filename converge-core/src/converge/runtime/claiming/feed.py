"""The feed of one group of agents: finishes and the next take go out together, two turns in flight; it sleeps on the
store's wake-up. `pace` says when it takes, and how much.
"""

from __future__ import annotations

import logging
from math import inf

import anyio
import attrs

from converge.contracts.store import Conflict, Take, Taken, Turned
from converge.env import Env
from converge.errors import ConvergeError, InputError, LeaseEnded, StoreError
from converge.machines.events import Event
from converge.model.place import Found
from converge.runtime.agents.boundary import Boundary
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.supervision import Supervision
from converge.runtime.claiming.ahead import ClaimsAhead
from converge.runtime.claiming.budget import Budget
from converge.runtime.claiming.finishing import Ended, Finishing
from converge.runtime.claiming.handing_back import HandBack
from converge.runtime.claiming.lane_watch import LaneWatch
from converge.runtime.claiming.looking import JITTER, Looking
from converge.runtime.claiming.observers import NO_OBSERVERS, Observers
from converge.runtime.claiming.slots import Slots, Why
from converge.runtime.claiming.taking import Taking
from converge.runtime.claiming.wakes import Wakes
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import LEASE_WAS_LOST, Claims, turn

log = logging.getLogger("converge.feed")

PUMPS = 2
"""Turns in flight: the store works on one while Python runs the handlers of the other."""

GATHER_SEC = 0.01
"""How long finishes may wait for others while claims are queued here: blocking handlers must not keep them back."""

STOPPING = "its process is stopping"

BACKOFF_LEAST_SEC, BACKOFF_GREATEST_SEC = 0.05, 2.0
"""Waits between calls to a store that does not answer: claims resume within the greater of its return."""


@attrs.frozen(kw_only=True)
class Basis:
    """What all feeds of a node share."""

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
        self._part = f"claims.{id(self)}"  # in the log of outages
        self._background, self._poll_sec = boundary.background, basis.poll_sec
        self.slots = Slots(basis.handle, boundary, self._on_finished, self._on_pause, observers.claimed, supervision)
        self.finishing = Finishing(basis.handle, claims, observers)
        self._event, self._is_signalled = anyio.Event(), False
        self.ahead = ClaimsAhead(basis.env, self.slots, is_remote=basis.handle.store.is_remote)
        self._budget = Budget(self.slots, self.ahead)
        self._pace = self._budget.pace
        self._hand_back = HandBack(self.slots, self.ahead, self.finishing, self._wake)
        self._wakes = Wakes(claims, basis.env)
        watch = LaneWatch(basis.handle, boundary.background, basis.poll_sec, self._on_wake_up)
        self._looking = Looking(claims, watch, basis.env, basis.poll_sec)
        self._taking = Taking(basis.handle, basis.env, claims, self._budget, self._looking, self._hand_back)
        self._pumping = 0
        self._idle = anyio.Event()
        self._turned_at = 0.0
        self.is_ended = False
        self.error: str | None = None

    def add(self, agent: Hosted, count: int | None = None) -> None:
        """Let the agent work too, in all of its slots or in so many."""
        self.slots.add(agent, count)
        self._wake()

    def remove(self, agent: Hosted) -> int:
        """Start nothing more for the agent; queued claims go back. Return how many removed slots are busy."""
        owed = self.slots.remove(agent)
        if self.slots.is_deserted:
            self._looking.stop_hearing()
        self._hand_back.release_excess(len(self.slots.slots), self._why_back)
        return owed

    def start(self) -> None:
        """Start claiming."""
        for _ in range(PUMPS):
            self._background.loop(self._run)

    async def _run(self) -> None:
        self._pumping += 1
        try:
            await self._pump()
        except Exception:  # which nothing expected: it runs again, and does what this one was about to
            self._looking.is_wanted = True
            self._pace.came_back(0, 0, self._env.monotonic())
            self.slots.wake_one()
            raise
        finally:
            self._pumping -= 1
            self._idle.set()

    def end(self) -> None:
        """Stop for good, after `drain`: no task of this feed is left."""
        self.is_ended = True
        self._looking.stop_hearing()
        self._handle.outage.works(self._part)
        self._wake()

    @property
    def in_hand(self) -> int:
        """Claims held here: running, queued, or not yet acknowledged as finished."""
        return self.slots.busy + self.finishing.in_hand

    @property
    def is_draining(self) -> bool:
        """Whether it claims nothing more."""
        return self._taking.is_over

    @property
    def hears(self) -> bool:
        """Whether it listens for the store's wake-ups: only while it could take something."""
        return self._looking.hears

    def hand_back(self) -> None:
        """Stop claiming, and release the claims that no worker has begun."""
        self._taking.is_over = True
        self._looking.stop_hearing()
        self._hand_back.release(self.slots.take_back(), STOPPING)

    @property
    def _why_back(self) -> str:
        return STOPPING if self.is_draining else "its agent rests, or has left the pool"

    async def drain(self) -> None:
        """Stop claiming; return when everything claimed has ended and the store knows."""
        self._taking.is_over = True
        while self.in_hand or self._budget.asked:
            if not self._pumping:
                await self._flush()  # handlers that were cancelled may still be ending
                if not self.in_hand:
                    return
            if self._idle.is_set():
                # Not another one while somebody waits: a group that ends and a node that stops may both drain.
                self._idle = anyio.Event()
            self._wake()
            await self._idle.wait()

    async def _flush(self) -> None:
        """Tell the store what is left here: the node's block was cancelled, and the pumps with it."""
        while self.finishing.waiting:
            try:
                await self._send_counted(None)
            except ConvergeError as error:
                self._failed(error)
                await anyio.sleep(BACKOFF_LEAST_SEC)

    def _failed(self, error: ConvergeError) -> None:
        if isinstance(error, StoreError):
            self._handle.outage.failed(self._part, error)
        elif self.error != str(error) and not isinstance(error, LeaseEnded):  # the watchdog has another one opened
            log.warning("claiming waits: %s", error)
        self.error = str(error)
        self._looking.is_wanted = True  # whatever was about to be looked at still must be

    def _on_finished(self, found: Found, event: Event | None) -> bool:
        """Note how a claim ended; return whether other tasks should run before the next one begins."""
        if event is not None:
            self.finishing.waiting.append((found, event))
        else:
            self.finishing.dropped(found)
        self.ahead.left((found,))
        if self._taking.is_over:
            self._idle.set()
        if not self._pace.is_steady:
            self._pace.claim_ended()
        if self._is_signalled or not self._budget.is_worth_a_turn():
            return False
        self._wake()
        return self.ahead.is_remote

    def _on_pause(self) -> None:
        """Send what has ended, which waits for company only a moment while others are queued: other tasks run now, or
        the claims that have begun may take long.
        """
        if self.finishing.waiting and (not self.slots.queued or self._env.monotonic() - self._turned_at >= GATHER_SEC):
            self._wake()

    def call_off(self, ids: set[bytes]) -> None:
        """End the claims of these tasks, which were cancelled: the store knows."""
        self.slots.cancel(Why.CALLED_OFF, ids)
        self.ahead.left(self.slots.drop(ids))

    def _wake(self) -> None:
        if not self._is_signalled:
            self._is_signalled = True
            self._event.set()

    def _on_wake_up(self) -> None:
        self._looking.is_wanted = True
        if self.slots.free <= 0:
            self._wakes.come_too_early()
        self._wake()

    async def _pump(self) -> None:
        backoff_sec = BACKOFF_LEAST_SEC
        while not self.is_ended or self.in_hand:
            try:
                is_busy = await self._turn()
            except ConvergeError as error:
                self._failed(error)
                await anyio.sleep(backoff_sec * self._env.uniform(0.5, 1.0))
                backoff_sec = min(backoff_sec * 2, BACKOFF_GREATEST_SEC)
                continue
            if self.error is not None:
                self.error = None
                self._handle.outage.works(self._part)
            if is_busy:
                backoff_sec = BACKOFF_LEAST_SEC
            else:
                await self._wait()

    async def _wait(self) -> None:
        """Wait for a signal, for the end of a pause between takes, or for the poll interval to pass."""
        due = self._pace.due
        until = min(self._wakes.pass_on_at, self.ahead.late_at, due if due > self._turned_at else inf)
        pause_sec = until - self._env.monotonic()
        is_pausing = pause_sec < self._poll_sec
        wait_sec = max(0.0, pause_sec) if is_pausing else self._poll_sec * self._env.uniform(1 - JITTER, 1 + JITTER)
        with anyio.move_on_after(wait_sec) as scope:
            await self._event.wait()
        if self._is_signalled:
            self._event, self._is_signalled = anyio.Event(), False
        if scope.cancelled_caught and not is_pausing:
            self._looking.waited()
            if self.slots.free <= 0:
                self._looking.stop_hearing()

    async def _turn(self) -> bool:
        """Do one turn; return whether there was anything to do."""
        now = self._env.monotonic()
        if self._wakes.pass_on_at <= now:
            await self._pass_on()
        if self.ahead.late_at <= now:
            self._hand_back.undo(self.ahead.late())
        if not self._wakes.due and not self._budget.is_worth_a_turn() and now - self._turned_at < GATHER_SEC:
            return False
        self._turned_at = self._env.monotonic()
        try:
            take = await self._taking.next(self._turned_at)
        except ConvergeError:  # whatever keeps it from claiming keeps nothing from ending
            await self._send_counted(None)
            raise
        if take is None and not self.finishing.waiting and not self._wakes.due:
            return False
        await self._send_counted(take)
        return True

    async def _send_counted(self, take: Take | None) -> None:
        """Send what has ended, with the take."""
        limit = take.limit if take is not None else 0
        self._budget.asked += limit
        taken, ended = 0, list[Ended]()
        try:
            ended = self.finishing.remove_all()
            self.finishing.sending += len(ended)
            taken = await self._send(ended, take)
        finally:
            self._budget.asked -= limit
            self.finishing.sending -= len(ended)
            self._idle.set()
            if take is not None:
                self._took(limit, taken)

    def _took(self, asked: int, taken: int) -> None:
        """Set the pace by what a take brought, and have another process woken for what is left behind."""
        now = self._env.monotonic()
        if not self._claims.has_ready:
            self._wakes.found_nothing()
            self._pace.found_nothing(now)
        elif taken >= asked and self._budget.is_used_up and self._wakes.left_behind():
            self._wake()
        self._pace.came_back(asked, taken, now)

    async def _send(self, ended: list[Ended], take: Take | None) -> int:
        """Make one call of the store; return how many tasks its take took."""
        try:
            plan = await self.finishing.plan(ended)
            wake = plan.wake
            if self._wakes.due:
                wake |= self._wakes.send()
                await self._looking.leave_sleepers()
            turned = (
                await turn(self._handle, plan.batches, take, wake=wake, are_apart=plan.are_apart)
                if plan.batches or wake or take is not None
                else Turned((), None)
            )
        except BaseException as error:
            if not isinstance(error, InputError) and not isinstance(error.__cause__, InputError):
                self.finishing.waiting += ended  # to say them again is safe, whatever came of it
                raise
            await self.finishing.finish_slowly(ended)  # one cannot be stored: each by itself, and that one fails
            return 0
        taken = turned.taken
        try:
            if take is not None and isinstance(taken, Taken):
                self._handle.unsettled[take.tail[0]] = take.to[1]  # until they are in slots, or about to go back
                self._take_in(take, taken)
        finally:  # whatever becomes of what came, this is how the others ended
            await self.finishing.sent(plan, turned)
        if self._claims.unread:
            await self._claims.put_unread_away()
        if isinstance(taken, Conflict):
            await self._refused(taken)
        elif taken is not None:
            self._looking.accepted()
            return len(taken.rests)
        return 0

    async def _refused(self, conflict: Conflict) -> None:
        """Read again what made a take's checks fail."""
        await self._claims.refused(conflict)
        self._hand_back.undo_paused(self._claims.paused)
        await self._looking.pause()

    def _take_in(self, take: Take, taken: Taken) -> None:
        claims = self._claims.taken(take, taken)
        if claims:
            self.ahead.given(claims)
        if claims and (self.is_draining or not self._handle.may_act_under(take.to[1])):
            # Also where the lease was lost meanwhile: handlers would work under claims that are about to go back.
            self._hand_back.release(claims, STOPPING if self.is_draining else LEASE_WAS_LOST)
        elif claims:
            self.slots.give(claims)
        del self._handle.unsettled[take.tail[0]]
        if claims:
            self.slots.wake_one()
            self._hand_back.release_excess(self.ahead.most, self._why_back)
            self.ahead.expect_late()
        if self._looking.found(bool(claims)):
            self._wake()

    async def _pass_on(self) -> None:
        """Wake others for ready tasks: the wake-up that came here found no free slot."""
        self._wakes.pass_on_at = inf
        if self.slots.free <= 0 and not self.is_draining and await self._wakes.pass_on():
            self._wake()

    def lost(self) -> None:
        """Give up every claim but those that have ended, since the lease is gone: these are still told to the store,
        which knows whether they count.
        """
        self.ahead.left(self.slots.take_back())
        self.slots.cancel(Why.LEASE_LOST)
