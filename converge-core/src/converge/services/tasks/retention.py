"""Removal of ended tasks whose retention has passed, with all that belongs to them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from converge.codec import decode
from converge.contracts.store import LIMITS, Batch, Conflict, Entry, Key, Put, Range, Rest
from converge.errors import SchemaTooNew, StoreFull, TornRecord
from converge.ids import id_text
from converge.machines.retention import excess, may_go
from converge.machines.task import TERMINAL, TaskState
from converge.model.keys import DEDUP, DONE, GONE, KEPT, POOL, STATE, TASK
from converge.model.pool import Pool
from converge.model.task import Spec, State
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages, get_all, parts
from converge.services.tasks.counts import bytes_each, ended
from converge.services.tasks.torn import set_aside

log = logging.getLogger("converge.retention")

REMOVED_TOGETHER = 200
"""Ended tasks that are looked at in one call."""

POOLS_TOGETHER = 10
"""Pools that are looked at in one call: one scan has room for the three states of each."""

FEW = 10
"""Ended tasks that are removed in one call from a store that is full."""

UNREADABLE_PAGES = 10
"""Pages that one call looks through for a task to remove: those that cannot be read may fill whole pages."""

_RecordT = TypeVar("_RecordT")

_STATES = sorted(state.value for state in TERMINAL)


COUNT_SHARE = 20.0
"""A pool is counted again after so many times as long as it took: a large one costs its store a twentieth at most."""


class Retention:
    """Removes old tasks of one store. Each removal checks the key that says when, so two processes may do it."""

    def __init__(self, handle: StoreHandle) -> None:
        self._handle = handle
        self._round = self._next_round()
        self._count_due: dict[str, float] = {}  # when a pool with a limit is counted again (monotonic seconds)
        self._logged: set[bytes] = set()  # of which tasks it was said that they cannot be read

    @property
    def is_under_way(self) -> bool:
        """Whether the next page goes on with the pools, instead of beginning with the first again."""
        return self._round.after is not None

    async def remove_old(self) -> int:
        """Remove a page of the old tasks of each few pools; return how many (0: there are none left)."""
        self._round = self._next_round()
        moved = await self.page()
        while self.is_under_way:
            moved += await self.page()
        return moved

    async def page(self) -> int:
        """Remove a page of the old tasks of the next few pools; return how many."""
        pools = await self._round.read()
        if self._round.is_last:
            self._round = self._next_round()
        if not pools:
            return 0
        moved = await self._remove_under([DONE(pool.key[1], state) for pool in pools for state in _STATES])
        for entry in pools:
            moved += await self._keep_less(entry)
        return moved

    async def _keep_less(self, entry: Entry) -> int:
        """Remove what is too many in a pool that keeps so many, or so many bytes, at most. Its tasks are counted
        seldom, the longer that takes the less often.
        """
        pool = _limited(entry)
        if pool is None:
            return 0
        env, began = self._handle.env, self._handle.env.monotonic()
        if began < self._count_due.get(pool.id, began):
            return 0
        moved = 0
        for state in await self._excess(pool):
            page = await self._first_removable(pool, DONE(pool.id, state.value))
            # Counted after it was read: what another process has removed meanwhile is no longer too many, and what it
            # removes from now on is the same, the oldest.
            moved += await self.remove(page[: (await self._excess(pool)).get(state, 0)])
        if not moved:
            self._count_due[pool.id] = env.monotonic() + COUNT_SHARE * (env.monotonic() - began)
        return moved

    async def _excess(self, pool: Pool) -> dict[TaskState, int]:
        store = self._handle.store
        weight = await bytes_each(store, pool, self._handle.env.uniform()) if pool.keep_bytes else 0.0
        return excess(pool, await ended(store, pool.id), weight)

    async def _first_removable(self, pool: Pool, prefix: Key) -> list[Entry]:
        """Return the oldest tasks that may go before their time: not those that have just ended, whose submitter may
        not have read the result, nor those whose dedup key has to be remembered.
        """
        store, found = self._handle.store, list[Entry]()
        now, pages = await store.retention_time(), Pages(store, prefix, size=REMOVED_TOGETHER)
        for _ in range(UNREADABLE_PAGES):
            page = await pages.read()
            records = await get_all(store, [family(entry.key[4]) for entry in page for family in (TASK, STATE)])
            for entry, spec, state in zip(page, records[::2], records[1::2], strict=True):
                if may_go(pool, _read(spec, Spec), _read(state, State), now):
                    found.append(entry)
            if len(found) >= REMOVED_TOGETHER or pages.is_last:
                break
        return found[:REMOVED_TOGETHER]

    def _next_round(self) -> Pages:
        return Pages(self._handle.store, POOL(), size=POOLS_TOGETHER)

    async def _remove_under(self, prefixes: Sequence[Key]) -> int:
        store = self._handle.store
        now = await store.retention_time()
        # One key of each says whether anything is due: a full page of what is not would be read for nothing.
        heads = await store.scan([Range(prefix, None, 1) for prefix in prefixes])
        due: dict[Key, Rest | None] = {
            prefix: None for prefix, page in zip(prefixes, heads, strict=True) if page and page[0].key[3] <= now
        }
        for _ in range(UNREADABLE_PAGES):
            if not due:
                break
            limit = -(-REMOVED_TOGETHER // len(due))
            pages = await store.scan([Range(prefix, after, limit) for prefix, after in due.items()])
            old = [entry for page in pages for entry in page if entry.key[3] <= now]
            moved = await self.remove(old)
            if moved:
                return moved
            due = {
                prefix: page[-1].key[3:]
                for prefix, page in zip(due, pages, strict=True)
                if len(page) == limit and page[-1].key[3] <= now
            }
        return 0

    async def remove(self, old: Sequence[Entry]) -> int:
        """Remove the ended tasks of these keys; return how many. One that cannot be read stays, and is logged."""
        ids = [entry.key[4] for entry in old]
        records = await get_all(self._handle.store, [family(id_) for id_ in ids for family in (TASK, KEPT)])
        batches = []
        for entry, spec, kept in zip(old, records[::2], records[1::2], strict=True):
            try:
                dedup_key = None if spec is None else decode(spec.value, Spec, id_text(entry.key[4])).dedup_key
            except TornRecord as error:
                await set_aside(self._handle, entry.key, entry.revision, entry.key[4], error)
                continue
            except SchemaTooNew as error:
                self._log_once(entry.key[4], error)
                continue
            deletes = [entry.key, TASK(entry.key[4]), STATE(entry.key[4])]
            if dedup_key is not None:
                deletes.append(DEDUP(entry.key[1], dedup_key))
            puts: list[Put] = []
            if kept is not None:  # its steps, output and children may be too many for one batch
                deletes.append(kept.key)
                puts.append((GONE(entry.key[4]), b""))
            batches.append(Batch([(entry.key, entry.revision)], puts, deletes))
        commits = await self._handle.commits()
        moved = 0
        for part in parts(batches, LIMITS.batches):
            try:
                outcomes = await commits.commit(part)
            except StoreFull:  # a store that is full may have room for the deletion of a few at a time
                outcomes = [one for few in parts(part, FEW) for one in await commits.commit(few)]
            moved += sum(not isinstance(outcome, Conflict) for outcome in outcomes)
        return moved

    def _log_once(self, id_: bytes, error: Exception) -> None:
        if id_ not in self._logged and len(self._logged) < LIMITS.keys:
            self._logged.add(id_)
            log.error("task %s is past its retention, but stays: %s", id_text(id_), error)


def _limited(entry: Entry) -> Pool | None:
    """Return the pool if it has a limit besides time; most have none, and are not decoded."""
    if b'"keep_count"' not in entry.value:
        return None
    try:
        pool = decode(entry.value, Pool, f"pool {entry.key[1]}")
    except (TornRecord, SchemaTooNew):
        return None  # whoever works in it says so
    return pool if pool.keeps_less else None


def _read(entry: Entry | None, type_: type[_RecordT]) -> _RecordT | None:
    try:
        return None if entry is None else decode(entry.value, type_, id_text(entry.key[1]))
    except (TornRecord, SchemaTooNew):
        return None
