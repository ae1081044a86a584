"""The clauses of discovery, one by one: D-1 to D-7."""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from converge.contracts.discovery import Sighting
from converge.testing._calls.waiting import blocking_calls, expect_no_waiting
from converge.testing._discovery.base import POLL_SEC, Configure, DiscoveryCase, Opening, applied
from converge.testing.blocks import leaves_nothing_open, passes_through
from converge.testing.clauses import expect, expect_equal
from converge.testing.fixtures import wait_until

payloads = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 16_384).map(lambda size: bytes(range(256)) * 64 and (bytes(range(256)) * 65)[:size]),
)
endpoints = st.lists(
    st.sampled_from(["tcp://10.0.0.1:7000", "local:a", "wss://[::1]:1/p?q=%22", "tcp://ö:1"]), max_size=8
).map(tuple)
IDS = (
    "a",
    "A",
    "tcp://10.0.0.1:7000",
    "tcp://10.0.0.1:7001",
    "wss://[::1]:1/p?q=%22",
    "..",
    "x" * 119 + "y",
    "x" * 120,
)
"""An id is an agent's, or an endpoint."""

CALLERS = 6
"""Rounds of calls at the same time; in each, the cancelled one comes a turn of the event loop further."""


class DiscoveryClauses(DiscoveryCase):
    """What is published is told, until it is withdrawn or its process has ended."""

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

    async def test_d1_calls_at_the_same_time_and_cancelled_ones_get_their_own_answers(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-1: one connection may carry the calls of many tasks, of which some end early."""
        many = [Sighting(f"agent-{number}", (), b"%d" % number) for number in range(CALLERS)]
        async with self.process(opening, options) as one:
            for turn in range(CALLERS):
                found = list[dict[str, Sighting]]()

                async def look(found: list[dict[str, Sighting]] = found) -> None:
                    found.append(await one.snapshot())

                async with anyio.create_task_group() as callers:
                    early = anyio.CancelScope()

                    async def leave_early(early: anyio.CancelScope = early) -> None:
                        with early:
                            await one.snapshot()

                    callers.start_soon(leave_early)
                    for _ in range(turn):
                        await anyio.lowlevel.checkpoint()
                    callers.start_soon(look)
                    early.cancel()
                    callers.start_soon(look)
                expect_equal("D-1", found, [self.said(configured, *many[:turn])] * 2, "two snapshots at the same time")
                async with anyio.create_task_group() as callers:
                    callers.start_soon(one.discovery.publish, [many[turn]])
                    callers.start_soon(look)
                wanted = self.said(configured, *many[: turn + 1])
                expect_equal("D-1", await one.snapshot(), wanted, "after a publish beside a snapshot")

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
                    expect_equal(
                        "D-1",
                        await reader.snapshot(),
                        self.said(configured, newer),
                        "another process has published the id again",
                    )

    async def test_d2_publishing_again_replaces(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-2"""
        async with self.process(opening, options) as one:
            for number in range(3):
                await one.discovery.publish([Sighting("a", (f"tcp://h:{number}",), b"%d" % number)])
            last = Sighting("a", ("tcp://h:2",), b"2")
            expect_equal("D-2", await one.snapshot(), self.said(configured, last), "an id was published three times")

    async def test_d2_an_unknown_id_may_be_withdrawn_and_calls_may_be_empty(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-2"""
        kept = Sighting("a", (), b"A")
        async with self.process(opening, options) as one:
            await one.discovery.withdraw(["nobody"])
            await one.discovery.publish([])
            await one.discovery.withdraw([])
            await one.discovery.publish([kept])
            await one.discovery.withdraw(["nobody", "nobody"])
            expect_equal("D-2", await one.snapshot(), self.said(configured, kept), "only unknown ids were withdrawn")

    async def test_d3_a_watch_tells_at_once_what_is_known(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
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

    async def test_d3_a_watch_tells_what_has_changed_since(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-3"""
        a, b = Sighting("a", (), b"A"), Sighting("b", ("tcp://h:1",))
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            told: dict[str, Sighting] = {}
            with anyio.move_on_after(
                self.near_sec
            ):  # around the whole watch: a generator may hold a task group while it waits
                async with aclosing(one.discovery.watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
                    told = {found.id: found for found in await anext(watch)}
                    for change, wanted in (
                        ([other.discovery.publish([a])], self.said(configured, a)),
                        ([other.discovery.publish([b]), other.discovery.withdraw(["a"])], self.said(configured, b)),
                        ([other.discovery.withdraw(["b"])], self.said(configured)),
                    ):
                        for call in change:
                            await call
                        while told != wanted:
                            told = {found.id: found for found in await anext(watch)}
                return
            expect("D-3", False, f"what a watch told last, {self.near_sec:g} s after a change, was {told}")

    async def test_d3_every_watch_of_a_process_tells_its_own_changes_too(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-3"""
        a, b = Sighting("a", (), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one, anyio.create_task_group() as watches:
            told: list[dict[str, Sighting]] = [{}, {}]

            async def watch(number: int) -> None:
                async with aclosing(one.discovery.watch()) as lists:  # type: ignore[type-var]  # every watch is an async generator
                    async for found in lists:
                        told[number] = {sighting.id: sighting for sighting in found}

            for number in range(len(told)):
                watches.start_soon(watch, number)
            published: list[Sighting] = []
            for sighting in (a, b):
                await one.discovery.publish([sighting])
                published.append(sighting)
                wanted = self.said(configured, *published)
                with suppress(AssertionError):
                    await wait_until(lambda wanted=wanted: told == [wanted, wanted], timeout=self.near_sec)  # type: ignore[misc]  # bound now
                expect_equal("D-3", told, [wanted, wanted], "what two watches of the process itself told last")
            watches.cancel_scope.cancel()

    async def test_d3_what_is_configured_anew_is_told(
        self, opening: Opening, options: Any, configure: Configure | None
    ) -> None:
        """D-3, D-1, D-7"""
        if self.backend.publishes:
            pytest.skip("not applicable: it publishes, so nobody configures what it says")
        if configure is None:
            pytest.skip("not tried: the fixture `configure` gives nothing, so what it says never changes")
        async with self.process(opening, options) as one, anyio.create_task_group() as watching:
            told, seen, reader = dict[str, Sighting](), dict[str, Sighting](), one.discovery.reader()

            async def watch() -> None:
                async with aclosing(one.discovery.watch()) as lists:  # type: ignore[type-var]  # every watch is an async generator
                    async for found in lists:
                        told.clear()
                        told.update({sighting.id: sighting for sighting in found})

            async def told_last() -> dict[str, Sighting]:
                await anyio.lowlevel.checkpoint()
                return dict(told)

            async def read() -> dict[str, Sighting]:
                changed = applied(seen, await reader.look())
                seen.clear()
                seen.update(changed)
                return dict(seen)

            watching.start_soon(watch)
            for number in (3, 1, 2):
                wanted = await anyio.to_thread.run_sync(configure, number)
                await self.soon("D-3", told_last, wanted, f"what a watch told last, after {number} were configured")
                await self.soon("D-1", one.snapshot, wanted, f"a snapshot after {number} were configured")
                await self.soon("D-7", read, wanted, f"what a reader knows after {number} were configured")
            watching.cancel_scope.cancel()

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
            expect(
                "D-4",
                all(type(one.endpoints) is tuple and type(one.descriptor) is bytes for one in found.values()),
                f"other types in {found}",
            )

    async def test_d4_ids_are_kept_as_they_are(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-4"""
        many = [Sighting(id_, (), id_.encode()) for id_ in IDS]
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await one.discovery.publish(many)
            expect_equal("D-4", await other.snapshot(), self.said(configured, *many), "sightings of like ids")
            await one.discovery.withdraw(IDS[::2])
            wanted = self.said(configured, *many[1::2])
            expect_equal("D-4", await other.snapshot(), wanted, "every other of these was withdrawn")

    async def test_d5_a_backend_that_does_not_publish_says_what_it_was_configured_with(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-5"""
        a = Sighting("a", (), b"A")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            for call in (
                one.discovery.publish([a]),
                one.discovery.withdraw([known.id for known in configured]),
                one.discovery.publish([a]),
            ):
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

    async def test_d10_what_a_block_raised_comes_out_of_it(self, opening: Opening, options: Any) -> None:
        """D-10"""
        async with opening() as store:
            await passes_through("D-10", lambda: self.backend.open(options, store=store, poll_sec=POLL_SEC))

    async def test_d10_what_was_left_leaves_nothing_open_and_no_call_waits(
        self, opening: Opening, options: Any
    ) -> None:
        """D-10: no descriptor is left open, and what waits does so in another thread."""

        async def use() -> None:
            async with self.process(opening, options) as process:
                discovery = process.discovery
                await discovery.publish([Sighting("a", (), b"a")])
                await discovery.snapshot()
                with anyio.move_on_after(self.near_sec):  # one that never tells is D-3's
                    async with aclosing(discovery.watch()) as watch:  # type: ignore[type-var]  # an async generator
                        await anext(aiter(watch))
                await discovery.withdraw(["a"])

        with blocking_calls() as seen:
            await leaves_nothing_open("D-10", "discoveries", use)
        expect_no_waiting("D-10", seen)

    async def test_d6_other_processes_see_what_one_publishes_and_withdraws_at_their_next_snapshot(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-6"""
        a, b, c = (Sighting(name, (), name.encode()) for name in "abc")
        async with self.three(opening, options) as processes:
            for process, one in zip(processes, (a, b, c), strict=True):
                await process.discovery.publish([one])
            for process in processes:
                expect_equal(
                    "D-6",
                    await process.snapshot(),
                    self.said(configured, a, b, c),
                    "each of three processes has published one",
                )
            await processes[0].discovery.withdraw(["a"])
            for process in processes:
                expect_equal("D-6", await process.snapshot(), self.said(configured, b, c), "one of three was withdrawn")

    async def test_d6_a_process_cannot_withdraw_what_another_has_published(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-6"""
        a, b = Sighting("a", (), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await one.discovery.publish([a])
            await other.discovery.publish([b])
            await other.discovery.withdraw(["a"])
            expect_equal("D-6", await one.snapshot(), self.said(configured, a, b), "another process has withdrawn it")

    async def test_d6_what_a_process_published_is_gone_when_it_closes(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
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
            seen = applied({}, await reader.look())
            expect_equal("D-6", seen, self.said(configured, a, b), "while both processes live")
            await self.die(other)
            expect_equal(
                "D-6",
                await one.snapshot(),
                self.said(configured, b),
                "the other's lease has ended, and nobody has swept",
            )
            expect_equal(
                "D-6",
                applied(seen, await reader.look()),
                self.said(configured, b),
                "by its changes; the other's lease has ended",
            )

    async def test_d7_a_look_tells_each_change_once(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-7"""
        a, b = Sighting("a", (), b"A"), Sighting("b", (), b"B")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await other.discovery.publish([a])
            reader = one.discovery.reader()
            expect_equal("D-7", applied({}, await reader.look()), self.said(configured, a), "the first look")
            nothing = await reader.look()
            expect_equal(
                "D-7", (list(nothing.came), list(nothing.gone)), ([], []), "nothing has changed since the look before"
            )
            await other.discovery.publish([b])
            await other.discovery.withdraw(["a"])
            second = applied({}, await one.discovery.reader().look())
            expect_equal("D-7", second, self.said(configured, b), "the first look of a second reader")
            then = await reader.look()
            wanted = ([b], ["a"]) if self.backend.publishes else ([], [])
            expect_equal("D-7", (list(then.came), list(then.gone)), wanted, "one has come and one has gone")

    async def test_d7_a_hint_comes_at_once_and_after_a_change(
        self, opening: Opening, options: Any, configured: list[Sighting]
    ) -> None:
        """D-7"""
        a = Sighting("a", (), b"A")
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            reader, seen, is_published = one.discovery.reader(), dict[str, Sighting](), False
            with anyio.move_on_after(self.near_sec):
                async with aclosing(reader.hints()) as hints:  # type: ignore[type-var]  # an async generator
                    async for _ in hints:
                        seen = applied(seen, await reader.look())
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
        many = [
            Sighting(f"agent-{number:04}", (), b"%d" % number) for number in range(2_300)
        ]  # more than a page of any store
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            reader = one.discovery.reader()
            seen = applied({}, await reader.look())
            for at in range(0, len(many), 700):
                await other.discovery.publish(many[at : at + 700])
            expect_equal("D-1", len(await one.snapshot()), len(self.said(configured, *many)), "how many were sighted")
            seen = applied(seen, await reader.look())
            expect_equal("D-7", seen, self.said(configured, *many), "what was published by and by")
            await other.discovery.withdraw([many_one.id for many_one in many[5:]])
            expect_equal(
                "D-7",
                applied(seen, await reader.look()),
                self.said(configured, *many[:5]),
                "all but five were withdrawn",
            )
