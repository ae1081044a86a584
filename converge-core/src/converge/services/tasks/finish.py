"""Finishing claims: the batch for each, and what to do after a conflict."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from converge.contracts.store import Batch, Channel, Conflict
from converge.errors import (
    NoSuchTask,
    NotApplied,
    OutcomeUnknown,
    StaleClaim,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    TornRecord,
)
from converge.ids import id_text
from converge.machines.durable import as_called_off, step
from converge.machines.events import Completed, Event, Failed, HandedBack, Parked, Released, Restarted, Resumed
from converge.machines.task import is_said_again
from converge.machines.task import step as plain_step
from converge.model.keys import LATER
from converge.model.place import Around, Found, Held, key_of
from converge.model.pool import Pool
from converge.services.store.handle import StoreHandle
from converge.services.store.limits import is_out_of_time
from converge.services.store.patience import PATIENCE_SEC, pause_sec
from converge.services.tasks.surroundings import Moved, adopted, decided, look_around, look_around_all, read_task, wakes

FINISHED_TOGETHER = 200
"""Claims of one call of those that are ended together; see `sweep.SWEPT_TOGETHER`."""

GOES_BACK = (Released, HandedBack, Resumed, Restarted)
"""Events after which a task is ready again."""


class Finishes:
    """Ends claims of one opened store; each end takes effect once, and may be repeated (G4)."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._around = Around(Pool(id=""))  # of the pool of the last finish that was planned

    def plan(self, found: Found, event: Event, now: int) -> tuple[Batch, Channel] | None:
        """Return the batch and the channel to wake; None where something must be read first: then use `finish`."""
        spec, kind = found.spec, type(event)
        seen = self._handle.pools.get(spec.pool)
        if kind is Parked:
            return _plan_park(found, event, now)
        if spec.ordering_key is not None or seen is None or not (kind is Completed or kind is Failed):
            return None
        if self._around.pool is not seen.pool:
            self._around = Around(seen.pool)
        if (found.state is not None and (found.state.has_children or found.state.calling is not None)) or spec.parent:
            return None
        batch = plain_step(found, event, now, self._around)
        if kind is Failed:
            self._note_due(batch)
        return batch, spec.origin

    def _note_due(self, batch: Batch) -> None:
        for key, _ in batch.puts:
            if key[0] is LATER:
                self._handle.saw_due(key[1])

    async def finish(self, found: Found, event: Event) -> None:
        """End the claim.

        Raises:
            StaleClaim: It is not current; nothing was changed.
            StoreError: As `Store.commit`; an unknown outcome was tried again first.
        """
        unknown: OutcomeUnknown | None = None
        first = event = as_called_off(found, event)
        monotonic = self._handle.env.monotonic
        began, round_ = monotonic(), 0
        while monotonic() - began < PATIENCE_SEC:
            try:
                if isinstance(event, Parked) and round_:
                    event = await decided(self._handle.reads, found, event)
                if await self._try(found, event):
                    return None
            except StaleClaim:
                if event is first:
                    raise
                return await self.check_said_again(found, first)  # a park whose answer was lost, and looked again
            except OutcomeUnknown as error:
                unknown = error
                if is_out_of_time(monotonic() - began, self._handle.lease_settings.call_sec):
                    break
                await anyio.sleep(0.05)  # to say it again is safe: the same attempt and digest succeed again
            except NotApplied as error:
                if unknown is not None:
                    raise unknown from error  # an earlier try may have been applied, whatever became of this one
                raise
            round_ += 1
            if round_ > 3:
                await anyio.sleep(pause_sec(round_, self._handle.env))
        if unknown is not None:
            raise unknown
        raise StoreBusy(
            f"task {id_text(found.id)}: what stands around it moved for {PATIENCE_SEC:g} s; finish it again"
        )

    async def finish_all(self, claims: Sequence[tuple[Found, Event]]) -> list[Exception | None]:
        """End the claims in few calls: those of ordering keys, whose successors must be read, and those that are handed
        back; return of each None, or why it could not be ended, now (`StoreError`) or at all. One that nobody can
        encode holds up no other.

        To call it again with the same claims is safe.
        """
        answers: list[Exception | None] = []
        claims = [(found, as_called_off(found, event)) for found, event in claims]
        for at in range(0, len(claims), FINISHED_TOGETHER):
            some = claims[at : at + FINISHED_TOGETHER]
            are_ended = [False] if len(some) == 1 else await self._end_together(some)
            failed: StoreError | None = None
            for (found, event), is_ended in zip(some, are_ended, strict=True):
                answer: Exception | None = failed
                if not is_ended and failed is None:
                    try:
                        await self.finish(found, event)
                    except Exception as error:
                        answer = error
                        if isinstance(error, StoreUnavailable | OutcomeUnknown):
                            failed = error  # the store is away: the others need not wait for it, one by one
                answers.append(None if is_ended else answer)
        return answers

    async def _end_together(self, claims: Sequence[tuple[Found, Event]]) -> list[bool]:
        """Try each once, all in one commit; return which have ended. The others are to be tried by themselves."""
        try:
            arounds = await look_around_all(
                self._handle,
                [found for found, _ in claims],
                needs_lane=any(isinstance(event, GOES_BACK) for _, event in claims),
            )
            now = await self._handle.now()
            steps = [
                (found, event, around, step(found, event, now, around))
                for (found, event), around in zip(claims, arounds, strict=True)
                if type(around) is Around
            ]
            channels = set()
            for found, event, around, batch in steps:
                self._note_due(batch)
                channels |= wakes(found, around, is_ready=isinstance(event, GOES_BACK))
            outcomes = await (await self._handle.commits()).commit([batch for *_, batch in steps], wake=channels)
        except Exception:
            return [False] * len(claims)  # each is sent again by itself, which is safe, and tells whose fault it was
        ended = {
            (found.id, found.place)
            for (found, *_), outcome in zip(steps, outcomes, strict=True)
            if not isinstance(outcome, Conflict)
        }
        return [(found.id, found.place) in ended for found, _ in claims]

    async def _try(self, found: Found, event: Event) -> bool:
        try:
            around = await look_around(self._handle, found, needs_lane=isinstance(event, GOES_BACK))
        except (Moved, TornRecord):
            # Its ordering key's row is gone: it may have ended in just this way.
            (held,) = await self._handle.store.get([key_of(found)])
            if held is not None:
                raise  # it has not: something else broke the record
            await self.check_said_again(found, event)
            return True
        batch = step(found, event, await self._handle.now(), around)
        self._note_due(batch)
        wake = wakes(found, around, is_ready=isinstance(event, GOES_BACK))
        (outcome,) = await (await self._handle.commits()).commit([batch], wake=wake)
        if not isinstance(outcome, Conflict):
            return True
        if key_of(found) not in outcome.keys:
            if isinstance(event, Completed) and event.also is not None and event.also[0] in outcome.keys:
                return await self._try(found, Failed("the state of its virtual agent was changed meanwhile", event.by))
            return False
        if (called_off := await adopted(self._handle, found)) is not None:
            return await self._try(called_off, as_called_off(called_off, event))
        await self.check_said_again(found, event)
        return True

    async def check_said_again(self, found: Found, event: Event) -> None:
        """Return if the claim has ended in just this way: the first answer was lost.

        Raises:
            StaleClaim: It has ended in another way.
        """
        held = found.place
        assert isinstance(held, Held), "only a claim is finished"
        if type(event) is HandedBack:
            return  # it has gone back, whoever did it: nothing had begun
        try:
            _, state = await read_task(self._handle.store, found.id)
        except NoSuchTask:
            raise StaleClaim(id_text(found.id), token=held.token) from None
        if not is_said_again(state, held, event):
            other = state.token if state is not None and state.token != held.token else 0
            raise StaleClaim(id_text(found.id), token=held.token, current=other or None)


def _plan_park(found: Found, event: Event, now: int) -> tuple[Batch, Channel] | None:
    if found.state is not None and found.state.calling is not None:
        return None
    return step(found, event, now, Around(Pool(id=found.spec.pool))), ""
