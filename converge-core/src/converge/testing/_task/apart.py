"""PoolsApart: a checked store that also sees to it that no step of its caller, core, mixes the tasks of two pools.

What the task kit runs on: each pool may be kept in a store of its own later. A call may carry several batches, each of
another pool, since whoever spreads the pools can split it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from json import loads

from converge.contracts.store import Batch, Channel, Committed, Conflict, Entry, Key, Range, Store, Take, Turned
from converge.model.keys import DONE, HELD, LANE, LATER, LIMIT, NOTICE, READY, STATE, TASK
from converge.testing.checked import CheckedStore, rule

TASKS = {TASK: 1, STATE: 1, READY: 3, LATER: 2, LIMIT: 2, HELD: 3, DONE: 4, NOTICE: 2}
"""Where the id of a task stands in a key."""


class PoolsSeen:
    """Which pool lanes and tasks are of, as far as calls have shown, so that no step mixes those of two."""

    def __init__(self) -> None:
        self._pools: dict[bytes, str] = {}

    def learn(self, key: Key, value: bytes = b"") -> None:
        """See a key, and of a task its record."""
        if key[0] in (LANE, DONE):
            self._pools[key[-1]] = key[1]
        elif key[0] is TASK and value:
            try:
                pool = loads(value)["pool"]
            except (ValueError, LookupError, TypeError):
                return  # a torn record is of no pool
            self._pools[key[1]] = str(pool)

    def check_batch(self, batch: Batch) -> None:
        """See what the batch puts, and that all tasks that it writes are of one pool."""
        for key, value in batch.puts:
            self.learn(key, value)
        written = [*(key for key, _ in batch.puts), *batch.deletes]
        ids = [key[TASKS[key[0]]] for key in written if key[0] in TASKS]
        pools = {self._pools[id_] for id_ in ids if id_ in self._pools}
        rule(len(pools) < 2, "no batch writes tasks of two pools", pools)

    def check_take(self, take: Take) -> None:
        """See that all lanes of the take are of one pool."""
        pools = {self._pools[lane] for lane in (range_.prefix[1] for range_ in take.ranges) if lane in self._pools}
        rule(len(pools) < 2, "no take has ranges of two pools", pools)


class PoolsApart(CheckedStore):
    """A `CheckedStore` with an eye on pools, for stores that only core writes."""

    def __init__(self, inner: Store, seen: PoolsSeen | None = None) -> None:
        super().__init__(inner)
        self._seen = seen or PoolsSeen()

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        entries = await super().get(keys)
        for entry in filter(None, entries):
            self._seen.learn(entry.key, entry.value)
        return entries

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        pages = await super().scan(ranges)
        for page in pages:
            for entry in page:
                self._seen.learn(entry.key)
        return pages

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        for batch in batches:
            self._seen.check_batch(batch)
        return await super().commit(batches, wake=wake)

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        for batch in batches:
            self._seen.check_batch(batch)
        if take is not None:
            self._seen.check_take(take)
        return await super().turn(batches, take, wake=wake)

    def _beside(self, inner: Store) -> CheckedStore:
        return PoolsApart(inner, self._seen)
