"""Certification: how a store behaves under load while its server is disturbed, by the means of its author's bench."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import ClassVar

import anyio
import anyio.to_thread
import attrs
import pytest

from converge.contracts.store import ABSENT, Durability, Feature, Store
from converge.errors import NotApplied, OutcomeUnknown, StoreError
from converge.model.keys import POOL
from converge.testing._check.given import current
from converge.testing._check.load import LOAD_SEC, Note, Progress, given, recovers, release_in
from converge.testing._check.stores import _Checked
from converge.testing._processes.peers import begin, end, order_of, running
from converge.testing._store.base import Cut, Opening, StoreCase, commit, committed, get
from converge.testing.clauses import expect, expect_equal
from converge.testing.fixtures import wait_until

PACE_SEC = 0.01
CUTS, COUNTED = 6, 30


class _Load(Progress):
    """Commits one key after another, as busy agents do, and notes each outcome."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []

    async def run(self) -> None:
        for number in range(1_000_000):
            name = str(number)
            try:
                with anyio.fail_after(LOAD_SEC):
                    await commit(self._store, checks=[(POOL(name), ABSENT)], puts=[(POOL(name), b"{}")])
                self.acknowledged.append(name)
                self.tell()
            except NotApplied:
                self.refused.append(name)
            except OutcomeUnknown:
                self.unknown.append(name)
            except TimeoutError:
                expect("S-16", False, f"a commit did not answer within {LOAD_SEC:g} s")
            except StoreError as error:
                expect("S-16", False, f"a commit raised {error!r}, which says neither NotApplied nor OutcomeUnknown")
            except Exception as error:
                kind = f"{type(error).__module__}.{type(error).__qualname__}"
                expect("S-16", False, f"an error of the driver came out of a commit: {kind}: {error}")
            await anyio.sleep(PACE_SEC)  # the load is steady, so that what it meets does not hang on this machine


class TestCertification(_Checked, StoreCase):
    """A store under load whose server is disturbed: it works again within `near_sec`, and its errors are true
    meanwhile.
    """

    loops: ClassVar[tuple[str, ...]] = ("asyncio",)

    @asynccontextmanager
    async def loaded(self, store: Store) -> AsyncIterator[_Load]:
        """Hold a load on the store, which has begun to work."""
        load = _Load(store)
        async with anyio.create_task_group() as group:
            group.start_soon(load.run)
            await load.begun("S-16", "no commit is acknowledged on a place that is well")
            yield load
            group.cancel_scope.cancel()

    async def told_truly(self, store: Store, load: _Load, *, is_kept: bool = True) -> None:
        """Expect that acknowledged commits are stored, and refused ones are not."""
        for name in load.refused:
            expect("S-16", await get(store, POOL(name)) is None, f"{name} was refused with NotApplied, and is there")
        lost = [name for name in load.acknowledged if await get(store, POOL(name)) is None] if is_kept else []
        expect_equal("S-14", lost, [], "commits that were acknowledged and are lost")

    async def test_a_restarted_server(self, store: Store, record_property: Note) -> None:
        """S-14: what was acknowledged is there after a restart."""
        restart = given("restart")
        async with self.loaded(store) as load:
            await anyio.to_thread.run_sync(restart)
            await recovers("S-16", load, "restart", record_property)
        await self.told_truly(store, load, is_kept=self.backend.durability > Durability.D0)

    async def test_connections_that_are_cut(self, store: Store, record_property: Note) -> None:
        """S-16: connections break again and again, before a request and before its reply."""
        cut = given("cut")
        async with self.loaded(store) as load:
            for number in range(CUTS):
                cut((Cut.BEFORE, Cut.AFTER)[number % 2])
                await recovers("S-16", load, "cut", record_property)
        await self.told_truly(store, load)

    async def test_a_frozen_server(self, store: Store, record_property: Note) -> None:
        """S-16: the server answers nobody for a while, and no connection breaks."""
        freeze = given("freeze")
        async with self.loaded(store) as load:
            with freeze():
                await anyio.sleep(current().suffer_sec)  # frozen for as long as calls may notice
            await recovers("S-16", load, "freeze", record_property)
        await self.told_truly(store, load)

    async def test_refused_writes(self, store: Store, record_property: Note) -> None:
        """S-16: the server refuses writes for a while; each is told as not applied, and reads go on."""
        refuse = given("refuse_writes")
        async with self.loaded(store) as load:
            with refuse():
                await anyio.sleep(current().suffer_sec)  # refused for as long as the load notices
                with suppress(AssertionError):  # longer, where this process could not run
                    await wait_until(lambda: bool(load.refused), timeout=current().near_sec)
                expect("S-16", bool(load.refused), "no commit was refused, though the server refuses writes")
                try:
                    await get(store, POOL("0"))
                except StoreError as error:
                    expect("S-16", False, f"a read fails while writes are refused: {error!r}")
            await recovers("S-16", load, "refuse_writes", record_property)
        await self.told_truly(store, load)

    async def test_rotated_credentials(self, store: Store, opening: Opening, record_property: Note) -> None:
        """S-14: credentials change under an open handle; it goes on, and a new one opens."""
        rotate = given("rotate")
        async with self.loaded(store) as load:
            await anyio.to_thread.run_sync(rotate)
            await recovers("S-16", load, "rotate", record_property)
            async with opening() as other:
                committed("S-14", await commit(other, puts=[(POOL("new"), b"{}")]), "a commit with new credentials")
        await self.told_truly(store, load)

    def test_two_releases_side_by_side(self, url: str, record_property: Note) -> None:
        """S-4: processes of this release and of another one count up one key, each number once."""
        python = given("other_python")
        if Feature.SHARED not in self.backend.features:
            pytest.skip("not applicable: the store does not declare SHARED")
        order = order_of(self.backend, current().options(), url, "count", LOAD_SEC, inherited=False)
        named = {name: attrs.evolve(getattr(order, name), file="") for name in ("open", "options")}
        order = attrs.evolve(order, **named)  # each process imports its own release
        releases = [release_in(one, order.open.module) for one in (sys.executable, python)]
        if releases[0] == releases[1]:
            pytest.skip(f"not tried: {python} has the same release, {releases[0]}")
        with running(order, 1) as mine, running(order, 1, python) as others:
            peers = [*mine, *others]
            begin(peers)
            for peer in peers:
                has_worked = peer.wait_for(lambda said: len(said) > COUNTED, LOAD_SEC)
                expect("S-4", has_worked, "a process does not count: " + ("" if has_worked else peer.end(0.0)))
            failed = end(peers)
        values = [row[0] for peer in peers for row in peer.said[1:]]
        twice = len(values) - len(set(values))
        expect("S-4", not twice, f"{twice} of {len(values)} increments were committed beside another")
        expect("S-4", not failed, f"a process failed: {failed}")
        record_property("releases", f"{' and '.join(releases)}: {len(values)} increments, each once")
