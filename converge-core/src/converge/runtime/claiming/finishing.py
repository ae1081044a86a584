"""The outcomes of one feed's claims, from the end of each handler until they are stored."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from converge.contracts.store import Batch, Channel, Conflict, Turned
from converge.errors import SchemaTooNew, StaleClaim, StoreError, TornRecord
from converge.foreign import describe
from converge.ids import id_text
from converge.machines.events import Completed, Event, Failed
from converge.model.place import Found
from converge.runtime.claiming.observers import NO_OBSERVERS, Observers
from converge.services.store.handle import StoreHandle
from converge.services.tasks.claim import Claims
from converge.services.tasks.finish import Finishes

log = logging.getLogger("converge.feed")

Ended = tuple[Found, Event]
"""A claim, and how it has ended."""


class Plan(NamedTuple):
    """What of some ended claims goes out with a turn: a batch for each of `sent`; `slow` must be looked at first."""

    batches: list[Batch]
    sent: list[Ended]
    slow: list[Ended]
    wake: set[Channel]

    @property
    def are_apart(self) -> bool:
        """Whether these are ends of different tasks: an unknown one may meet the next attempt's, of another lease."""
        return len({found.id for found, _ in self.sent}) == len(self.sent)


class Finishing:
    """The ended claims of a feed. `observers` are told of each, once it is known what the store makes of it."""

    def __init__(self, handle: StoreHandle, claims: Claims, observers: Observers = NO_OBSERVERS) -> None:
        self._handle, self._claims, self._observers = handle, claims, observers
        self._finishes = Finishes(handle)
        self.waiting: list[Ended] = []
        """What goes out with the next turn."""
        self.sending = 0
        """How many are on their way in a turn."""
        self._slow = 0
        self.completed = self.failed = self.stale = 0

    @property
    def in_hand(self) -> int:
        """How many have ended of which the store does not know yet."""
        return len(self.waiting) + self.sending + self._slow

    def remove_all(self) -> list[Ended]:
        """Remove and return what waits."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def dropped(self, found: Found) -> None:
        """Note that the store takes nothing of a claim's end."""
        if self._observers.dropped is not None:
            self._observers.dropped(found)

    async def plan(self, ended: Sequence[Ended]) -> Plan:
        """Return what goes out with a turn."""
        plan = batches, sent, slow, wake = Plan([], [], [], set())
        now = await self._handle.now() if ended else 0
        for one in ended:
            found, event = one
            try:
                planned = self._finishes.plan(found, event, now)
            except Exception:  # one that nobody can encode holds up no other
                planned = None
            if planned is None:
                slow.append(one)
            else:
                batches.append(planned[0])
                wake.add(planned[1])
                sent.append(one)
        wake.discard("")
        return plan

    async def sent(self, plan: Plan, turned: Turned) -> None:
        """Count what a turn has ended; end one by one what met a conflict in it, and what could not go out with it.

        Raises: As `finish_slowly`.
        """
        slow = plan.slow
        if self._observers.finished is None and Conflict not in set(map(type, turned.outcomes)):
            kinds = [type(event) for _, event in plan.sent]
            self.completed += kinds.count(Completed)
            self.failed += kinds.count(Failed)
        else:
            for (found, event), outcome in zip(plan.sent, turned.outcomes, strict=True):
                if isinstance(outcome, Conflict):
                    slow.append((found, event))
                else:
                    self._count(found, event)
        await self.finish_slowly(slow)

    async def finish_slowly(self, slow: list[Ended]) -> None:
        """End what could not go out with a turn, in few calls; what cannot be stored as it is ends as failed.

        Raises:
            StoreError: Some are not ended yet, and wait again.
        """
        if not slow:
            return
        self._slow += len(slow)
        try:
            answers = await self._finishes.finish_all(slow)
        except BaseException:
            self.waiting += slow  # to say them again is safe
            raise
        finally:
            self._slow -= len(slow)
        failed: StoreError | None = None
        for (found, event), error in zip(slow, answers, strict=True):
            if error is None:
                self._count(found, event)
            elif isinstance(error, StaleClaim):
                self.stale += 1
                self.dropped(found)
                log.warning("%s", error)
            elif isinstance(error, TornRecord | SchemaTooNew):
                self.dropped(found)
                self._claims.put_away_later(found, error)  # it alone, for good: no outage of the store
            elif isinstance(error, StoreError):
                self.waiting.append((found, event))
                failed = failed or error
            else:
                why = describe(error)
                log.error("task %s could not be ended: %s", id_text(found.id), why)
                if isinstance(event, Failed) and event.error == why:
                    self.dropped(found)
                else:  # what came cannot be stored; this can
                    self.waiting.append((found, Failed(why, getattr(event, "by", ""))))
        if failed is not None:
            raise failed

    def _count(self, found: Found, event: Event) -> None:
        if isinstance(event, Completed):
            self.completed += 1
        elif isinstance(event, Failed):
            self.failed += 1
        if self._observers.finished is not None:
            self._observers.finished(found, event)
