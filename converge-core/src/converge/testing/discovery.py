"""DiscoveryContract: every clause of the discovery contract as tests. An author writes one subclass.

    class TestMyDiscovery(DiscoveryContract):
        backend = MY_BACKEND

        @pytest.fixture
        def options(self, my_server):
            return MyOptions(url=my_server)

Each test's docstring names its clause, and so does each failure. A backend that declares `publishes=False` gives with the fixture `configured` what
it must say; the clauses are tested with that in place of what is published.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, ClassVar

import anyio
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from converge.contracts.discovery import Discovery, DiscoveryBackend, Reader, Sighting
from converge.contracts.store import Feature, Store
from converge.env import SYSTEM
from converge.errors import ChannelError, StoreError
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery, sign_descriptor
from converge.model.identity import Identity
from converge.services.discovery import DiscoveryService
from converge.services.lease import LeaseSettings
from converge.services.opened import Opened
from converge.services.opening import open_store
from converge.testing._task.base import wait_until_store_time
from converge.testing.clauses import expect, expect_equal
from converge.testing.faults import Fault, FaultPlan, FaultyStore
from converge.testing.fixtures import is_quick

POLL_SEC, LEASE_SEC = 0.05, 0.6
NETWORK = "kit"
PATIENCE_SEC = 10.0
QUICK_EXAMPLES = 5
TRIES = 500
"""How often a call that fails by a fault is repeated: many times more than the faults of any seed last."""

Opening = Callable[[], AbstractAsyncContextManager[Store]]

names = st.sampled_from(["a", "b", "c", "d", "e"])
payloads = st.one_of(st.binary(max_size=200), st.integers(0, 16_384).map(lambda size: bytes(range(256)) * 64 and (bytes(range(256)) * 65)[:size]))
endpoints = st.lists(st.sampled_from(["tcp://10.0.0.1:7000", "local:a", "wss://[::1]:1/p?q=%22", "tcp://ö:1"]), max_size=3).map(tuple)
# A step: which process does it, what, with which ids; for a publish also what it says.
steps = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["publish", "withdraw", "look"]), st.lists(names, max_size=4), endpoints, payloads), max_size=25
)


class Process:
    """One process: a handle on the store that its node would have, and the discovery on it."""

    def __init__(self, discovery: Discovery, store: Store, opened: Opened) -> None:
        self.discovery, self.store, self.opened = discovery, store, opened

    async def die(self) -> None:
        """Stop renewing the lease, if there is one, and wait until its time has passed in the store."""
        lease = self.opened.lease_opened
        if lease is not None:
            lease.abandon()
            await wait_until_store_time(self.store, await self.store.time() + int(lease.settings.lease_sec * 1_000_000) + 1)

    async def snapshot(self) -> dict[str, Sighting]:
        """What is known now, by id; each is there once."""
        found = await self.discovery.snapshot()
        expect("D-1", len({one.id for one in found}) == len(found), f"an id comes twice in {sorted(one.id for one in found)}")
        return {one.id: one for one in found}


class DiscoveryContract:
    """The whole contract.

    Attributes:
        backend: The declaration, as `converge_discoveries` returns it.
        loops: Event loops to run on; trio is left out where the backend is ASYNCIO_ONLY.
        examples: How many random histories are compared with the model; fewer with pytest's option `--quick`.
        near_sec: How long a change may take to be told to a watcher.
    """

    backend: ClassVar[DiscoveryBackend]
    loops: ClassVar[tuple[str, ...]] = ("asyncio", "trio")
    examples: ClassVar[int] = 20
    near_sec: ClassVar[float] = PATIENCE_SEC
    pytestmark: ClassVar[list[pytest.MarkDecorator]] = [pytest.mark.anyio]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run coroutine tests on asyncio and, unless the backend declares ASYNCIO_ONLY, on trio."""
        if "anyio_backend" in metafunc.fixturenames:
            is_asyncio_only = Feature.ASYNCIO_ONLY in self.backend.features
            loops = [loop for loop in self.loops if not (is_asyncio_only and loop == "trio")]
            metafunc.parametrize("anyio_backend", loops[:1] if is_quick(metafunc.config) else loops, indirect=True, scope="module")

    @pytest.fixture(autouse=True)
    def quick(self, request: pytest.FixtureRequest) -> None:
        """With `--quick`, fewer histories; the clauses stay all."""
        if is_quick(request.config):
            vars(self).update(examples=min(self.examples, QUICK_EXAMPLES))

    @pytest.fixture(scope="module")
    @classmethod
    def anyio_backend(cls, request: pytest.FixtureRequest) -> str:
        """The event loop of this run of the test."""
        return str(request.param)

    # What an author may override.

    @pytest.fixture
    def options(self) -> Any:
        """An instance of `backend.options` that names a place which no other test uses."""
        return self.backend.options()

    @pytest.fixture
    def configured(self) -> list[Sighting]:
        """What a backend without publishing must say with these options."""
        return []

    @pytest.fixture
    async def opening(self) -> AsyncIterator[Opening]:
        """Opens handles on one store, for backends that use the node's; by default one in memory."""
        async with open_store("memory:") as store:
            yield store.reopen

    # What the tests stand on.

    @asynccontextmanager
    async def process(self, opening: Opening, options: Any, plan: FaultPlan | None = None) -> AsyncIterator[Process]:
        """A process; leaving it ends it as a node ends, with its lease."""
        async with opening() as inner:
            store = inner if plan is None else FaultyStore(inner, plan)
            opened = Opened.of(store, lease_settings=LeaseSettings(lease_sec=LEASE_SEC if plan is None else 15.0))
            try:
                async with self.backend.open(options, store=store, poll_sec=POLL_SEC) as discovery:
                    yield Process(discovery, store, opened)
            finally:
                if plan is not None:
                    plan.is_calm = True
                await opened.close()

    @asynccontextmanager
    async def three(self, opening: Opening, options: Any, plan: FaultPlan | None = None) -> AsyncIterator[list[Process]]:
        """Three processes on one place."""
        async with self.process(opening, options, plan) as a, self.process(opening, options) as b, self.process(opening, options) as c:
            yield [a, b, c]

    def said(self, configured: Iterable[Sighting], *published: Sighting) -> dict[str, Sighting]:
        """What must be known, by id."""
        return {one.id: one for one in (published if self.backend.publishes else configured)}

    # The clauses.

    async def test_d1_what_was_published_is_in_the_snapshot_until_it_is_withdrawn(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-1"""
        a, b = Sighting("a", ("tcp://h:1",), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one:
            expect_equal("D-1", await one.snapshot(), self.said(configured), "before anything was published")
            await one.discovery.publish([a, b])
            expect_equal("D-1", await one.snapshot(), self.said(configured, a, b), "after two were published")
            await one.discovery.withdraw(["a"])
            expect_equal("D-1", await one.snapshot(), self.said(configured, b), "after one of two was withdrawn")

    async def test_d1_of_two_processes_with_one_id_the_one_that_published_last_counts(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-1"""
        older, newer = Sighting("a", ("tcp://old:1",), b"older"), Sighting("a", ("tcp://new:1",), b"newer")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            for first, last in ((one, other), (other, one)):
                await first.discovery.publish([older])
                await last.discovery.publish([newer])
                for reader in (one, other):
                    expect_equal("D-1", await reader.snapshot(), self.said(configured, newer), "another process has published the id again")

    async def test_d2_publishing_again_replaces(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-2"""
        async with self.process(opening, options) as one:
            for number in range(3):
                await one.discovery.publish([Sighting("a", (f"tcp://h:{number}",), b"%d" % number)])
            last = Sighting("a", ("tcp://h:2",), b"2")
            expect_equal("D-2", await one.snapshot(), self.said(configured, last), "an id was published three times")

    async def test_d2_an_unknown_id_may_be_withdrawn_and_calls_may_be_empty(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-2"""
        kept = Sighting("a", (), b"A")
        async with self.process(opening, options) as one:
            await one.discovery.withdraw(["nobody"])
            await one.discovery.publish([])
            await one.discovery.withdraw([])
            await one.discovery.publish([kept])
            await one.discovery.withdraw(["nobody", "nobody"])
            expect_equal("D-2", await one.snapshot(), self.said(configured, kept), "only unknown ids were withdrawn")

    async def test_d3_a_watch_tells_at_once_what_is_known(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-3"""
        a = Sighting("a", (), b"A")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await other.discovery.publish([a])
            with anyio.move_on_after(self.near_sec):
                async with aclosing(one.discovery.watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
                    first = {found.id: found for found in await anext(watch)}
                    expect_equal("D-3", first, self.said(configured, a), "the first list of a watch")
                    return
        expect("D-3", False, f"a watch told nothing within {self.near_sec:g} s")

    async def test_d3_a_watch_tells_what_has_changed_since(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-3"""
        a, b = Sighting("a", (), b"A"), Sighting("b", ("tcp://h:1",))
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            told: dict[str, Sighting] = {}
            with anyio.move_on_after(self.near_sec):  # around the whole watch: a generator may hold a task group while it waits
                async with aclosing(one.discovery.watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
                    told = {found.id: found for found in await anext(watch)}
                    for change, wanted in (
                        ([other.discovery.publish([a])], self.said(configured, a)),
                        ([other.discovery.publish([b]), other.discovery.withdraw(["a"])], self.said(configured, b)),
                    ):
                        for call in change:
                            await call
                        while told != wanted:
                            told = {found.id: found for found in await anext(watch)}
                return
            expect("D-3", False, f"what a watch told last, {self.near_sec:g} s after a change, was {told}")

    @settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(where=endpoints, what=payloads)
    async def test_d4_a_sighting_comes_back_byte_for_byte(
        self, opening: Opening, options: Any, configured: list[Sighting], where: tuple[str, ...], what: bytes
    ) -> None:
        """D-4"""
        sent = Sighting("a", where, what)
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await one.discovery.publish([sent])
            found = await other.snapshot()
            expect_equal("D-4", found, self.said(configured, sent), "a sighting as another process has it")
            expect("D-4", all(type(one.endpoints) is tuple and type(one.descriptor) is bytes for one in found.values()), f"other types in {found}")

    async def test_d5_a_backend_that_does_not_publish_says_what_it_was_configured_with(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-5"""
        a = Sighting("a", (), b"A")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            for call in (one.discovery.publish([a]), one.discovery.withdraw([known.id for known in configured]), one.discovery.publish([a])):
                await call
                for reader in (one, other):
                    was = "it publishes" if self.backend.publishes else "it does not publish"
                    expect(
                        "D-5",
                        self.backend.publishes or await reader.snapshot() == self.said(configured),
                        f"{was}, and publish or withdraw changed it",
                    )
            known = set(await other.snapshot())
            expect(
                "D-5",
                not self.backend.publishes or known == {"a"},
                f"it declares publishes=True, and another process knows {known} of what was published",
            )

    async def test_d6_other_processes_see_what_one_publishes_and_withdraws_at_their_next_snapshot(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-6"""
        a, b, c = (Sighting(name, (), name.encode()) for name in "abc")
        async with self.three(opening, options) as processes:
            for process, one in zip(processes, (a, b, c), strict=True):
                await process.discovery.publish([one])
            for process in processes:
                expect_equal("D-6", await process.snapshot(), self.said(configured, a, b, c), "each of three processes has published one")
            await processes[0].discovery.withdraw(["a"])
            for process in processes:
                expect_equal("D-6", await process.snapshot(), self.said(configured, b, c), "one of three was withdrawn")

    async def test_d6_a_process_cannot_withdraw_what_another_has_published(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-6"""
        a, b = Sighting("a", (), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await one.discovery.publish([a])
            await other.discovery.publish([b])
            await other.discovery.withdraw(["a"])
            expect_equal("D-6", await one.snapshot(), self.said(configured, a, b), "another process has withdrawn it")

    async def test_d6_what_a_process_published_is_gone_when_it_closes(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-6"""
        a, b = Sighting("a", (), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one:
            async with self.process(opening, options) as other:
                await other.discovery.publish([a])
                await one.discovery.publish([b])
                expect_equal("D-6", await one.snapshot(), self.said(configured, a, b), "while both processes live")
            expect_equal("D-6", await one.snapshot(), self.said(configured, b), "one of the processes has closed")

    async def test_d6_what_a_process_published_is_gone_when_its_lease_has_ended(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-6"""
        a, b = Sighting("a", (), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            reader = one.discovery.reader()
            await other.discovery.publish([a])
            await one.discovery.publish([b])
            seen = _applied({}, await reader.look())
            expect_equal("D-6", seen, self.said(configured, a, b), "while both processes live")
            await other.die()
            expect_equal("D-6", await one.snapshot(), self.said(configured, b), "the other's lease has ended, and nobody has swept")
            expect_equal("D-6", _applied(seen, await reader.look()), self.said(configured, b), "by its changes; the other's lease has ended")

    async def test_d7_a_look_tells_each_change_once(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-7"""
        a, b = Sighting("a", (), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await other.discovery.publish([a])
            reader = one.discovery.reader()
            expect_equal("D-7", _applied({}, await reader.look()), self.said(configured, a), "the first look")
            nothing = await reader.look()
            expect_equal("D-7", (list(nothing.came), list(nothing.gone)), ([], []), "nothing has changed since the look before")
            await other.discovery.publish([b])
            await other.discovery.withdraw(["a"])
            then = await reader.look()
            wanted = ([b], ["a"]) if self.backend.publishes else ([], [])
            expect_equal("D-7", (list(then.came), list(then.gone)), wanted, "one has come and one has gone")

    async def test_d7_a_hint_comes_at_once_and_after_a_change(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-7"""
        a = Sighting("a", (), b"A")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            reader, seen, is_published = one.discovery.reader(), dict[str, Sighting](), False
            with anyio.move_on_after(self.near_sec):
                async with aclosing(reader.hints()) as hints:  # type: ignore[type-var]  # an async generator
                    async for _ in hints:
                        seen = _applied(seen, await reader.look())
                        if is_published and seen == self.said(configured, a):
                            return
                        if not is_published:
                            is_published = True
                            await other.discovery.publish([a])
                            if not self.backend.publishes:
                                return  # nothing changes, so no other hint need come
            what = f"a reader that looked at each hint knows {seen}" if is_published else "no hint came"
            expect("D-7", False, f"{what}, {self.near_sec:g} s after it began")

    async def test_d1_thousands_are_all_told(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-1, D-7"""
        many = [Sighting(f"agent-{number:04}", (), b"%d" % number) for number in range(2_300)]  # more than a page of any store
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            reader = one.discovery.reader()
            seen = _applied({}, await reader.look())
            for at in range(0, len(many), 700):
                await other.discovery.publish(many[at : at + 700])
            expect_equal("D-1", len(await one.snapshot()), len(self.said(configured, *many)), "how many were sighted")
            seen = _applied(seen, await reader.look())
            expect_equal("D-7", seen, self.said(configured, *many), "what was published by and by")
            await other.discovery.withdraw([many_one.id for many_one in many[5:]])
            expect_equal("D-7", _applied(seen, await reader.look()), self.said(configured, *many[:5]), "all but five were withdrawn")

    async def test_d1_any_history_is_that_of_a_plain_dictionary(self, opening: Opening, options: Any, configured: list[Sighting]) -> None:
        """D-1, D-2, D-6, D-7"""
        await self._histories(opening, options, configured, None)

    async def test_d8_through_a_store_that_fails_nothing_is_missed_or_taken_twice(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-8"""
        await self._histories(opening, options, configured, int.from_bytes(os.urandom(4), "big"))

    async def test_d8_calls_that_fail_can_be_made_again_and_a_look_that_failed_half_way_is_made_up_for(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-8"""
        plan = FaultPlan(int.from_bytes(os.urandom(4), "big"), likelihood={Fault.FAIL_BEFORE: 0.2, Fault.LOSE_REPLY: 0.2}, reads=True, is_calm=True)
        async with self.three(opening, options, plan) as processes:
            reader, seen = processes[0].discovery.reader(), dict[str, Sighting]()
            await processes[0].opened.lease()
            plan.is_calm = False
            for number in range(20):
                now = [Sighting(name, (), b"%d" % number) for name in "abc"]
                for process, one in zip(processes, now, strict=True):
                    await _until_done(lambda p=process, s=one: p.discovery.publish([s]))  # type: ignore[misc]  # as above
                seen = _applied(seen, await _until_done(reader.look))
                expect_equal(
                    "D-8", seen, self.said(configured, *now), f"round {number}, each process has published, calls of one failed; seed {plan.seed}"
                )

    async def _histories(self, opening: Opening, options: Any, configured: list[Sighting], seed: int | None) -> None:
        """Run random histories, each on processes of its own; a failure names the steps, and the seed of the faults."""
        found: list[list[tuple[Any, ...]]] = []

        @settings(max_examples=self.examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(steps)
        def collect(history: list[tuple[Any, ...]]) -> None:
            found.append(history)

        collect()
        for number, history in enumerate(found):
            plan = None if seed is None else FaultPlan(seed + number, reads=True, is_calm=True)
            try:
                await self._history(opening, options, configured, history, plan)
            except AssertionError as error:
                error.add_note(f"the history: {history}; the seed of its faults: {None if plan is None else plan.seed}")
                raise

    async def _history(
        self, opening: Opening, options: Any, configured: list[Sighting], history: list[tuple[Any, ...]], plan: FaultPlan | None
    ) -> None:
        clause = "D-1" if plan is None else "D-8"
        async with self.three(opening, options, plan) as processes:
            model = _Model()
            readers = [process.discovery.reader() for process in processes]
            seen: list[dict[str, Sighting]] = [{}, {}, {}]
            await processes[0].discovery.publish([])
            if plan is not None:
                await processes[0].opened.lease()
                plan.is_calm = False
            for who, what, ids, where, payload in history:
                if what == "publish":
                    some = [Sighting(id_, where, payload + id_.encode()) for id_ in dict.fromkeys(ids)]
                    await _until_done(lambda p=processes[who], s=some: p.discovery.publish(s))  # type: ignore[misc]  # defaults, so that they are bound now
                    model.publish(who, some)
                elif what == "withdraw":
                    await _until_done(lambda p=processes[who], i=ids: p.discovery.withdraw(i))  # type: ignore[misc]
                    model.withdraw(who, ids)
                else:
                    changes = await _until_done(readers[who].look)
                    seen[who] = _applied(seen[who], changes)
                    wanted = self.said(configured, *model.sightings())
                    expect_equal("D-7" if plan is None else clause, seen[who], wanted, f"by the changes that process {who} was told")
            for who, process in enumerate(processes):
                wanted = self.said(configured, *model.sightings())
                expect_equal(clause, {one.id: one for one in await _until_done(process.discovery.snapshot)}, wanted, f"the snapshot of process {who}")
                seen[who] = _applied(seen[who], await _until_done(readers[who].look))
                expect_equal(clause, seen[who], wanted, f"in the end, by the changes that process {who} was told")

    async def test_d9_a_service_on_it_never_goes_back_to_a_lower_sequence(self, opening: Opening, options: Any) -> None:
        """D-9"""
        who = Identity.generate(SYSTEM.entropy)
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            service = DiscoveryService(store=one.store, network=NETWORK, discovery=one.discovery)
            for sequence, wanted in ((5, 5), (4, 5), (6, 6), (1, 6)):
                await other.discovery.publish([await _described(other, who, sequence)])
                found = await service.query(DiscoveryQuery(topics=["news"]), refresh_from_store=True)
                expect_equal(
                    "D-9", [d.sequence for d in found], [wanted] if self.backend.publishes else [], f"after sequence {sequence} was published"
                )
            await other.discovery.withdraw([who.id])
            expect_equal("D-9", await service.query(DiscoveryQuery(), refresh_from_store=True), [], "it was withdrawn")
            await other.discovery.publish([await _described(other, who, 3)])
            expect_equal("D-9", await service.query(DiscoveryQuery(), refresh_from_store=True), [], "an older one came back after it was withdrawn")

    async def test_d9_a_service_on_it_lists_only_what_verifies(self, opening: Opening, options: Any) -> None:
        """D-9"""
        who, stranger, forged = (Identity.generate(SYSTEM.entropy) for _ in range(3))
        async with self.process(opening, options) as one:
            sound = await _described(one, who, 1)
            unsigned = await _described(one, forged, 1)
            bad = unsigned._replace(descriptor=sound.descriptor[:64] + unsigned.descriptor[64:])
            await one.discovery.publish([sound, Sighting(stranger.id, (), sound.descriptor), bad, Sighting("y", (), b"nonsense")])
            service = DiscoveryService(store=one.store, network=NETWORK, discovery=one.discovery)
            found = [d.id for d in await service.query(DiscoveryQuery(), refresh_from_store=True)]
            expect_equal("D-9", found, [who.id] if self.backend.publishes else [], "one of four descriptors is genuine and at its place")

    async def test_d9_a_service_lists_no_agent_of_a_lease_that_has_ended(self, opening: Opening, options: Any) -> None:
        """D-9, D-6"""
        who = Identity.generate(SYSTEM.entropy)
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await other.discovery.publish([await _described(other, who, 1)])
            service = DiscoveryService(store=one.store, network=NETWORK, discovery=one.discovery)
            found = [d.id for d in await service.query(DiscoveryQuery(), refresh_from_store=True)]
            expect_equal("D-9", found, [who.id] if self.backend.publishes else [], "while its process lives")
            await other.die()
            expect_equal("D-9", await service.query(DiscoveryQuery(), refresh_from_store=True), [], "its process has died")


class _Model:
    """What a discovery must say, as plain dictionaries."""

    def __init__(self) -> None:
        self._number = 0
        self._by_owner: dict[int, dict[str, tuple[int, Sighting]]] = {}

    def publish(self, owner: int, sightings: list[Sighting]) -> None:
        for one in sightings:
            self._number += 1
            self._by_owner.setdefault(owner, {})[one.id] = self._number, one

    def withdraw(self, owner: int, ids: list[str]) -> None:
        for id_ in ids:
            self._by_owner.get(owner, {}).pop(id_, None)

    def sightings(self) -> list[Sighting]:
        newest: dict[str, tuple[int, Sighting]] = {}
        for owned in self._by_owner.values():
            for id_, found in owned.items():
                newest[id_] = max(newest.get(id_, found), found, key=lambda one: one[0])
        return [one for _, one in newest.values()]


def _applied(known: dict[str, Sighting], changes: Any) -> dict[str, Sighting]:
    expect("D-7", not {one.id for one in changes.came} & set(changes.gone), "an id has both come and gone in one look")
    return {id_: one for id_, one in known.items() if id_ not in set(changes.gone)} | {one.id: one for one in changes.came}


async def _until_done(call: Callable[[], Any]) -> Any:
    for _ in range(TRIES):
        try:
            return await call()
        except (StoreError, ChannelError):
            continue
        except Exception as error:
            expect("D-8", False, f"a call that could not be done raised {type(error).__name__}, not a StoreError or ChannelError: {error}")
    expect("D-8", False, f"a call failed {TRIES} times, though its faults pass")
    return None


async def _described(process: Process, who: Identity, sequence: int) -> Sighting:
    lease = await process.opened.lease()
    about = AgentDescriptor(id=who.id, public_key=who.public_key.hex(), topics=("news",), lease=lease.id.hex(), sequence=sequence)
    return Sighting(who.id, (), sign_descriptor(who, about, NETWORK))


__all__ = ["DiscoveryContract", "Opening", "Process", "Reader"]
