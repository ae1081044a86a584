"""Keys in order, for a store in which most keys are added at the end and taken from the front."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Container, Iterator

from converge.model.keys import Key

FEW = 32
"""Up to so many new keys are put in their places one by one; more are sorted in."""

COMPACT = 512
"""Dead keys are swept out when there are more than this, and more than live ones."""


class Ordered:
    """The keys that share a prefix, sorted when somebody looks.

    A deleted key stays in the list until it is passed or swept out; whether it lives is asked of `live`, the store's own dictionary. So a put and a
    delete cost a constant, and a scan costs what it answers.
    """

    __slots__ = ("_added", "_head", "_items", "_live", "_present", "alive")

    def __init__(self, live: Container[Key]) -> None:
        self._live = live
        self._items: list[Key] = []
        self._head = 0
        self._added: list[Key] = []
        self._present: set[Key] = set()
        self.alive = 0
        """How many of the keys live; the store counts, since it knows what a put and a delete did."""

    def add(self, key: Key) -> None:
        """Add a key, which may have been here before."""
        if key not in self._present:
            self._present.add(key)
            self._added.append(key)

    def walk(self, after: Key | None, *, prefix: Key | None = None) -> Iterator[Key]:
        """Yield the live keys greater than `after`, or from `prefix` on, in order. The store's lock is held meanwhile."""
        self._settle()
        items, live = self._items, self._live
        if after is not None:
            at = bisect_right(items, after, self._head)
        elif prefix is not None:
            at = bisect_left(items, prefix, self._head)
        else:
            at = self._pass_dead()
        for index in range(at, len(items)):
            key = items[index]
            if key in live:
                yield key

    def _pass_dead(self) -> int:
        """Move the head past dead keys: what was taken from the front is passed once."""
        items, head = self._items, self._head
        while head < len(items) and items[head] not in self._live:
            self._present.discard(items[head])
            head += 1
        self._head = head
        if head > COMPACT and head * 2 > len(items):
            del items[:head]
            self._head = 0
        return self._head

    def _settle(self) -> None:
        added = self._added
        if not added:
            self._compact()
            return
        self._added = []
        added.sort()
        items = self._items
        if not items or items[-1] < added[0]:
            items += added
        elif len(added) <= FEW:
            for key in added:
                insort(items, key, self._head)
        else:
            if self._head:
                del items[: self._head]
                self._head = 0
            items += added
            items.sort()  # two runs: merged in one pass
        self._compact()

    def _compact(self) -> None:
        dead = len(self._items) - self._head - self.alive
        if dead > COMPACT and dead > self.alive:
            self._items = [key for key in self._items[self._head :] if key in self._live]
            self._head = 0
            self._present = set(self._items)
