"""The coalescer: what one loop step asks of the store goes out in one call, with the feed's take where there is one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import anyio
from anyio import lowlevel

from converge.contracts.store import LIMITS, Batch, Channel, Check, Committed, Conflict, Key, Store, Take, Taken, Turned
from converge.errors import NotApplied, OutcomeUnknown, StoreRolledBack

IN_FLIGHT = 2
"""Calls under way at a time: the store works on one while Python prepares the next; a third gained nothing in measurements."""


class _Asked:
    """Batches of one caller, on their way."""

    __slots__ = ("batches", "done", "error", "outcomes", "wake")

    def __init__(self, batches: Sequence[Batch], wake: Collection[Channel]) -> None:
        self.batches, self.wake = batches, wake
        self.done: anyio.Event | None = None
        self.outcomes: Sequence[Committed | Conflict] | None = None
        self.error: BaseException | None = None


class Commits:
    """Groups the commits of many callers; adds the check of the store's epoch to every batch (G15).

    A call is shielded from cancellation once it is on its way: its outcome is then known to the callers that were not cancelled.
    """

    def __init__(self, store: Store, epoch: Check) -> None:
        self._store = store
        self._epoch = epoch
        self._asked: list[_Asked] = []
        self._is_flush_due = False
        self._slots = anyio.Semaphore(IN_FLIGHT)

    async def commit(self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()) -> Sequence[Committed | Conflict]:
        """As `Store.commit`, except that batches may touch each other's keys: such ones go out in separate calls, in their order.

        Raises:
            StoreRolledBack: The store's epoch is not the one that this process saw.
            StoreError: As `Store.commit`.
        """
        if not batches:
            return []
        asked = _Asked(batches, wake)
        self._asked.append(asked)
        if not self._is_flush_due:
            self._is_flush_due = True
            await lowlevel.cancel_shielded_checkpoint()  # whoever else runs in this loop step joins
            with anyio.CancelScope(shield=True):
                await self._flush(asked)
        if asked.outcomes is None and asked.error is None:
            asked.done = anyio.Event()
            await asked.done.wait()
        if asked.error is not None:
            raise asked.error
        assert asked.outcomes is not None, "a caller that was woken has its answer"
        return asked.outcomes

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        """As `Store.turn`; what others asked in this loop step rides along.

        Raises: As `commit`.
        """
        own = _Asked(batches, wake)
        async with self._slots:
            asked = [own, *self._asked]
            self._asked = []
            taken = await self._send(asked, take)
        if own.error is not None:
            raise own.error
        return Turned(own.outcomes or (), taken)

    async def _flush(self, own: _Asked) -> None:
        async with self._slots:
            self._is_flush_due = False
            asked, self._asked = self._asked, []
            if asked:  # else a turn took them along
                await self._send(asked, None)

    async def _send(self, asked: list[_Asked], take: Take | None) -> Taken | Conflict | None:
        batches = [batch for one in asked for batch in one.batches]
        wake = {channel for one in asked for channel in one.wake}
        if take is not None:
            take = take._replace(checks=(*take.checks, self._epoch))
        try:
            outcomes, taken = await self._call(batches, take, wake)
        except BaseException as error:
            for one in asked:
                one.error = error
            taken = None
        else:
            at = 0
            for one in asked:
                one.outcomes = outcomes[at : at + len(one.batches)]
                at += len(one.batches)
        for one in asked:
            if one.done is not None:
                one.done.set()
        return taken

    async def _call(
        self, batches: Sequence[Batch], take: Take | None, wake: Collection[Channel]
    ) -> tuple[list[Committed | Conflict], Taken | Conflict | None]:
        groups = split(batches, take)
        outcomes: list[Committed | Conflict | None] = [None] * len(batches)
        taken: Taken | Conflict | None = None
        for at, group in enumerate(groups):
            is_last = at == len(groups) - 1
            sent = [self._with_epoch(batches[index]) for index in group]
            try:
                if is_last and take is not None:
                    turned = await self._store.turn(sent, take, wake=wake)
                    answers, taken = turned.outcomes, turned.taken
                else:
                    answers = await self._store.commit(sent, wake=wake if is_last else ())
            except NotApplied as error:
                if at == 0:
                    raise
                raise OutcomeUnknown(f"a part of the call was applied, then the store failed: {error}") from error
            for index, answer in zip(group, answers, strict=True):
                outcomes[index] = answer
        self._check_epoch([*outcomes, taken])
        return [outcome for outcome in outcomes if outcome is not None], taken

    def _with_epoch(self, batch: Batch) -> Batch:
        return Batch((*batch.checks, self._epoch), batch.puts, batch.deletes, batch.window)

    def _check_epoch(self, answers: Iterable[object]) -> None:
        key = self._epoch[0]
        for answer in answers:
            if type(answer) is Conflict and key in answer.keys:
                raise StoreRolledBack(
                    "the store's epoch is not the one that this process saw: it was flushed, restored or replaced; "
                    "find out what became of its data, then start this process again"
                )


def split(batches: Sequence[Batch], take: Take | None) -> list[list[int]]:
    """Return the indexes of the batches in groups that may go out in one call each, in order; the take goes with the last group.

    Within a group no batch writes a key that another reads or writes; in the last one no batch deletes or checks a key of the take's family or writes
    a key that the take checks.
    """
    if _is_one_group(batches, take):
        return [list(range(len(batches)))]
    groups: list[list[int]] = [[]]
    reads: list[set[Key]] = [set()]
    writes: list[set[Key]] = [set()]
    last_touched = -1  # the last group that must go out before the take
    for index, batch in enumerate(batches):
        checked = {key for key, _ in batch.checks}
        written = {key for key, _ in batch.puts}
        written.update(batch.deletes)
        at = len(groups) - 1
        while at >= 0 and writes[at].isdisjoint(checked) and writes[at].isdisjoint(written) and reads[at].isdisjoint(written):
            at -= 1
        at += 1  # after the last group that it collides with
        while at < len(groups) and len(groups[at]) >= LIMITS.batches:
            at += 1
        if at == len(groups):
            groups.append([])
            reads.append(set())
            writes.append(set())
        groups[at].append(index)
        reads[at] |= checked
        writes[at] |= written
        if take is not None and _touches(checked, written, batch, take):
            last_touched = max(last_touched, at)
    if last_touched == len(groups) - 1 and take is not None and groups[-1]:
        groups.append([])
    return groups


def _is_one_group(batches: Sequence[Batch], take: Take | None) -> bool:
    """Tell whether all batches may go out in one call with the take: the usual case, found without a set for each batch."""
    if len(batches) > LIMITS.batches:
        return False
    family = take.ranges[0].prefix[0] if take is not None and take.ranges else None
    owners: dict[Key, int] = {}
    for index, batch in enumerate(batches):
        for key, _ in batch.puts:
            if owners.setdefault(key, index) != index:
                return False
        for key in batch.deletes:
            if key[0] is family or owners.setdefault(key, index) != index:
                return False
    for index, batch in enumerate(batches):
        for key, _ in batch.checks:
            if key[0] is family or owners.get(key, index) != index:
                return False
    return take is None or not any(key in owners for key, _ in take.checks)


def _touches(checked: set[Key], written: set[Key], batch: Batch, take: Take) -> bool:
    family = take.ranges[0].prefix[0] if take.ranges else None
    if any(key[0] is family for key in batch.deletes) or any(key[0] is family for key in checked):
        return True
    return any(key in written for key, _ in take.checks)
