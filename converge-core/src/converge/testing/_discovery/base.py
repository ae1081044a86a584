"""The base of the discovery tests: processes on one place, and what an author may set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar

import anyio
import pytest

from converge.contracts.discovery import Changes, Discovery, DiscoveryBackend, Sighting
from converge.contracts.store import Store
from converge.errors import ChannelError, StoreError
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.services.store.opening import open_store
from converge.testing._store.limits import CallLimit, TimeLimited, clause_of
from converge.testing._store.loops import LoopCase
from converge.testing._task.base import let_pass
from converge.testing.clauses import expect, expect_equal
from converge.testing.faults import FaultPlan, FaultyStore
from converge.testing.fixtures import scaled

POLL_SEC = 0.05
LEASE_SEC = 15.0
"""So long that it ends in no test by itself, however slow the machine."""
PATIENCE_SEC = 10.0
QUICK_EXAMPLES = 5
ANSWERED = ("publish", "withdraw", "snapshot")
"""Calls that have to answer; a watch waits."""
TRIES = 500
"""How often a call that fails by a fault is repeated: many times more than the faults of any seed last."""

Opening = Callable[[], AbstractAsyncContextManager[Store]]
Configure = Callable[[int], Sequence[Sighting]]


class Process:
    """One process: a handle on the store that its node would have, and the discovery on it."""

    def __init__(self, discovery: Discovery, store: Store, handle: StoreHandle) -> None:
        self.discovery, self.store, self.handle = discovery, store, handle

    async def snapshot(self) -> dict[str, Sighting]:
        """Return what is known now, by id; each is there once."""
        found = await self.discovery.snapshot()
        expect(
            "D-1",
            len({one.id for one in found}) == len(found),
            f"an id comes twice in {sorted(one.id for one in found)}",
        )
        return {one.id: one for one in found}


class DiscoveryCase(TimeLimited, LoopCase):
    """One backend under test.

    Attributes:
        backend: The declaration, as `converge_discoveries` returns it.
        loops: Event loops to run on; trio is left out where the backend is ASYNCIO_ONLY.
        examples: How many random histories are compared with the model; fewer with pytest's option `--quick`.
        near_sec: How long a change may take to be told to a watcher.
        call_limit_sec: How long a call may take before its clause counts as broken.
    """

    backend: ClassVar[DiscoveryBackend]
    examples: ClassVar[int] = 20
    near_sec: ClassVar[float] = PATIENCE_SEC
    call_limit_sec: ClassVar[float] = 30.0
    _limit: CallLimit

    @pytest.fixture(autouse=True)
    def quick(self, request: pytest.FixtureRequest) -> None:
        """With `--quick`, fewer histories; the clauses stay all."""
        vars(self).update(
            examples=scaled(request.config, self.examples, QUICK_EXAMPLES),
            _limit=CallLimit(clause_of(request), self.call_limit_sec),
        )

    # What an author may override.

    @pytest.fixture
    def options(self) -> Any:
        """Return an instance of `backend.options` that names a place which no other test uses."""
        return self.backend.options()

    @pytest.fixture
    def configured(self) -> list[Sighting]:
        """Return what a backend without publishing must say with these options."""
        return []

    @pytest.fixture
    def configure(self) -> Configure | None:
        """Return what lets the place of `options` name another list of so many, for a backend without publishing: it
        returns what must be said from then on. None: nothing changes the list.
        """
        return None

    @pytest.fixture
    async def opening(self) -> AsyncIterator[Opening]:
        """Opens handles on one store, for backends that use the node's; by default one in memory."""
        async with open_store("memory:") as store:
            yield store.reopen

    async def die(self, process: Process) -> None:
        """Let the process have died long enough ago that what it published is gone: here, by the end of its lease,
        which nobody has swept.

        An author overrides it whose discovery has a liveness of its own.
        """
        lease = process.handle.lease_opened
        if lease is not None:
            lease.abandon()
            await let_pass(process.store, lease.id)

    # What the tests stand on.

    @asynccontextmanager
    async def process(self, opening: Opening, options: Any, plan: FaultPlan | None = None) -> AsyncIterator[Process]:
        """Start a process; leaving it ends it as a node ends, with its lease."""
        async with opening() as inner:
            store = inner if plan is None else FaultyStore(inner, plan)
            handle = StoreHandle.of(store, lease_settings=LeaseSettings(lease_sec=LEASE_SEC))
            try:
                async with self.backend.open(options, store=store, poll_sec=POLL_SEC) as discovery:
                    self._limit.put_on(discovery, ANSWERED)
                    yield Process(discovery, store, handle)
            finally:
                if plan is not None:
                    plan.is_calm = True
                await handle.close()

    @asynccontextmanager
    async def three(
        self, opening: Opening, options: Any, plan: FaultPlan | None = None
    ) -> AsyncIterator[list[Process]]:
        """Start three processes on one place."""
        async with (
            self.process(opening, options, plan) as a,
            self.process(opening, options) as b,
            self.process(opening, options) as c,
        ):
            yield [a, b, c]

    async def soon(
        self, clause: str, ask: Callable[[], Awaitable[dict[str, Sighting]]], wanted: Sequence[Sighting], what: str
    ) -> None:
        """Expect that what is asked becomes what is wanted."""
        by_id, found = {one.id: one for one in wanted}, await ask()
        with anyio.move_on_after(self.near_sec):
            while found != by_id:
                await anyio.sleep(POLL_SEC)
                found = await ask()
        expect_equal(clause, found, by_id, what)

    def said(self, configured: Iterable[Sighting], *published: Sighting) -> dict[str, Sighting]:
        """Return what must be known, by id."""
        return {one.id: one for one in (published if self.backend.publishes else configured)}


def applied(known: dict[str, Sighting], changes: Changes) -> dict[str, Sighting]:
    """Return what is known after these changes."""
    expect("D-7", not {one.id for one in changes.came} & set(changes.gone), "an id has both come and gone in one look")
    return {id_: one for id_, one in known.items() if id_ not in set(changes.gone)} | {
        one.id: one for one in changes.came
    }


async def until_done(call: Callable[[], Any]) -> Any:
    """Return what the call answers, made again while it fails by a fault."""
    for _ in range(TRIES):
        try:
            return await call()
        except (StoreError, ChannelError):
            continue
        except Exception as error:
            expect(
                "D-8",
                False,
                f"a call that could not be done raised {type(error).__name__}, not a StoreError or ChannelError: "
                f"{error}",
            )
    expect("D-8", False, f"a call failed {TRIES} times, though its faults pass")
    return None
