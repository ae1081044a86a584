"""Reading what stands under a prefix, page by page: the one place that goes on after a page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Self, TypeVar

from anyio.lowlevel import checkpoint

from converge.contracts.store import LIMITS, Entry, Key, Prefix, Range, Rest, Store, check_page

T = TypeVar("T")

UNMOVED_PAGES = 10
"""Pages that one call looks through for something to move: what cannot be moved may fill whole pages."""


class Pages:
    """Iterates over the entries under a prefix, a page at a time; no page is empty.

    It is no generator: whoever leaves early has nothing to close, and a page that failed can be asked for again.

    Attributes:
        after: The rest of the last key that was read; None before the first page.
        is_last: Whether the last page was the end, so that another one need not be asked for.
    """

    __slots__ = ("_is_begun", "_prefix", "_size", "_store", "after", "is_last")

    def __init__(self, store: Store, prefix: Prefix, *, after: Rest | None = None, size: int = LIMITS.keys) -> None:
        self._store, self._prefix, self._size = store, prefix, size
        self.after, self.is_last, self._is_begun = after, False, False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Entry]:
        """Read the next page.

        Raises:
            StoreError: As `Store.scan`; the same page is read next.
        """
        if self.is_last:
            raise StopAsyncIteration
        if self._is_begun:
            await checkpoint()  # a store that answers at once never waits: others run, and whoever asks is cancelled
        page = await self.read()
        if not page:
            raise StopAsyncIteration
        return page

    async def read(self) -> Sequence[Entry]:
        """Read the next page, which may be empty.

        Raises:
            StoreError: As `Store.scan`; the same page is read next.
        """
        self._is_begun, after = True, self.after  # two who share the pages may read at once
        (page,) = await self._store.scan([Range(self._prefix, after, self._size)])
        check_page(page, self._prefix, after)
        if page:
            self.after = page[-1].key[len(self._prefix) :]
        self.is_last = len(page) < self._size
        return page

    async def move(self, move: Callable[[Sequence[Entry]], Awaitable[int]]) -> int:
        """Let `move` take entries away, page after page until it did; return how many. The next call begins with the
        first page again, but where nothing of many pages could be moved it goes on behind them.

        Raises:
            StoreError: As `Store.scan`, and as `move`.
        """
        for _ in range(UNMOVED_PAGES):
            page = await self.read()
            moved = await move(page) if page else 0
            if moved or self.is_last:
                self.after, self.is_last = None, False
                return moved
        return 0


async def read_all(store: Store, prefix: Prefix) -> list[Entry]:
    """Return all entries under a prefix; what changes meanwhile is seen or not.

    Raises:
        StoreError: As `Store.scan`.
    """
    return [entry async for page in Pages(store, prefix) for entry in page]


async def get_all(store: Store, keys: Sequence[Key]) -> list[Entry | None]:
    """Return the entries of the keys, in their order, in as few calls as take them.

    Raises:
        StoreError: As `Store.get`.
    """
    found: list[Entry | None] = []
    for some in parts(keys, LIMITS.keys):
        found += await store.get(some)
    return found


async def count_all(store: Store, prefixes: Sequence[Prefix]) -> list[int]:
    """Return how many keys are under each prefix, in as few calls as take them.

    Raises:
        StoreError: As `Store.count`.
    """
    totals: list[int] = []
    for some in parts(prefixes, LIMITS.ranges):
        totals += await store.count(some)
    return totals


def parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Cut a sequence into parts of at most `size` items: a call of a store takes so many."""
    return (items[at : at + size] for at in range(0, len(items), size))
