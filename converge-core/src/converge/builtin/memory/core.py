"""The data of one memory store: a dictionary of all keys, and an index for those with an order. The caller locks it."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat

from converge.builtin.memory.ordered import Ordered
from converge.contracts.store import Batch, Committed, Conflict, Key, Prefix, Rest, Take, Taken, Window
from converge.model.keys import ALSO, INT, Family

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_Check = tuple[Key, int]
_Entry = tuple[bytes, int]
"""Value and revision alone: such a tuple the garbage collector passes over, and there may be millions."""


def _depth(family: Family) -> int:
    """Return how many leading parts keep a family's keys apart: those before the first integer, or all but one."""
    parts = list(family.parts.values())
    return parts.index(INT) if INT in parts else max(0, len(parts) - 1)


class Core:
    """What the handles of one store share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.entries: dict[Key, _Entry] = {}
        self.revision = 0
        # For each family with an order: how deep its keys are kept apart, and an index for each beginning that has
        # keys.
        self._families: dict[Family, tuple[int, dict[Prefix, Ordered]]] = {}
        self._offset = time.time_ns() - time.clock_gettime_ns(_CLOCK)

    def now(self) -> int:
        """Store time: the wall clock of the moment when the store was made, and monotonic from there."""
        return (time.clock_gettime_ns(_CLOCK) + self._offset) // 1_000

    # Reads.

    def walk(self, prefix: Prefix, after: Rest | None) -> Iterator[Key]:
        """Return the live keys under the prefix whose rest is greater than `after`, in order."""
        family = prefix[0]
        depth, indexes = self._families.get(family, (0, {}))
        bound = None if after is None else prefix + after
        length = len(prefix)
        if length - 1 == depth:
            index = indexes.get(prefix[1:])
            return iter(()) if index is None else index.walk(bound)
        if length - 1 > depth:
            index = indexes.get(prefix[1 : depth + 1])
            return iter(()) if index is None else _under(prefix, index.walk(bound, prefix=prefix))
        beginnings = sorted(parts for parts in indexes if parts[: length - 1] == prefix[1:])
        if bound is not None:
            beginnings = [parts for parts in beginnings if (family, *parts) >= bound[: depth + 1]]
        return chain.from_iterable(indexes[parts].walk(bound) for parts in beginnings)

    def count(self, prefix: Prefix) -> int:
        """Return how many keys are under the prefix."""
        depth, indexes = self._families.get(prefix[0], (0, {}))
        given = prefix[1:]
        if len(given) > depth:
            return sum(1 for _ in self.walk(prefix, None))
        if len(given) == depth:
            index = indexes.get(given)
            return 0 if index is None else index.alive
        return sum(index.alive for parts, index in indexes.items() if parts[: len(given)] == given)

    # Writes.

    def apply(self, batches: Sequence[Batch]) -> list[Committed | Conflict]:
        """Apply each batch whole or not at all. Written for speed, in one piece: it is what a submit and a finish cost.

        A check that batches share is compared once: no batch of a call writes a key that another one checks.
        """
        self.revision = revision = self.revision + 1
        entries, families, committed = self.entries, self._families, Committed(revision)
        find, pop = entries.get, entries.pop
        outcomes: list[Committed | Conflict] = []
        shared = also_shared = None
        for checks, puts, deletes, window in batches:
            for check in checks:
                if check is shared or check is also_shared:
                    continue
                entry = find(check[0])
                if (0 if entry is None else entry[1]) != check[1]:
                    break
            else:
                if window is None or self._is_inside(window):
                    for key in deletes:
                        if pop(key, None) is not None and (family := key[0]) not in ALSO:
                            depth, indexes = families[family]
                            beginning = key[1 : depth + 1]
                            if not indexes[beginning].died():
                                del indexes[beginning]  # its dead keys go with it
                    for key, value in puts:
                        if key[0] not in ALSO and key not in entries:
                            self._index(key).add(key)
                        entries[key] = (value, revision)
                    outcomes.append(committed)
                    if len(checks) > 1:
                        also_shared, shared = checks[-2:]
                    continue
            outcomes.append(Conflict(self._failed(checks), window is not None and not self._is_inside(window)))
        return outcomes

    def take(self, take: Take) -> Taken | Conflict:
        """Move the smallest rests of the ranges."""
        if failed := self._failed(take.checks):
            return Conflict(failed)
        chosen, heads = self._choose(take)
        now = self.now()
        if not chosen:
            return Taken(0, (), (), heads, now)
        self.revision = revision = self.revision + 1
        skip, to, tail = len(take.ranges[0].prefix), take.to, take.tail
        rests = [key[skip:] for key in chosen]
        depth, indexes = self._families[chosen[0][0]]
        for key in chosen:
            del self.entries[key]
            beginning = key[1 : depth + 1]
            if not indexes[beginning].died():
                del indexes[beginning]
        self._put_all([to + rest + tail for rest in rests], to, str(now).encode(), revision)
        return Taken(revision, rests, self._also(take.also, [rest[-1] for rest in rests]), heads, now)

    def _also(self, families: Sequence[Family], ids: list[bytes]) -> list[Sequence[bytes | None]]:
        find = self.entries.get
        columns = [[entry and entry[0] for entry in map(find, zip(repeat(family), ids))] for family in families]
        return list(zip(*columns, strict=True)) if columns else [()] * len(ids)

    def _failed(self, checks: Sequence[_Check]) -> tuple[Key, ...]:
        find = self.entries.get
        return tuple(key for key, expected in checks if (0 if (entry := find(key)) is None else entry[1]) != expected)

    def _is_inside(self, window: Window) -> bool:
        now = self.now()
        return (window.at_least is None or now >= window.at_least) and (window.at_most is None or now <= window.at_most)

    def _index(self, key: Key) -> Ordered:
        family = key[0]
        depth, indexes = self._families.get(family) or self._family(family)
        beginning = key[1 : depth + 1]
        index = indexes.get(beginning)
        if index is None:
            index = indexes[beginning] = Ordered(self.entries)
        return index

    def _put_all(self, keys: list[Key], prefix: Prefix, value: bytes, revision: int) -> None:
        """Put many keys of one prefix with one value."""
        entries, (depth, _) = self.entries, self._family(prefix[0])
        if len(prefix) <= depth or not entries.keys().isdisjoint(keys):
            for key in keys:
                if key not in entries:
                    self._index(key).add(key)
                entries[key] = (value, revision)
            return
        self._index(keys[0]).extend(keys)
        entries.update(dict.fromkeys(keys, (value, revision)))

    def _family(self, family: Family) -> tuple[int, dict[Prefix, Ordered]]:
        known = self._families.get(family)
        if known is None:
            known = self._families[family] = (_depth(family), {})
        return known

    def _choose(self, take: Take) -> tuple[list[Key], list[Rest | None]]:
        """Return the first keys by their rests over all ranges, and the head that is left of each range."""
        walks = [self.walk(range_.prefix, range_.after) for range_ in take.ranges]
        skip, limit = len(take.ranges[0].prefix), take.limit
        if len(walks) == 1:
            chosen = list(islice(walks[0], limit + 1))
            return chosen[:limit], [chosen[limit][skip:] if len(chosen) > limit else None]
        heap = [(key[skip:], number, key) for number, walk in enumerate(walks) if (key := next(walk, None)) is not None]
        heapq.heapify(heap)
        chosen = []
        while heap and len(chosen) < limit:
            _, number, key = heap[0]
            chosen.append(key)
            following = next(walks[number], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following[skip:], number, following))
        heads: list[Rest | None] = [None] * len(walks)
        for rest, number, _ in heap:
            heads[number] = rest
        return chosen, heads


def _under(prefix: Prefix, keys: Iterator[Key]) -> Iterator[Key]:
    length = len(prefix)
    for key in keys:
        if key[:length] != prefix:
            return
        yield key
