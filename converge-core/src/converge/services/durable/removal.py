"""Removal of what a task recorded, after its own records are gone: many keys, a page at a time, its mark last."""

from __future__ import annotations

from collections.abc import Sequence

from converge.codec import moment_or
from converge.contracts.store import Batch, Committed, Entry, Key, Range
from converge.model.keys import CHILD, CHUNK, CUT, ENDED, GONE, KEPT, READER, SIGNAL, SIGNALS, STEP, TASK, TOLD, TORN
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages, get_all

REMOVED_TOGETHER = 500
"""Keys that are removed in one batch."""

OF_TASK = (STEP, SIGNAL, CHUNK, READER, ENDED, TOLD, CHILD)
"""Families of which a task may have many keys. Children that its end has not reached go with its cut."""


class Removal:
    """The chore that removes what is left of removed tasks, and of a restart the old steps."""

    prefix: Key = GONE()

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._pages = Pages(handle.store, GONE(), size=32)
        self._round = self._next_round()

    async def page(self) -> int:
        """See `Chore.page`."""
        return await self._pages.move(self._remove_all)

    async def _remove_all(self, page: Sequence[Entry]) -> int:
        return sum([await self._remove(gone) for gone in page])

    async def _remove(self, gone: Entry) -> int:
        id_ = gone.key[1]
        restarts = moment_or(gone.value, 0)
        store = self._handle.store
        if gone.value:
            (steps,) = await store.scan([Range(STEP(id_), None, REMOVED_TOGETHER)])
            keys = [entry.key for entry in steps if entry.key[2] < restarts]
        else:
            (cut,) = await store.get([CUT(id_)])
            if cut is not None:
                return 0  # its children are cancelled first
            pages = await store.scan([Range(family(id_), None, REMOVED_TOGETHER) for family in OF_TASK])
            keys = [entry.key for page in pages for entry in page]
        commits = await self._handle.commits()
        if keys:
            await commits.commit([Batch((), (), keys[:REMOVED_TOGETHER])])
            return len(keys[:REMOVED_TOGETHER])
        last = [gone.key] if gone.value else [gone.key, SIGNALS(id_), KEPT(id_)]
        (outcome,) = await commits.commit([Batch([(gone.key, gone.revision)], (), last)])
        return int(isinstance(outcome, Committed))

    async def look_for_left(self) -> int:
        """Look at one page of the tasks that have recorded anything: of those that a process of an older release has
        removed, what is left goes, too. Return how many were found.
        """
        page = await self._round.read()
        if self._round.is_last:
            self._round = self._next_round()
        if not page:
            return 0
        records = await get_all(self._handle.store, [f(entry.key[1]) for entry in page for f in (TASK, TORN)])
        left = [
            entry
            for entry, task, torn in zip(page, records[::2], records[1::2], strict=True)
            if task is None and torn is None
        ]
        if left:
            batches = [Batch([(one.key, one.revision)], [(GONE(one.key[1]), b"")], [one.key]) for one in left]
            await (await self._handle.commits()).commit(batches)
        return len(left)

    def _next_round(self) -> Pages:
        return Pages(self._handle.store, KEPT(), size=REMOVED_TOGETHER // 2)


class Left:
    """The chore that seldom looks for what older releases have left, where any task has recorded anything."""

    prefix: Key = KEPT()

    def __init__(self, handle: StoreHandle, removal: Removal, pause_sec: float = 5.0) -> None:
        self._handle, self._removal, self._pause_sec = handle, removal, pause_sec
        self._due = float("-inf")

    async def page(self) -> int:
        """See `Chore.page`."""
        monotonic = self._handle.env.monotonic()
        if monotonic < self._due:
            return 0
        self._due = monotonic + self._pause_sec * self._handle.env.uniform(0.5, 1.5)
        return await self._removal.look_for_left()
