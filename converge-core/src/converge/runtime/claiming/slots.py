"""Slots: persistent workers that run handlers. Starting a task for each task would cost more than most tasks."""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from itertools import islice

import anyio
from anyio.lowlevel import checkpoint

from converge.errors import ConvergeError
from converge.foreign import Raised, describe, is_cancellation, tell
from converge.ids import id_text
from converge.machines.attempt import outcome_of
from converge.machines.events import Completed, Event, Failed, Released
from converge.model.place import Found
from converge.model.task import Calling, Task
from converge.model.working import RUNS
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.boundary import CANCELLED, FROM_WITHIN, Boundary, Worker
from converge.runtime.agents.claimed import claimed_task
from converge.runtime.agents.context import TASK, begin
from converge.runtime.agents.decide import Reported
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.supervision import Supervision
from converge.runtime.attempts.desk import PARKED, Desk
from converge.runtime.claiming.virtual import task_handler_of
from converge.services.store.handle import StoreHandle
from converge.services.tasks.records import encode_result

log = logging.getLogger("converge.slots")

YIELD_SEC = 0.001
"""Handlers that never wait run one after another; after this long the worker lets the loop's other tasks run."""

ENDED_GREATEST = 1_000
"""Attempts that have ended, but whose timeout is still noted: taking each out of the heap would cost too much."""

OnClaimed = Callable[[Found, Task], None]
"""Called when an attempt begins."""


class Why(Enum):
    """Why a running handler is cancelled."""

    TIMEOUT = "timeout"
    CALLED_OFF = "called off"
    LEASE_LOST = "lease lost"
    PARKED = "parked"
    STOPPING = "stopping"


class Slot:
    """One place in which an agent works on one task at a time."""

    __slots__ = (
        "agent", "current", "desk", "handler", "is_gone", "is_owed", "parked", "scope", "started", "untold", "why"
    )  # fmt: skip

    def __init__(self, agent: Hosted, handle: StoreHandle) -> None:
        self.agent = agent
        self.desk = Desk(handle, agent, self._running, partial(self.cancel, Why.PARKED))
        self.handler = task_handler_of(agent)
        self.is_gone = False
        self.is_owed = False  # taken away while its handler ran: the agent has one slot less until that has ended
        self.parked: anyio.Event | None = None  # what its worker waits for
        self.current: Found | None = None
        self.untold: tuple[Found, Event] | None = None
        """What has ended here without its feed's knowledge: something raised when it was about to be told."""
        self.scope: anyio.CancelScope | None = None
        self.started = 0.0
        self.why: Why | None = None

    def _running(self) -> Found | None:
        return self.current

    def begin(self, scope: anyio.CancelScope) -> None:
        """Run what follows in another scope."""
        self.scope, self.why = scope, None

    @property
    def is_cancelled(self) -> bool:
        """Whether the handler that runs here was cancelled, by `cancel`."""
        return self.why is not None

    def cancel(self, why: Why) -> None:
        """Cancel the handler that runs here."""
        self.why = why
        if self.scope is not None:
            self.scope.cancel()


class Slots:
    """The workers of one group of agents. `give` hands claims to them, `wake_one` begins.

    `on_finished` is told how each ended (None: the store knows, or the lease is gone), and says whether other tasks
    should run before the next one begins; `on_pause` is told that they will, or that no claim waits for a worker any
    more.
    """

    def __init__(
        self,
        handle: StoreHandle,
        boundary: Boundary,
        on_finished: Callable[[Found, Event | None], bool],
        on_pause: Callable[[], None],
        on_claimed: OnClaimed | None = None,
        supervision: Supervision | None = None,
    ) -> None:
        self._handle, self._env, self._boundary, self._supervision = handle, handle.env, boundary, supervision
        self._on_finished, self._on_pause, self._on_claimed = on_finished, on_pause, on_claimed
        # A worker is started when there is work for it, so an idle agent costs nothing.
        self._unstarted: deque[Slot] = deque()
        self._queue: deque[Found] = deque()
        self._parked: deque[anyio.Event] = deque()
        self._is_waking = False
        self._timeouts: list[tuple[float, int, Slot, Found]] = []
        self._number = 0
        self.slots: list[Slot] = []
        self.busy = 0

    def add(self, agent: Hosted, count: int | None = None) -> None:
        """Add slots of the agent: all that it may have, or so many."""
        slots = [Slot(agent, self._handle) for _ in range(agent.concurrency if count is None else count)]
        self.slots += slots
        self._unstarted.extend(slots)

    def remove(self, agent: Hosted) -> int:
        """Take the agent's slots away: what runs in them goes on. Return how many removed slots are busy."""
        owed = 0
        for slot in self.slots:
            if slot.agent is agent and not slot.is_gone:
                slot.is_gone, slot.is_owed = True, slot.current is not None
                owed += slot.is_owed
            if slot.is_gone and slot.parked is not None and slot.parked in self._parked:
                self._parked.remove(slot.parked)
                slot.parked.set()  # its worker ends
        self.slots = [slot for slot in self.slots if not slot.is_gone or slot.current is not None]
        self._unstarted = deque(slot for slot in self._unstarted if not slot.is_gone)
        return owed

    @property
    def is_deserted(self) -> bool:
        """Whether no slot is left in which anything could begin."""
        return all(slot.is_gone for slot in self.slots)

    @property
    def free(self) -> int:
        """How many more claims can be worked on at once; negative: so many wait that there is no slot for."""
        return len(self.slots) - self.busy

    @property
    def running(self) -> int:
        """How many handlers run. From any thread."""
        return sum(slot.current is not None for slot in tuple(self.slots))

    @property
    def queued(self) -> int:
        """How many claims no worker has begun."""
        return len(self._queue)

    def give(self, claims: list[Found]) -> None:
        """Hand claims over, all or, where this raises, none: `wake_one` has them begin, by rank."""
        if self._queue and _rank(self._queue[-1]) > _rank(claims[0]):
            self._queue = deque(sorted((*self._queue, *claims), key=_rank))
        else:
            self._queue.extend(claims)
        self.busy += len(claims)

    def waiting(self, count: int) -> Iterator[Found]:
        """Yield the last so many of the claims that no worker has begun."""
        return islice(reversed(self._queue), max(0, count))

    def drop(self, ids: set[bytes]) -> list[Found]:
        """Return the claims of these tasks that no worker has begun; they are not here any more."""
        return self.drop_where(lambda found: found.id in ids) if self._queue else []

    def drop_where(self, is_dropped: Callable[[Found], bool]) -> list[Found]:
        """Do as `drop` with the claims for which the predicate holds."""
        dropped = [found for found in self._queue if is_dropped(found)]
        if dropped:
            self._queue = deque(found for found in self._queue if not is_dropped(found))
            self.busy -= len(dropped)
        return dropped

    def take_back(self, count: int | None = None) -> list[Found]:
        """Return the claims that no worker has begun: all, or the last so many."""
        count = len(self._queue) if count is None else min(count, len(self._queue))
        queued = [self._queue.pop() for _ in range(count)]
        self.busy -= count
        return queued

    def cancel(self, why: Why, ids: set[bytes] | None = None) -> int:
        """Cancel the running handlers, or those of these tasks; return how many."""
        running = [slot for slot in self.slots if slot.current is not None and (ids is None or slot.current.id in ids)]
        for slot in running:
            slot.cancel(why)
        return len(running)

    def running_of(self, agent: Hosted, own: Found | None) -> Sequence[Slot]:
        """Return the slots in which one agent's handlers run, but that of its `own` task."""
        running = [slot for slot in self.slots if slot.agent is agent and slot.current is not None]
        return [slot for slot in running if slot.current is not own]

    def cancel_of(self, agent: Hosted, why: Why, own: Found | None) -> int:
        """Cancel the handlers of one agent, but that of its `own` task; return how many there are."""
        busy = self.running_of(agent, own)
        for slot in busy:
            slot.cancel(why)
        return len(busy)

    def call_off(self, id_: bytes, calling: Calling, now: int) -> None:
        """Tell the running handler of a task that it is being cancelled with grace; end it when that is over."""
        for slot in self.slots:
            if (found := slot.current) is not None and found.id == id_:
                slot.desk.call_off(found, calling)
                left_sec = (calling.until - now) / 1_000_000
                self._limit(slot, found, self._env.monotonic() - slot.started + left_sec)

    def cancel_timed_out(self) -> float | None:
        """Cancel what has run too long; return when to look again (monotonic seconds), None if there is no timeout."""
        now = self._env.monotonic()
        while self._timeouts and self._timeouts[0][0] <= now:
            _, _, slot, found = heapq.heappop(self._timeouts)
            if slot.current is found and slot.why is None:
                slot.cancel(Why.TIMEOUT)
        return self._timeouts[0][0] if self._timeouts else None

    def _limit(self, slot: Slot, found: Found, timeout_sec: float) -> None:
        """Note when the attempt has run too long; forget those that have ended, before they are too many."""
        if len(self._timeouts) > ENDED_GREATEST + 2 * len(self.slots):
            self._timeouts = [limit for limit in self._timeouts if limit[2].current is limit[3]]
            heapq.heapify(self._timeouts)
        self._number += 1
        heapq.heappush(self._timeouts, (slot.started + timeout_sec, self._number, slot, found))

    def wake_one(self) -> None:
        """Wake or start one worker; it wakes the next before it begins, so as many run as there is work for."""
        if not self._queue or self._is_waking:
            return
        if self._parked:
            self._is_waking = True
            self._parked.popleft().set()
        elif self._unstarted:
            self._is_waking = True
            self._boundary.background.loop(self._keep, self._unstarted.popleft())

    async def _keep(self, slot: Slot) -> None:
        """Keep a worker in the slot until it is taken away; say how an attempt ended that its worker has not."""
        try:
            while True:
                try:
                    error = await self._boundary.keep(partial(self._work, slot))
                except Exception as failed:
                    error = failed
                self._attempt_ended(slot, error)
                if slot.is_gone:
                    return self._leave(slot)
                if error is not None:
                    raise error  # our own: another worker comes after a pause
        except anyio.get_cancelled_exc_class():
            if (found := slot.current) is not None:
                found, _ = slot.desk.close(found, None)
                self._end(found, Released(slot.agent.id, "its process is stopping"))
            raise

    def _leave(self, slot: Slot) -> None:
        """Forget a slot that was taken away and has ended, in the step in which it does: no claim may count on it."""
        if slot in self.slots:
            self.slots.remove(slot)
        self.wake_one()  # a wake-up that it was given is the next one's
        if slot.is_owed and self._supervision is not None:
            slot.is_owed = False
            self._supervision.ended(slot.agent)

    def _attempt_ended(self, slot: Slot, error: BaseException | None) -> None:
        """Report how the attempt ended that a worker was at, if any, when it ended."""
        if (untold := slot.untold) is not None:
            slot.untold = None
            self._on_finished(*untold)
        found, why = slot.current, slot.why
        slot.current = None
        if found is None:
            return
        is_called_off = slot.desk.is_called_off
        found, parked = slot.desk.close(found, PARKED)
        if error is None and why is Why.PARKED and parked is not None:
            self._end(found, parked)
        elif error is None and why is Why.TIMEOUT and is_called_off:
            self._end(found, Released(slot.agent.id, "its grace time is over"))
        elif error is not None:
            self._end(found, Failed(describe(error), slot.agent.id, True, self._env.uniform()))
        elif why is Why.TIMEOUT:
            text = f"timed out after {found.spec.timeout_sec:g} s"
            self._failed(slot.agent, text)
            self._end(found, Failed(text, slot.agent.id, True, self._env.uniform()))
        elif why is None:
            self._failed(slot.agent, FROM_WITHIN)
            self._end(found, Failed(FROM_WITHIN, slot.agent.id, True, self._env.uniform()))
        elif why is Why.STOPPING:
            self._end(found, Released(slot.agent.id, "its process is stopping"))
        else:
            self._end(found, None)  # the store knows already, or the lease is gone

    async def _work(self, slot: Slot, worker: Worker) -> None:
        """Run one handler after the other, until the slot is taken away, or one has spoiled this task."""
        agent, call, handler = slot.agent, worker.call, worker.awaitable(slot.handler)
        begin(agent)
        RUNS.set(slot.desk)
        slot.begin(worker.scope)
        yield_at = 0.0
        self._is_waking = False
        while slot.why is None and not slot.is_gone and not worker.is_spoiled:
            if not self._queue:
                await self._park(slot)
                yield_at = 0.0
                continue
            found = slot.current = self._queue.popleft()  # from here on, whatever raises, it is known what ends
            if not self._queue:
                self._on_pause()
            elif not self._is_waking:
                self.wake_one()
            TASK.set(found)
            slot.started = self._env.monotonic()
            if found.spec.timeout_sec is not None:
                self._limit(slot, found, found.spec.timeout_sec)
            task = claimed_task(found, agent.id)
            if self._on_claimed is not None:
                self._on_claimed(found, task)
            result = await call(handler, task, encode_result)
            parked: Event | None = None
            if result is None:
                result = b"null"
            if slot.desk.opened is not None and result is not CANCELLED:
                found, parked = slot.desk.close(found, result)
            if result is CANCELLED:
                if worker.is_fast and not slot.is_cancelled:
                    # The node's block is: whoever stops the node hands back what was held.
                    slot.current = None
                    found, _ = slot.desk.close(found, None)
                    self._end(found, Released(agent.id, "its process is stopping"))
                return
            event: Event
            if parked is not None:
                event = parked
            elif type(result) is bytes:
                event = Completed(result, agent.id)
                if agent.health.is_troubled:
                    self._succeeded(agent)
            else:
                event = self._not_completed(agent, found, result)
            slot.current = None
            self.busy -= 1
            try:
                must_yield = self._on_finished(found, event)
            except BaseException:
                slot.untold = found, event
                raise
            if (must_yield or slot.started >= yield_at) and not worker.is_spoiled:
                if yield_at and self._queue:
                    self._on_pause()
                    self._boundary.background.shared.put_back()
                    await checkpoint()
                yield_at = self._env.monotonic() + YIELD_SEC
        if slot.is_gone:
            self._leave(slot)

    async def _park(self, slot: Slot) -> None:
        """Wait for something to do."""
        self._boundary.background.shared.put_back()
        event = slot.parked = anyio.Event()
        self._parked.append(event)
        try:
            await event.wait()
        finally:
            self._is_waking, slot.parked = False, None
            if not event.is_set():
                self._parked.remove(event)

    def _succeeded(self, agent: Hosted) -> None:
        if agent.loop is None and self._supervision is not None:
            self._supervision.succeeded(agent, "on_task")

    def _not_completed(self, agent: Hosted, found: Found, raised: Raised) -> Event:
        """Return what becomes of a task whose handler raised."""
        error = raised.error
        if type(error) is Reported:  # what `decide` made of it
            return outcome_of(error.error, str(error), agent.id, self._env.uniform())
        event = outcome_of(error, raised.text, agent.id, self._env.uniform())
        if type(event) is Released:
            tell(agent_log(agent), logging.WARNING, "task %s released: %s", id_text(found.id), event.why)
        elif raised.is_a(ConvergeError) or is_cancellation(error):
            tell(agent_log(agent), logging.WARNING, "task %s failed: %s", id_text(found.id), raised.text)
        else:
            tell(agent_log(agent), logging.ERROR, "task %s failed", id_text(found.id), error=error)
        self._failed(agent, raised)
        return event

    def _failed(self, agent: Hosted, error: Raised | str) -> None:
        """Tell who supervises the agent; what `decide` does, its own loop tells."""
        if self._supervision is not None and agent.loop is None:
            self._supervision.failed(agent, "on_task", error)

    def _end(self, found: Found, event: Event | None) -> None:
        self.busy -= 1
        self._on_finished(found, event)


def _rank(found: Found) -> int:
    return found.state.rank if found.state is not None else found.spec.rank
