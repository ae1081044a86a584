"""Removal of ended tasks on an operator's order, before their retention has passed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence

import attrs

from converge.codec import decode
from converge.contracts.store import Entry
from converge.errors import SchemaTooNew, TornRecord
from converge.ids import id_text
from converge.machines.task import TaskState
from converge.model.keys import DONE, STATE, TORN
from converge.model.task import State
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import Pages
from converge.services.tasks.retention import Retention
from converge.services.tasks.torn import end_torn, read_torn

UNKNOWN, UNREADABLE = "(unknown)", "unreadable"
"""The pool of a task whose records do not say it, and the state of one that was set aside."""

PURGED_TOGETHER = 500
"""Tasks of one page: each goes in one call, beside which agents work on."""


@attrs.frozen(kw_only=True)
class Purged:
    """What came of one page: how many tasks of which pool and state were removed, or would be."""

    pool_id: str
    state: str
    count: int


async def purge(
    handle: StoreHandle,
    pool_ids: Iterable[str],
    states: Collection[TaskState],
    ended_before: int | None,
    *,
    is_dry_run: bool,
) -> AsyncGenerator[Purged, None]:
    """Remove ended tasks of the pools, with their dedup keys: in these states, ended before then (None: all).

    One that cannot be read stays. To purge again after a failure is safe.

    Raises:
        StoreError: As `Store.commit`; what was yielded is gone.
    """
    retention = Retention(handle)
    for pool_id in pool_ids:
        for state in sorted(states):
            async for page in Pages(handle.store, DONE(pool_id, state.value), size=PURGED_TOGETHER):
                chosen = page if ended_before is None else await _ended_before(handle, page, ended_before)
                count = len(chosen) if is_dry_run else await retention.remove(chosen)
                if count:
                    yield Purged(pool_id=pool_id, state=state.value, count=count)


async def _ended_before(handle: StoreHandle, page: Sequence[Entry], moment: int) -> list[Entry]:
    """Return the entries of the page whose task ended before the moment, which keys do not show."""
    records = await handle.store.get([STATE(entry.key[4]) for entry in page]) if page else ()
    return [
        entry for entry, record in zip(page, records, strict=True) if record is not None and _finished(record) < moment
    ]


async def purge_torn(
    handle: StoreHandle, pool_ids: Collection[str] | None, set_aside_before: int | None, *, is_dry_run: bool
) -> AsyncGenerator[Purged, None]:
    """Remove tasks that were set aside since nobody can read them: of these pools as far as that is known (None: all),
    before that store time (None: whenever).

    Raises:
        StoreError: As `Store.commit`; what was yielded is gone.
    """
    async for page in Pages(handle.store, TORN(), size=PURGED_TOGETHER):
        for entry in page:
            torn = read_torn(entry)
            is_wanted = (pool_ids is None or torn.pool in pool_ids) and (
                set_aside_before is None or torn.at < set_aside_before
            )
            if is_wanted and (is_dry_run or await end_torn(handle, entry)):
                yield Purged(pool_id=torn.pool or UNKNOWN, state=UNREADABLE, count=1)


def _finished(record: Entry) -> float:
    try:
        return decode(record.value, State, id_text(record.key[1])).finished
    except (TornRecord, SchemaTooNew):
        return float("inf")
