"""The store contract: ordered keys, revisions, atomic batches, one take.

A store knows no task. It keeps keys (tuples, `converge.model.keys`) with a value and a revision, applies batches
atomically, and can choose and move the first keys of several ranges in one step. A backend implements `get`, `scan`,
`commit` and `time`; it inherits the rest and overrides what it can do faster.

The clauses, each tested by `converge.testing.StoreContract`:

S-1  get answers in the order of its keys: an `Entry` with the value and revision last written, or None. An empty call
     is legal, here and below.
S-2  scan answers each range with its entries in key order: only keys under the prefix (no neighbour), rests greater
     than `after`, at most `limit`, and fewer only where there are no more. The families of `keys.ALSO` are never
     scanned, counted or taken from: a backend keeps them in no order.
S-3  A batch is all or nothing: if one check or the window fails, nothing of it is written, and the answer is `Conflict`
     with the keys whose checks failed.
S-4  Checks, window and writes of a batch are one atomic step: of two calls that check the same revision (or the same
     absence), one commits.
S-5  The batches of a call are independent: one conflict changes nothing for its neighbours; the answers come in the
     order of the batches.
S-6  Revisions are positive and come from one store-wide sequence: a commit begun after another has ended has a greater
     one, over all keys, handles and restarts of a persistent store. A key that is put by a commit begun after its
     deletion has ended has a greater revision than before.
S-7  A window is compared with store time inside the atomic step; a client's clock plays no part. `Conflict.window` is
     True when it failed.
S-8  time is store time: microseconds, close to UTC, one clock for every client, and it does not run backwards while the
     store is open.
S-9  A wake reaches at least one watcher of its channel that has been told to look (the first item of `watch`), at some
     time after the commit; it is a hint, may be lost or repeated, and is never told before the writes that it announces
     can be read.
S-10 take moves, in one atomic step, the `limit` smallest rests among all keys of its ranges: deletes each key, puts `to
     + rest + tail` with store time in decimal digits as its value, all at the revision that it answers. If a check
     fails it moves nothing and answers `Conflict`.
S-11 Two takes never move the same key; a take may pass over keys that another is taking at that moment.
S-12 What a take checks stays as it was until the take has committed: nobody who changes a checked key can end before a
     take that saw the old one.
S-13 turn applies the batches, then the take, each as `commit` and as S-10 say; the take does not depend on the outcome
     of the batches.
S-14 What was answered as committed stays: it is seen by every later read through any handle, after `reopen`, and, in a
     store that is `PERSISTENT`, after all handles were closed.
S-15 Values and keys come back byte for byte, and type for type, up to the limits; a value over `value_bytes` is refused
     with `ValueTooLarge` before anything is written, never cut.
S-16 `NotApplied` is raised only if nothing of any batch was written; where that is not known, `OutcomeUnknown`.
S-17 A handle from `reopen` works in another thread with another event loop, at the same time. No call keeps the thread
     of its event loop waiting.
S-18 count answers how many keys are under each prefix.
S-19 A handle that is left passes through what its block raised, as it is: exceptions, `SystemExit`, a
     cancellation. It leaves no descriptor open.
S-20 Options that have `must_exist` refuse, if it is true, a place at which nothing was ever stored, with
     `NoSuchStore`, and leave nothing there: core sets it for those who only look.
S-21 Options that have `network` keep the keys of each network apart: a handle sees, counts and changes those of its own
     alone.
S-22 In a process that was forked after a handle was opened, each call of the handle raises `ForkedHandle` at once, and
     the handle of the parent goes on. `Store.__new__` sees to it.
S-23 `note_format` changes no key and may be repeated, also through several handles at once; what `pending` of the
     declaration names is missing: nothing, once the store was opened.
S-24 inspect changes no key and may be called at any time. What it tells of a store that was just opened has the class
     of its `durability`, which is not above the best of the declaration; nothing in it holds a password. `look` of the
     declaration tells the same of a place where nothing was ever stored, and leaves nothing there.
S-25 advance makes every revision that is given later greater than the one that it names, and never less than before; it
     changes no key. Of a store that does not have it, `Unsupported` is raised, and nothing is changed.
S-26 What is committed through `within` is there, whole, when the caller's transaction has committed, and not before;
     where it was rolled back nothing of it ever was. A refused call leaves the transaction as it was.

What a caller must keep to (core does, and the kit checks core): no batch of one call writes a key that another batch of
the call reads or writes; a batch names a key at most once among its puts and deletes; no batch of a turn deletes or
checks a key within its take's ranges or writes a key that its take checks. A backend may therefore decide all batches
of a call as one set. Checks may be shared between batches. Every value is JSON text in UTF-8, or empty, so that an
engine may keep it as text; `after` of a range is a whole rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import Enum
from functools import partial
from typing import Any, NoReturn, Self

import anyio
import attrs

from converge import forks
from converge.contracts._take import inherited_turn
from converge.contracts.inspection import Durability, Finding, Inspection, Level, error, fine, warning
from converge.errors import ForkedHandle, StoreBroken, Unsupported
from converge.model.batch import (
    ABSENT,
    Batch,
    Check,
    Committed,
    Conflict,
    Entry,
    Put,
    Range,
    Take,
    Taken,
    Turned,
    Window,
)
from converge.model.keys import Key, Prefix, Rest

__all__ = [
    "ABSENT", "CONTRACT", "LIMITS", "POLL_SEC", "Batch", "Channel", "Check", "Committed", "Conflict", "Durability",
    "Entry", "Feature", "Finding", "Inspection", "Key", "Level", "Look", "Open", "Prefix", "Put", "Range", "Rest",
    "Store", "StoreBackend", "StoreLimits", "Take", "Taken", "Turned", "Window", "error", "fine", "warning",
]  # fmt: skip

CONTRACT = 2
"""The number of this contract; a backend declares the one it was written for."""

Channel = str
"""What a wake names and a watch listens to: text of at most 120 characters of `[A-Za-z0-9._:-]`."""

POLL_SEC = 1.0
"""How often the inherited `watch` tells its reader to look: the default of `poll_sec`."""


@attrs.frozen(kw_only=True)
class StoreLimits:
    """What one call may carry; the same for every store, so that a program moves between stores unchanged."""

    value_bytes: int = 1_048_576
    """The longest value; of inputs and results that are longer a task carries references."""
    keys: int = 1_000
    """Keys of one `get`, entries of one range of a `scan`."""
    taken: int = 450
    """Keys of one take: the inherited one moves them in one batch, with two checks, a put and a delete each."""
    batches: int = 1_000
    """Batches of one call."""
    batch_ops: int = 2_000
    """Checks, puts and deletes of one batch, together."""
    call_ops: int = 20_000
    """Puts and deletes of one call, over all of its batches; a single batch always fits."""
    call_bytes: int = 16_777_216
    """Bytes of the values that one call puts, over all of its batches, unless a single batch has more."""
    ranges: int = 32
    """Ranges of one take, and of one scan."""


LIMITS = StoreLimits()


class Feature(Enum):
    """What a backend can do; a configuration that needs more is refused at start."""

    SHARED = "shared"  # several processes see one store
    PERSISTENT = "persistent"  # it outlives its processes
    NOTIFIES = "notifies"  # a wake arrives without polling
    TRANSACTIONS = "transactions"  # commits can ride in a transaction of the caller
    ASYNCIO_ONLY = "asyncio-only"  # its driver does not run on trio
    TLS = "tls"  # with its options, all channels of the transport have TLS


def check_page(page: Sequence[Entry], prefix: Prefix, after: Rest | None) -> None:
    """Refuse a page of a scan that makes no progress: a reader that continues after its last key would never end.

    Raises:
        StoreBroken: Its last key is not behind `after` (S-2).
    """
    if page and after is not None and page[-1].key[len(prefix) :] <= after:
        raise StoreBroken(
            "S-2", f"a scan after {after!r} ends with {page[-1].key!r}, so a reader never comes to an end"
        )


class Store(ABC):
    """One handle on a store; used from one thread and event loop, by many tasks at once.

    A handle is entered as what its backend's `open` returned (`async with`), and closed by leaving it. `durability` is
    the class that this store has with the settings found when it was opened.
    """

    durability: Durability = Durability.D0

    is_clock_local = False
    """Whether `time` is answered without waiting for anybody: then core never reckons with an older answer."""

    is_immediate = False
    """Whether no call but `watch` ever waits: then core sets no time limits around them."""

    is_remote = False
    """Whether another process does the work of each call: then core claims a batch ahead while handlers are quick."""

    reopener: Callable[[], AbstractAsyncContextManager[Store]] | None = None
    """How another handle is opened; set by whoever opened this one (see `reopenable`)."""

    shared: object | None = None
    """Core's own: what belongs to this handle while it is open. A backend leaves it alone."""

    def __new__(cls, *_: object, **__: object) -> Self:
        """Make a handle whose calls all raise `ForkedHandle` in a process that is forked from this one."""
        handle = super().__new__(cls)
        forks.watch(handle, _lay_down)
        return handle

    @abstractmethod
    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        """Return each key's entry, or None (S-1).

        Raises:
            StoreUnavailable: The store cannot be reached.
        """

    @abstractmethod
    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        """Return each range's entries in key order (S-2).

        Raises:
            StoreUnavailable: The store cannot be reached.
        """

    @abstractmethod
    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        """Apply each batch whole or not at all, independently of the others; return in their order (S-3 to S-7).

        Args:
            batches: At most `LIMITS.batches`, each of at most `LIMITS.batch_ops` operations; a value has at most
                `LIMITS.value_bytes`.
            wake: Channels of which a watcher is told after the commit (S-9: a hint).

        Raises:
            ValueTooLarge: Nothing was written; which value.
            NotApplied: Nothing of any batch was written; its leaves say why.
            OutcomeUnknown: No answer. Any batch may have been applied: read before you retry.

        Cancellation:
            As for `OutcomeUnknown`.
        """

    @abstractmethod
    async def time(self) -> int:
        """Return store time in microseconds (S-8)."""

    async def retention_time(self) -> int:
        """Return the moment up to which retention may remove what is due: store time, or less for a while after its
        clock was moved forward.
        """
        return await self.time()

    @property
    def clock_ahead_sec(self) -> float:
        """How far store time is knowingly ahead of UTC, in seconds; may be asked from any thread."""
        return 0.0

    async def turn(self, batches: Sequence[Batch], take: Take | None, *, wake: Collection[Channel] = ()) -> Turned:
        """Apply the batches, then the take, in one trip where the backend can (S-10 to S-13).

        Raises:
            As `commit`; on `OutcomeUnknown` the take, too, may have been applied.
        """
        return await inherited_turn(self, batches, take, wake)

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        """Return how many keys are under each prefix (S-18); the inherited one reads them all, a page at a time."""
        totals = []
        for prefix in prefixes:
            total, after = 0, None
            while True:
                (page,) = await self.scan([Range(prefix, after, LIMITS.keys)])
                check_page(page, prefix, after)
                total += len(page)
                if len(page) < LIMITS.keys:
                    break
                after = page[-1].key[len(prefix) :]
            totals.append(total)
        return totals

    async def watch(self, channels: Collection[Channel]) -> AsyncIterator[None]:
        """Yield once when the watch is in force, then after each wake of a channel: a hint to look (S-9).

        Many watches may be open at once. The inherited one wakes its reader each `POLL_SEC`.
        """
        while True:
            yield None
            await anyio.sleep(POLL_SEC)

    async def facts(self) -> Mapping[str, str | int]:
        """Return what an operator wants to know of the store, by name, with units in the names; no passwords.

        The inherited one has nothing to say.
        """
        return {}

    async def inspect(self) -> Inspection | None:
        """Return what the server is, which durability class its present settings give, and what is weak, for `converge
        doctor` (S-24); None, as the inherited one returns, where the store does not tell.

        A setting that loses acknowledged writes silently is not for here: `open` refuses it with `StoreUnsafe`.

        Raises:
            StoreUnavailable: The store cannot be reached.
        """
        return None

    async def advance(self, revision: int) -> None:
        """Give only revisions greater than this one from now on (S-25): `converge store copy` continues the tokens of
        the tasks that it copies. The inherited one refuses, so that a store without it is no destination of a copy.

        Raises:
            Unsupported: The store does not have it.
            StoreError: As `commit`.
        """
        raise Unsupported(f"{type(self).__name__} cannot continue the revisions of another store (Store.advance)")

    async def note_format(self, number: int) -> None:  # noqa: B027  # a store without a schema number of its own has nothing to do
        """Make sure that releases that do not know this format of core's records refuse to open the store; called
        before it is first used, perhaps again and again, and by several processes at once.

        Only a store that keeps a schema number of its own has something to do, since core looks at its own record of
        the format whenever a store is opened. The inherited one does nothing.
        """

    def within(self, connection: Any) -> Store:
        """Return a store whose commits ride in the transaction that is open on a connection of the caller's (S-26):
        `TaskManager(store.within(connection)).submit(...)`.

        A store that declares `Feature.TRANSACTIONS` returns a `converge.contracts.transactions.Within`; which
        connections it takes is its own to say. The inherited one refuses.

        Raises:
            Unsupported: This store has no transactions of its callers'.
            InvalidValue: It is not a connection whose transaction a commit can ride in.
        """
        raise Unsupported(
            f"{type(self).__name__} has no transactions of its callers'; submit after the commit, under a dedup key"
        )

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        """Return another handle on the same store, to be entered in any thread and event loop (S-17).

        The inherited one opens the backend again at the same place; a store that lives in its process overrides it.
        """
        if self.reopener is None:
            raise NotImplementedError(
                f"{type(self).__name__} was not opened with open_store, so it cannot open itself again; override reopen"
            )
        return self.reopener()


def _lay_down(handle: Store) -> None:
    calls = ("get", "scan", "commit", "turn", "time", "retention_time", "count", "facts", "inspect", "advance")
    forks.refuse(handle, *calls)
    handle.watch = _refuse_to_watch  # type: ignore[method-assign]
    handle.reopen = _refuse_to_reopen  # type: ignore[method-assign]


def _refuse_to_reopen() -> NoReturn:
    raise ForkedHandle


async def _refuse_to_watch(channels: Collection[Channel]) -> AsyncIterator[None]:
    raise ForkedHandle
    yield


@asynccontextmanager
async def reopenable(open: Callable[[], AbstractAsyncContextManager[Store]]) -> AsyncIterator[Store]:
    """Open a handle that can open others like it: what `open_store` and the kit give."""
    async with open() as store:
        store.reopener = partial(reopenable, open)
        yield store


Open = Callable[[str, Any], AbstractAsyncContextManager[Store]]
"""`open(url, options)`: an async context manager of a Store. Leaving it closes the store; it may be entered once."""


Pending = Callable[[str, Any], Awaitable[Sequence[str]]]
"""`pending(url, options)`: what opening the store would add."""


Look = Callable[[str, Any], Awaitable[Inspection]]
"""`look(url, options)`: what the server is, whether or not anything was stored on it."""


@attrs.frozen(kw_only=True)
class StoreBackend:
    """The declaration of a store: what a plugin's `converge_stores` returns.

    Attributes:
        name: What users type; lower case, `[a-z][a-z0-9-]*`.
        schemes: URL schemes that mean this backend.
        options: An attrs class: every option typed, defaulted, bounded, documented. The whole URL is passed apart from
            them. Two are set by core where they are there: `network` (text), the network whose keys to see (S-21; a
            store without it keeps a single one), and `must_exist` (bool), for who only looks (S-20).
        open: Called with the URL and an instance of `options`.
        contract: The number of the contract it was written for (`CONTRACT`).
        features: What it can do.
        durability: The best class that it can have; `Store.durability` says what an opened store has.
        pending: For a store with tables or the like: what opening it would add to those that are there, a line each,
            found without changing anything. Called with the URL and an instance of `options`.
        look: For a store on a server: what the server is (as `Store.inspect`), found without opening or changing
            anything, so that `converge doctor` can tell of it before anything was stored. Called like `pending`; raises
            what `open` raises where the server cannot be reached or used.
    """

    name: str
    schemes: tuple[str, ...]
    options: type[Any]
    open: Open
    contract: int = attrs.field()
    features: frozenset[Feature] = frozenset()
    durability: Durability = Durability.D0
    pending: Pending | None = None
    look: Look | None = None
