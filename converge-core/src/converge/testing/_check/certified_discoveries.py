"""Certification: what processes know of one another while what is behind their discovery suffers, and beside another
release.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from functools import partial
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.to_thread
import attrs
import pytest

from converge import open_store
from converge.contracts.discovery import Discovery, Sighting
from converge.errors import ChannelError, StoreError
from converge.testing._check.discoveries import _Checked
from converge.testing._check.given import current
from converge.testing._check.load import (
    LOAD_SEC,
    Note,
    Progress,
    first_line,
    forked_child,
    given,
    kill,
    recovers,
    release_in,
)
from converge.testing._discovery.base import POLL_SEC, DiscoveryCase, Opening, Process, applied
from converge.testing._processes.peers import name_of
from converge.testing._store.base import Cut
from converge.testing.clauses import expect, expect_equal
from converge.testing.faults import Fault, FaultPlan
from converge.testing.fixtures import wait_until

PACE_SEC = 0.01
CUTS = 6
KEPT, LATER, GUEST = (Sighting(name, (), name.encode()) for name in ("kept", "later", "guest"))
TYPED = (StoreError, ChannelError)
OF_NO_STORE = frozenset({"fork", "rotate"})
"""What befalls a process, or what only a bench can do."""

T = TypeVar("T")


class _NodesStore(FaultPlan):
    """Disturbs the store of the nodes, for a discovery that stands on it and whose bench has no means."""

    def __init__(self) -> None:
        super().__init__(seed=0, is_calm=True)
        self._thawed = anyio.Event()

    async def delay(self) -> None:
        """Wait until it suffers no more."""
        await self._thawed.wait()

    @contextmanager
    def suffering(self, fault: Fault, *, reads: bool = True) -> Iterator[None]:
        """Let each call have this fault while the block lasts."""
        self._thawed = anyio.Event()
        self.likelihood, self.reads, self.is_calm = {fault: 1.0}, reads, False
        try:
            yield
        finally:
            self.is_calm = True
            self._thawed.set()

    async def has(self, discovery: Discovery) -> bool:
        """Return whether the discovery asks the store of the nodes."""
        with self.suffering(Fault.DELAY):
            self._thawed.set()
            await discovery.snapshot()
        return bool(self.log)


class _Known(Progress):
    """One process publishes again and again, and another one asks, watches and reads what there is."""

    def __init__(self, one: Process, other: Process, wanted: dict[str, Sighting], *, publishes: bool) -> None:
        super().__init__()
        self.one, self.other, self._wanted, self._publishes = one, other, wanted, publishes
        self.failed = Counter[str]()
        self.told: dict[str, Sighting] = {}
        self._published = self._seen = -1

    async def run(self) -> None:
        """Publish and ask, each in a task of its own, so that both meet whatever comes."""
        async with anyio.create_task_group() as group:
            if self._publishes:
                group.start_soon(self._publish)
            group.start_soon(self._ask)

    async def _publish(self) -> None:
        for number in range(1_000_000):
            sighting = Sighting("load", (), b"%d" % number)
            await self.until_done(self.one.discovery.publish, [sighting], name="publish")
            self._published = number
            await anyio.sleep(PACE_SEC)  # the load is steady, so that what it meets does not hang on this machine

    async def _ask(self) -> None:
        """Expect what there was and what was published, whenever there is an answer."""
        for _ in range(1_000_000):
            published = self._published
            found = await self.until_done(self.other.snapshot, name="ask")
            missing = [id_ for id_, one in self._wanted.items() if found.get(id_) != one]
            seen = int(found["load"].descriptor) if "load" in found else -1
            missing += ["load"] if seen < published else []
            expect("D-8", not missing, f"a snapshot was answered without {missing}, which nobody has withdrawn")
            if seen > self._seen or not self._publishes:
                self._seen = seen
                self.tell()
            await anyio.sleep(PACE_SEC)  # as above

    async def watch(self) -> None:
        """Note what is told last; a watch that fails is begun again."""
        while True:
            try:
                async with aclosing(self.other.discovery.watch()) as watch:  # type: ignore[type-var]  # a generator
                    async for found in watch:
                        self.told = {one.id: one for one in found}
                expect("D-3", False, "a watch has ended by itself")
            except TYPED:
                await anyio.sleep(POLL_SEC)  # it may work again at any time, and tells nobody

    async def notices(self) -> None:
        """Wait until each of its calls has failed once more."""
        before, calls = Counter(self.failed), ("publish", "ask") if self._publishes else ("ask",)
        await wait_until(lambda: all(self.failed[call] > before[call] for call in calls), timeout=LOAD_SEC)

    async def until_done(self, call: Callable[..., Awaitable[T]], *args: Any, name: str = "") -> T:
        """Return what a call gives, made again while it fails as a call may."""
        for _ in range(1_000_000):
            try:
                with anyio.fail_after(LOAD_SEC):
                    return await call(*args)
            except TYPED:
                self.failed[name] += 1
                await anyio.sleep(PACE_SEC)  # it may work again at any time, and tells nobody
            except TimeoutError:
                expect("D-8", False, f"a call did not answer within {LOAD_SEC:g} s")
        raise AssertionError("a load does not last that long")


Loaded = Callable[[str], AbstractAsyncContextManager[tuple[_Known, _NodesStore | None]]]

OTHER = """import json, sys
from importlib import import_module
import anyio
from converge import open_store
from converge.contracts.discovery import Discovery, Sighting

def found(module, path):
    one = import_module(module)
    for name in path.split("."):
        one = getattr(one, name)
    return one

async def main(url, opens, made, values):
    options = found(*made)(**json.loads(values))
    async with open_store(url) as store, found(*opens)(options, store=store, poll_sec=0.05) as discovery:
        await discovery.publish([Sighting("theirs", ("tcp://h:1",), b"theirs")])
        print(json.dumps(sorted(one.id for one in await discovery.snapshot())), flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)

anyio.run(main, sys.argv[1], sys.argv[2:4], sys.argv[4:6], sys.argv[6])
"""


class TestCertification(_Checked, DiscoveryCase):
    """Processes that know each other: after whatever befalls what is behind their discovery they do again within
    `near_sec`, and what they are told meanwhile is true.
    """

    loops: ClassVar[tuple[str, ...]] = ("asyncio",)

    @pytest.fixture
    def loaded(self, opening: Opening, options: Any, configured: list[Sighting]) -> Loaded:
        """Return what holds a load on two processes while its block lasts."""
        return partial(self._loaded, opening, options, configured)

    async def test_a_restart_of_what_is_behind_it(self, loaded: Loaded, record_property: Note) -> None:
        """D-8: what living processes have published is told after a restart."""
        async with loaded("restart") as (load, nodes):
            if nodes is None:
                await anyio.to_thread.run_sync(given("restart"))
            else:
                with nodes.suffering(Fault.FAIL_BEFORE):
                    await load.notices()
            await recovers("D-8", load, "restart", record_property)

    async def test_connections_that_are_cut(self, loaded: Loaded, record_property: Note) -> None:
        """D-8: connections break again and again, before a request and before its reply."""
        async with loaded("cut") as (load, nodes):
            for number in range(CUTS):
                if nodes is None:
                    given("cut")((Cut.BEFORE, Cut.AFTER)[number % 2])
                else:
                    with nodes.suffering((Fault.FAIL_BEFORE, Fault.LOSE_REPLY)[number % 2]):
                        await load.notices()
                await recovers("D-8", load, "cut", record_property)

    async def test_a_frozen_server(self, loaded: Loaded, record_property: Note) -> None:
        """D-8: what is behind it answers nobody for a while, and no connection breaks."""
        async with loaded("freeze") as (load, nodes):
            with given("freeze")() if nodes is None else nodes.suffering(Fault.DELAY):
                await anyio.sleep(current().suffer_sec)  # frozen for as long as calls may notice
            await recovers("D-8", load, "freeze", record_property)

    async def test_refused_registrations(self, loaded: Loaded, record_property: Note) -> None:
        """D-8: nothing may be published for a while; each call says so, and what there was is told on."""
        if not self.backend.publishes:
            pytest.skip("not applicable: it does not publish")
        async with loaded("refuse_writes") as (load, nodes):
            before = load.failed["publish"]
            with given("refuse_writes")() if nodes is None else nodes.suffering(Fault.FAIL_BEFORE, reads=False):
                with suppress(AssertionError):
                    await wait_until(lambda: load.failed["publish"] > before, timeout=current().near_sec)
                expect("D-8", load.failed["publish"] > before, "no call was refused, though nothing is taken in")
                try:
                    known = await load.other.snapshot()
                except TYPED as error:
                    expect("D-8", False, f"a snapshot fails while nothing is taken in: {error!r}")
                else:
                    expect("D-8", known.get(KEPT.id) == KEPT, "what was there is not told while nothing is taken in")
            await recovers("D-8", load, "refuse_writes", record_property)

    async def test_rotated_credentials(
        self, loaded: Loaded, opening: Opening, options: Any, record_property: Note
    ) -> None:
        """D-8: credentials change under open handles; they go on, and a new one opens."""
        rotate = given("rotate")
        async with loaded("rotate") as (load, _):
            await anyio.to_thread.run_sync(rotate)
            await recovers("D-8", load, "rotate", record_property)
            async with self.process(opening, options) as third:
                await third.snapshot()

    async def test_a_forked_child(self, loaded: Loaded, opening: Opening, options: Any, record_property: Note) -> None:
        """D-6: a child that is forked and lives beside withdraws nothing, and keeps nothing that was withdrawn."""
        async with loaded("fork") as (load, _), AsyncExitStack() as leaving:
            guest = await leaving.enter_async_context(self.process(opening, options))
            await guest.discovery.publish([GUEST])
            async with forked_child():
                await recovers("D-8", load, "fork", record_property)
                await leaving.aclose()
                is_gone = GUEST.id not in await load.other.snapshot()
                expect("D-6", is_gone, "a process that has closed is still listed while a forked child of it lives")
            expect("D-8", await load.goes_on(current().near_sec), "nothing is known after a forked child ended")

    async def test_two_releases_side_by_side(
        self, options: Any, configured: list[Sighting], record_property: Note
    ) -> None:
        """D-6: this release sees what another one publishes, and the other way round."""
        python = given("other_python")
        opens, made = name_of(self.backend.open, "open"), name_of(type(options), "options")
        releases = [release_in(one, opens.module) for one in (sys.executable, python)]
        if releases[0] == releases[1]:
            pytest.skip(f"not tried: {python} has the same release, {releases[0]}")
        values = {field.name: getattr(options, field.name) for field in attrs.fields(type(options)) if field.init}
        url = f"file:{current().fresh() / 'nodes.db'}"
        places = [url, opens.module, opens.attribute, made.module, made.attribute, json.dumps(values)]
        async with (
            open_store(url) as store,
            self.process(store.reopen, options) as one,
            await anyio.open_process([python, "-P", "-c", OTHER, *places]) as other,
        ):
            try:
                await one.discovery.publish([KEPT])
                theirs, error = await first_line(other)
                expect("D-6", bool(theirs), f"another release does not tell what it knows: {error}")
                mine = sorted(await one.snapshot())
            finally:
                kill(other)
        wanted = sorted(self.said(configured, KEPT, Sighting("theirs")))
        expect_equal("D-6", json.loads(theirs), wanted, f"what release {releases[1]} knows beside {releases[0]}")
        expect_equal("D-6", mine, wanted, f"what release {releases[0]} knows beside {releases[1]}")
        record_property("releases", f"{' and '.join(releases)}: each tells what the other one has published")

    # What the tests stand on.

    @asynccontextmanager
    async def _loaded(
        self, opening: Opening, options: Any, configured: list[Sighting], name: str
    ) -> AsyncIterator[tuple[_Known, _NodesStore | None]]:
        """Hold a load on two processes; yield the store of their nodes, too, if that is what is to be disturbed.

        Once the block has ended, a change must be told to whoever reads or watches.
        """
        nodes = _NodesStore()
        async with self.process(opening, options, nodes) as one, self.process(opening, options, nodes) as two:
            is_of_bench = name in OF_NO_STORE or getattr(current(), name) is not None
            if not is_of_bench and not await nodes.has(two.discovery):
                given(name)  # which says that it is not tried
            reader = two.discovery.reader()
            await one.discovery.publish([KEPT])
            seen = applied({}, await reader.look())
            load = _Known(one, two, self.said(configured, KEPT), publishes=self.backend.publishes)
            async with anyio.create_task_group() as group:
                group.start_soon(load.watch)
                async with anyio.create_task_group() as working:
                    working.start_soon(load.run)
                    await load.begun("D-8", "nothing that is published is seen in a place that is well")
                    yield load, None if is_of_bench else nodes
                    working.cancel_scope.cancel()
                await load.until_done(one.discovery.publish, [LATER])
                configure = current().configure
                last = self.said(configure(options, 2) if configure else configured, KEPT, LATER)
                seen = applied(seen, await load.until_done(reader.look))
                expect("D-7", last.items() <= seen.items(), f"{name}: a reader knows {[*seen]}, not {[*last]}")
                with suppress(AssertionError):
                    await wait_until(lambda: last.items() <= load.told.items(), timeout=current().near_sec)
                is_told = last.items() <= load.told.items()
                expect("D-3", is_told, f"{name}: a watch tells {[*load.told]}, not {[*last]}, after it")
                group.cancel_scope.cancel()
