"""Groups reads of many callers: requests made during one call go out in the next one. Keeps what is needed again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar, cast

import anyio
from anyio.lowlevel import checkpoint

from converge.contracts.store import LIMITS, Entry, Key, Prefix, Range, Store, check_page
from converge.services.store.limits import LIMIT
from converge.services.store.pages import Pages

T = TypeVar("T")


READ_PAGE = 64
"""Entries of a prefix that a round reads: most have fewer, and a reply has room for all prefixes of a call."""

FEW = 4
"""Keys of one caller of a round."""


class Ask(Generic[T]):
    """One caller's request; `answer` is what came of it, or `error`."""

    __slots__ = ("answer", "done", "error", "request")

    def __init__(self, request: T) -> None:
        self.request = request
        self.answer: object = None
        self.error: BaseException | None = None
        self.done = False


class Rounds(Generic[T]):
    """Hands requests to `run` in rounds, one at a time; `run` sets `done`, and what is not done goes into the next.

    With `is_whole` a round that was begun ends though its caller is cancelled: what others asked may be half written.
    """

    def __init__(
        self, run: Callable[[Sequence[Ask[T]]], Awaitable[None]], most: int, *, is_whole: bool = False
    ) -> None:
        self._run, self._most, self._is_whole = run, most, is_whole
        self._waiting: list[Ask[T]] = []
        self._turn = anyio.Lock()

    async def ask(self, request: T) -> object:
        """Return the result of the request.

        Raises:
            Exception: As `run` has said, or raised.
        """
        ask = Ask(request)
        self._waiting.append(ask)
        try:
            await checkpoint()  # who else asks in this step of the loop goes along
            while not ask.done:
                async with self._turn:
                    if not ask.done:
                        await self._next()
        except BaseException:
            self._leave(ask)
            raise
        if ask.error is not None:
            raise ask.error
        return ask.answer

    async def _next(self) -> None:
        some, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        try:
            with anyio.CancelScope(shield=self._is_whole):
                await self._run(some)
        except Exception as error:
            for one in some:
                one.error, one.done = (None, one.done) if one.done else (error, True)
        finally:
            self._waiting = [one for one in some if not one.done] + self._waiting

    def _leave(self, ask: Ask[T]) -> None:
        """Ask no longer: who leaves is told that nothing was changed, unless a round has begun with what he asked."""
        if ask in self._waiting:
            self._waiting.remove(ask)
        elif self._is_whole and (limit := LIMIT.get()) is not None:
            limit.is_written = True


class Reads:
    """Reads keys and prefixes for all callers of one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._gets = Rounds(self._get, LIMITS.keys // FEW)
        self._scans = Rounds(self._scan, LIMITS.ranges)

    async def get(self, key: Key) -> Entry | None:
        """Return the key's entry.

        Raises:
            StoreError: As `Store.get`.
        """
        (entry,) = await self.few(key)
        return entry

    async def few(self, *keys: Key) -> Sequence[Entry | None]:
        """Return the entries of at most `FEW` keys, in their order, read in one step.

        Raises:
            StoreError: As `Store.get`.
        """
        assert len(keys) <= FEW, "a call of a store takes so many of each caller"
        return cast(Sequence[Entry | None], await self._gets.ask(keys))

    async def all(self, prefix: Prefix) -> list[Entry]:
        """Return all entries under a prefix; what changes meanwhile is seen or not.

        Raises:
            StoreError: As `Store.scan`.
        """
        found = list(cast(Sequence[Entry], await self._scans.ask(prefix)))
        if len(found) == READ_PAGE:
            after = found[-1].key[len(prefix) :]
            found += [entry async for page in Pages(self.store, prefix, after=after) for entry in page]
        return found

    async def _get(self, asks: Sequence[Ask[tuple[Key, ...]]]) -> None:
        entries = iter(await self.store.get([key for ask in asks for key in ask.request]))
        for ask in asks:
            ask.answer, ask.done = list(islice(entries, len(ask.request))), True

    async def _scan(self, asks: Sequence[Ask[Prefix]]) -> None:
        pages = await self.store.scan([Range(ask.request, None, READ_PAGE) for ask in asks])
        for ask, page in zip(asks, pages, strict=True):
            check_page(page, ask.request, None)
            ask.answer, ask.done = page, True


class Recent(Generic[T]):
    """Values that were read. Those put first go when there is no room; whoever takes one has it alone."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._values: dict[bytes, tuple[T, int]] = {}

    def put(self, key: bytes, value: T, weight: int) -> None:
        """Keep the value in place of an older one, unless it alone is too much."""
        self.take(key)
        if weight > self._most:
            return
        while self._left < weight:
            self.take(next(iter(self._values)))
        self._values[key] = value, weight
        self._left -= weight

    def take(self, key: bytes) -> T | None:
        """Return the value, which is kept no longer; None if there is none."""
        found = self._values.pop(key, None)
        if found is None:
            return None
        self._left += found[1]
        return found[0]

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
        self._left = self._most
