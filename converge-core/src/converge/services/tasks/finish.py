"""Finishing claims: the batch for each, and what to do when the store has moved meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from converge.contracts.store import Batch, Channel, Conflict
from converge.errors import NoSuchTask, NotApplied, OutcomeUnknown, StaleClaim, StoreBusy, TornRecord
from converge.ids import id_text
from converge.machines.task import Around, Completed, Event, Failed, Found, Held, Released, is_said_again, key_of, step
from converge.model.keys import LATER
from converge.model.pool import Pool
from converge.services.store.handle import StoreHandle
from converge.services.tasks.surroundings import Moved, look_around, look_around_all, read_task, wakes

ROUNDS = 60
"""How often a finish looks again when something around the task, not the claim itself, has moved."""

RELEASED = 200
"""Claims of one call of those that are handed back together; see `sweep.PAGE`."""


class Finishes:
    """Ends claims of one opened store; each takes effect once, and may be said again (G4)."""

    def __init__(self, handle: StoreHandle) -> None:
        self._opened = handle
        self._around = Around(Pool(id=""))  # of the pool of the last finish that was planned

    def plan(self, found: Found, event: Event, now: int) -> tuple[Batch, Channel] | None:
        """Return the batch and the channel to wake, where nothing must be read first; None where something must: then
        use `finish`.
        """
        spec, kind = found.spec, type(event)
        seen = self._opened.pools.get(spec.pool)
        if spec.ordering_key is not None or seen is None or not (kind is Completed or kind is Failed):
            return None
        if self._around.pool is not seen.pool:
            self._around = Around(seen.pool)
        batch = step(found, event, now, self._around)
        if kind is Failed:
            self._note_due(batch)
        return batch, spec.origin

    def _note_due(self, batch: Batch) -> None:
        for key, _ in batch.puts:
            if key[0] is LATER:
                self._opened.saw_due(key[1])

    async def finish(self, found: Found, event: Event) -> None:
        """End the claim.

        Raises:
            StaleClaim: It is not current; nothing was changed.
            StoreError: As `Store.commit`; an unknown outcome was tried again first.
        """
        unknown: OutcomeUnknown | None = None
        for round_ in range(ROUNDS):
            try:
                if await self._try(found, event):
                    return
            except OutcomeUnknown as error:
                unknown = error
                await anyio.sleep(0.05)  # to say it again is safe: the same attempt and digest succeed again
            except NotApplied as error:
                if unknown is not None:
                    raise unknown from error  # an earlier try may have been applied, whatever became of this one
                raise
            if round_ > 3:
                await anyio.sleep(0.001 * min(round_, 20))  # others write the same ordering key; let them
        if unknown is not None:
            raise unknown
        raise StoreBusy(f"task {id_text(found.id)}: what stands around it moved {ROUNDS} times; finish it again")

    async def release_all(self, claims: Sequence[tuple[Found, Released]]) -> list[StaleClaim | None]:
        """Hand the claims back in few calls, as a process does that stops; answer of each None, or why it was not its
        to hand back.

        Raises:
            StoreError: As `Store.commit`; to call it again with the same claims is safe.
        """
        answers: list[StaleClaim | None] = []
        for at in range(0, len(claims), RELEASED):
            some = claims[at : at + RELEASED]
            for (found, event), is_released in zip(some, await self._release(some), strict=True):
                try:
                    if not is_released:
                        await self.finish(found, event)
                    answers.append(None)
                except StaleClaim as error:
                    answers.append(error)
        return answers

    async def _release(self, claims: Sequence[tuple[Found, Released]]) -> list[bool]:
        """Try each once, all in one commit."""
        arounds = await look_around_all(self._opened, [found for found, _ in claims])
        now = await self._opened.now()
        steps = [
            (found, around, step(found, event, now, around))
            for (found, event), around in zip(claims, arounds, strict=True)
            if type(around) is Around
        ]
        channels = {channel for found, around, _ in steps for channel in wakes(found, around, is_ready=True)}
        try:
            outcomes = await (await self._opened.commits()).commit([batch for _, _, batch in steps], wake=channels)
        except OutcomeUnknown:
            return [False] * len(claims)  # each is said again by itself, which is safe
        released = {
            found.id
            for (found, _, _), outcome in zip(steps, outcomes, strict=True)
            if not isinstance(outcome, Conflict)
        }
        return [found.id in released for found, _ in claims]

    async def _try(self, found: Found, event: Event) -> bool:
        try:
            around = await look_around(self._opened, found, needs_lane=isinstance(event, Released))
        except (Moved, TornRecord):
            # Its ordering key's row is gone: it may have ended in just this way.
            (held,) = await self._opened.store.get([key_of(found)])
            if held is not None:
                raise  # it has not: something else broke the record
            await self.check_said_again(found, event)
            return True
        batch = step(found, event, await self._opened.now(), around)
        self._note_due(batch)
        wake = wakes(found, around, is_ready=isinstance(event, Released))
        (outcome,) = await (await self._opened.commits()).commit([batch], wake=wake)
        if not isinstance(outcome, Conflict):
            return True
        if key_of(found) not in outcome.keys:
            return False
        await self.check_said_again(found, event)
        return True

    async def check_said_again(self, found: Found, event: Event) -> None:
        """Return if the claim has ended in just this way: the first answer was lost.

        Raises:
            StaleClaim: It has ended in another way.
        """
        held = found.place
        assert isinstance(held, Held), "only a claim is finished"
        try:
            _, state = await read_task(self._opened.store, found.id)
        except NoSuchTask:
            raise StaleClaim(id_text(found.id), token=held.token) from None
        if not is_said_again(state, held, event):
            other = state.token if state is not None and state.token != held.token else 0
            raise StaleClaim(id_text(found.id), token=held.token, current=other or None)
