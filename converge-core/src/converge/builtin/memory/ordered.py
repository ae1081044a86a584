"""Keys in order, for a store in which most keys are added at the end and taken from the front."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice
from operator import lt
from typing import Any

from converge.model.keys import Key

CHUNK = 512
"""Keys of a new chunk; one of twice as many is split. Half and double cost the same in measurements."""

SWEEP = 512
"""Dead keys are swept out when there are more than this, and more than live ones."""


MERGE = 8
"""New keys are merged with all others, not put in one by one, when they are more than one in so many."""


class Ordered:
    """The keys that share a prefix, sorted when somebody looks.

    A deleted key stays where it is until it is passed or swept out; whether it lives is asked of `live`, the store's
    own dictionary. So a put and a delete cost a constant, and a scan costs what it answers. Keys lie in chunks, so that
    one that belongs in the middle moves few others.
    """

    __slots__ = ("_added", "_chunks", "_greatest", "_head", "_live", "_size", "alive")

    def __init__(self, live: dict[Key, Any]) -> None:
        self._live = live
        self._chunks: list[list[Key]] = []
        self._greatest: list[Key] = []  # the last key of each chunk
        self._head = 0  # where the first chunk begins: what lies before has been passed
        self._added: list[Key] = []
        self._size = 0  # keys in chunks, live and dead
        self.alive = 0

    def add(self, key: Key) -> None:
        """Add a key that was not alive; it may lie here dead."""
        self._added.append(key)
        self.alive += 1

    def extend(self, keys: list[Key]) -> None:
        """Add many."""
        self._added += keys
        self.alive += len(keys)

    def died(self) -> int:
        """Count a key that the store has deleted; return how many are alive."""
        self.alive = alive = self.alive - 1
        dead = self._size + len(self._added) - alive
        if dead > SWEEP and dead > alive:
            self._sweep()
        return alive

    def walk(self, after: Key | None = None, *, prefix: Key | None = None) -> Iterator[Key]:
        """Return the live keys greater than `after`, or from `prefix` on, in order, while the store's lock is held."""
        if self._added:
            self._settle()
        if after is not None:
            number = bisect_right(self._greatest, after)
            at = bisect_right(self._chunks[number], after, self._start(number)) if number < len(self._chunks) else 0
        elif prefix is not None:
            number = bisect_left(self._greatest, prefix)
            at = bisect_left(self._chunks[number], prefix, self._start(number)) if number < len(self._chunks) else 0
        else:
            self._pass_dead()
            number, at = 0, self._head
        if number >= len(self._chunks):
            return iter(())
        keys: Iterable[Key] = chain(
            islice(self._chunks[number], at, None), chain.from_iterable(islice(self._chunks, number + 1, None))
        )
        return filter(self._live.__contains__, keys)

    def _start(self, number: int) -> int:
        return 0 if number else self._head

    def _pass_dead(self) -> None:
        """Move the head past dead keys: what was taken from the front is passed once."""
        live = self._live
        while self._chunks:
            chunk, head = self._chunks[0], self._head
            while head < len(chunk) and chunk[head] not in live:
                head += 1
            self._size -= head - self._head
            self._head = head
            if head < len(chunk):
                return
            del self._chunks[0], self._greatest[0]
            self._head = 0

    def _settle(self) -> None:
        """Put what was added in its place; a key that lies here dead is alive again where it lies."""
        added, self._added = self._added, []
        if not all(map(lt, added, islice(added, 1, None))):
            added.sort()
            # Some may have been put, deleted and put again since the last look.
            added = [key for key, _ in groupby(added)]
        if not self._greatest or self._greatest[-1] < added[0]:
            self._append(added)
        elif len(added) > self._size // MERGE:
            self._rebuild(added)
        else:
            for key in added:
                self._insert(key)

    def _append(self, keys: list[Key]) -> None:
        self._size += len(keys)
        for at in range(0, len(keys), CHUNK):
            chunk = keys[at : at + CHUNK]
            self._chunks.append(chunk)
            self._greatest.append(chunk[-1])

    def _insert(self, key: Key) -> None:
        number = bisect_left(self._greatest, key)
        if number == len(self._chunks):
            number -= 1
            self._chunks[number].append(key)
            self._greatest[number] = key
        else:
            chunk = self._chunks[number]
            at = bisect_left(chunk, key, self._start(number))
            if chunk[at] == key:
                return
            chunk.insert(at, key)
        self._size += 1
        if len(self._chunks[number]) > 2 * CHUNK:
            self._split(number)

    def _split(self, number: int) -> None:
        chunk = self._chunks[number]
        if number == 0:
            del chunk[: self._head]
            self._head = 0
        half = len(chunk) // 2
        if half < CHUNK // 2:
            return  # most of it had been passed
        self._chunks[number : number + 1] = [chunk[:half], chunk[half:]]
        self._greatest[number : number + 1] = [chunk[half - 1], chunk[-1]]

    def _sweep(self) -> None:
        added, self._added = self._added, []
        self._rebuild(added)

    def _rebuild(self, added: list[Key]) -> None:
        if self._chunks:
            del self._chunks[0][: self._head]
        keys = list(chain(chain.from_iterable(self._chunks), added))
        keys.sort()  # runs that are in order are merged in one pass
        self._chunks, self._greatest, self._head, self._size = [], [], 0, 0
        self._append([key for key, _ in groupby(filter(self._live.__contains__, keys))])
