"""The base of every clause's tests: fixtures, keys, small helpers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from enum import Enum
from functools import partial
from typing import Any, ClassVar

import anyio
import anyio.to_thread
import pytest

from converge.contracts.store import (
    ABSENT,
    LIMITS,
    Batch,
    Channel,
    Check,
    Committed,
    Conflict,
    Durability,
    Entry,
    Feature,
    Inspection,
    Key,
    Put,
    Range,
    Store,
    StoreBackend,
    Take,
    Taken,
    Window,
    reopenable,
)  # fmt: skip
from converge.model.keys import HELD, LEASE, READY, Family
from converge.testing._store.limits import CallLimit, TimeLimited, clause_of, limited
from converge.testing._store.loops import LoopCase
from converge.testing.clauses import expect
from converge.testing.fixtures import scaled

QUICK_EXAMPLES, QUICK_ROUNDS = 8, 6
"""What `--quick` leaves of the histories and repeats: enough that a mutant of `tests/kit` is still found by most
runs.
"""

Opening = Callable[[], AbstractAsyncContextManager[Store]]


class Cut(Enum):
    """Where a connection breaks in the next call of a store."""

    BEFORE = "before the store has the request"
    AFTER = "after the store has carried out the request, before the reply"


class StoreCase(TimeLimited, LoopCase):
    """One backend under test. An author sets `backend`, and gives the fixtures `options` and `url` where the defaults
    are not enough.

    Attributes:
        backend: The declaration, as `converge_stores` returns it.
        inherited_turn: True runs everything with the `turn`, `count` and `watch` that every store inherits, instead of
            the backend's own.
        loops: Event loops to run on; trio is left out where the backend is ASYNCIO_ONLY.
        examples: How many random histories are compared with the model; like `rounds`, less with pytest's option
            `--quick`.
        call_limit_sec: How long a call of the store may take before its clause counts as broken.
        shrinks: Whether a history that fails is made shorter, which takes some time.
        rounds: How often each race is repeated.
        near_sec: How long a hint may take: seconds, since a loaded machine is slow and polling stores look each second.
    """

    backend: ClassVar[StoreBackend]
    inherited_turn: ClassVar[bool] = False
    examples: ClassVar[int] = 25
    shrinks: ClassVar[bool] = True
    rounds: ClassVar[int] = 20
    near_sec: ClassVar[float] = 5.0
    call_limit_sec: ClassVar[float] = 30.0

    @pytest.fixture(autouse=True)
    def quick(self, request: pytest.FixtureRequest) -> None:
        """With `--quick`, fewer histories and repeats; the clauses stay all."""
        examples = scaled(request.config, self.examples, QUICK_EXAMPLES)
        rounds = scaled(request.config, self.rounds, QUICK_ROUNDS)
        vars(self).update(examples=examples, rounds=rounds)

    @classmethod
    def is_persistent(cls) -> bool:
        """Return whether what was written outlives all handles."""
        return Feature.PERSISTENT in cls.backend.features

    @pytest.fixture
    def options(self) -> Any:
        """Return an instance of `backend.options` that names a place which no other test uses; several opens within a
        test name the same place.
        """
        return self.backend.options()

    @pytest.fixture
    def url(self) -> str:
        """Return the URL to open; an author overrides it where the place is in the URL."""
        return f"{self.backend.schemes[0]}:"

    @pytest.fixture
    def cut(self) -> Callable[[Cut], None] | None:
        """Breaks the connection of the store's next call; None where the author has no means to do so (an embedded
        store has no connection).
        """
        return None

    @pytest.fixture
    def drop_unsynced(self) -> Callable[[], None] | None:
        """Leaves the test's place as a power loss of its host would: of what was written, what was synced. It is called
        when the process that wrote is dead. None where the author has no means to do so: class D2 is then not tried.
        """
        return None

    @pytest.fixture
    def limit(self, request: pytest.FixtureRequest) -> CallLimit:
        """What goes around each call of the store, so that it has to end in time."""
        return CallLimit(clause_of(request), self.call_limit_sec)

    @pytest.fixture
    def opening(self, url: str, options: Any, monkeypatch: pytest.MonkeyPatch, limit: CallLimit) -> Opening:
        """Opens the store; may be called several times. Each of its calls has to end in time. The inherited watch polls
        often, so that nobody waits for it; a store that says NOTIFIES has to do so without.
        """
        if self.inherited_turn or Feature.NOTIFIES not in self.backend.features:
            monkeypatch.setattr("converge.contracts.store.POLL_SEC", 0.05)

        def open_store() -> AbstractAsyncContextManager[Store]:
            handle = limited(partial(reopenable, partial(self.backend.open, url, options)), limit)
            return inheriting(handle) if self.inherited_turn else handle

        return open_store

    @pytest.fixture
    async def store(self, opening: Opening) -> AsyncIterator[Store]:
        """One handle on an empty store."""
        async with opening() as store:
            yield store


class Inheriting(Store):
    """A store reduced to its four required methods: everything else is inherited from `Store`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    @property
    def durability(self) -> Durability:  # type: ignore[override]  # the wrapped store decides, so it is read-only here
        return self.inner.durability

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        return await self.inner.get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        return await self.inner.scan(ranges)

    async def commit(
        self, batches: Sequence[Batch], *, wake: Collection[Channel] = ()
    ) -> Sequence[Committed | Conflict]:
        return await self.inner.commit(batches, wake=wake)

    async def time(self) -> int:
        return await self.inner.time()

    async def advance(self, revision: int) -> None:
        await self.inner.advance(revision)

    async def inspect(self) -> Inspection | None:
        return await self.inner.inspect()

    def within(self, connection: Any) -> Store:
        return self.inner.within(connection)

    def reopen(self) -> AbstractAsyncContextManager[Store]:
        return inheriting(self.inner.reopen())


@asynccontextmanager
async def inheriting(reopenable: AbstractAsyncContextManager[Store]) -> AsyncIterator[Store]:
    """Open a store and hide what it overrides of the inherited methods."""
    async with reopenable as store:
        yield Inheriting(store)


# Keys. Every test has a store of its own, so the same ones serve all.


def ident(number: int) -> bytes:
    """Return an id; greater numbers sort later."""
    return number.to_bytes(16, "big")


def lane(number: int) -> bytes:
    """Return a lane's hash; lanes of neighbouring numbers are neighbours in key order."""
    return b"\xab" * 14 + number.to_bytes(2, "big")


def ready(lane_number: int, rank: int, number: int) -> Key:
    return READY(lane(lane_number), rank, ident(number))


LEASE_ID, OTHER_LEASE_ID = ident(0xA1), ident(0xA2)
NONCE, OTHER_NONCE = ident(0xB1), ident(0xB2)


def take_of(
    lanes: Sequence[int],
    limit: int,
    *,
    nonce: bytes = NONCE,
    lease: bytes = LEASE_ID,
    checks: Sequence[Check] = (),
    also: Sequence[Family] = (),
) -> Take:
    """Return the take that a claim is made of: from lanes of `ready` to `held`."""
    return Take([Range(READY(lane(number))) for number in lanes], limit, HELD(lease), (nonce,), checks, also)


# Small calls.


async def commit(
    store: Store,
    *,
    checks: Sequence[Check] = (),
    puts: Sequence[Put] = (),
    deletes: Sequence[Key] = (),
    window: Window | None = None,
) -> Committed | Conflict:
    """Commit one batch."""
    (outcome,) = await store.commit([Batch(checks, puts, deletes, window)])
    return outcome


async def put(store: Store, *keys: Key, value: bytes = b"") -> int:
    """Put keys unconditionally, in calls of at most 1,000; return the revision of the last call."""
    revision = 0
    for at in range(0, len(keys), 1_000):
        outcome = await commit(store, puts=[(key, value) for key in keys[at : at + 1_000]])
        revision = committed("S-3", outcome, "a batch without checks and window").revision
    return revision


async def get(store: Store, key: Key) -> Entry | None:
    (entry,) = await store.get([key])
    return entry


async def scan(store: Store, key_range: Range) -> list[Entry]:
    (page,) = await store.scan([key_range])
    return list(page)


async def keys_under(store: Store, prefix: Key, *, page: int = LIMITS.keys) -> list[Key]:
    """Return all keys under a prefix, read in pages."""
    found: list[Key] = []
    after = None
    for _ in range(10_000 // page + 1):
        entries = await scan(store, Range(prefix, after, page))
        found += [entry.key for entry in entries]
        if len(entries) < page:
            return found
        after = entries[-1].key[len(prefix) :]
    raise AssertionError(f"more than 10,000 keys under {prefix}: a scan does not come to an end")


async def take(store: Store, wanted: Take) -> Taken | Conflict:
    turned = await store.turn([], wanted)
    expect("S-13", turned.taken is not None, "a turn with a take answered None for it")
    assert turned.taken is not None  # for the type checker
    return turned.taken


def committed(clause: str, outcome: Committed | Conflict, what: str) -> Committed:
    if isinstance(outcome, Conflict):
        expect(clause, False, f"{what} was refused: {outcome}")
        raise AssertionError  # for the type checker
    expect("S-6", outcome.revision > 0, f"the revision of a commit is {outcome.revision}, not positive")
    return outcome


def refused(clause: str, outcome: Committed | Conflict, what: str) -> Conflict:
    if not isinstance(outcome, Conflict):
        expect(clause, False, f"{what} was committed: {outcome}")
        raise AssertionError  # for the type checker
    return outcome


def taken(clause: str, outcome: Taken | Conflict, what: str) -> Taken:
    if isinstance(outcome, Conflict):
        expect(clause, False, f"{what} was refused: {outcome}")
        raise AssertionError  # for the type checker
    return outcome


async def in_other_thread(work: Callable[[], Awaitable[None]], loop: str) -> None:
    """Run a coroutine function in another thread, on an event loop of its own."""
    await anyio.to_thread.run_sync(lambda: anyio.run(work, backend=loop))


__all__ = [
    "ABSENT", "LEASE", "LEASE_ID", "LIMITS", "NONCE", "OTHER_LEASE_ID", "OTHER_NONCE", "Batch", "Cut", "Opening",
    "StoreCase", "Window",
    "commit", "committed", "get", "ident", "in_other_thread", "keys_under", "lane", "put", "ready", "refused", "scan",
    "take", "take_of", "taken",
]  # fmt: skip
