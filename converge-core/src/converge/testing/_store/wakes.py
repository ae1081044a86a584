"""S-9: wakes arrive, and not before the writes that they announce."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import cast

import anyio
import pytest

from converge.contracts.store import Batch, Committed, Feature, Store
from converge.model.keys import POOL
from converge.testing._store.base import StoreCase, get, take_of
from converge.testing.clauses import expect

PROMPT_SEC = 0.5
"""What a wake of a store that NOTIFIES takes at the median, at most: half of the time of those that poll each
second.
"""


OVERTAKEN = 10
"""How often a watch begins while another one ends."""

TOLD = 12
"""Wakes after each of which a watcher reads at once."""

GIVEN = 2
"""Items that a watch may give after its caller was cancelled: those that were on their way."""

BUSY = 3
"""Wakes each of which comes while its watcher looks, and does not wait."""


class Watcher:
    """Counts the times it is told to look."""

    def __init__(self, near_sec: float) -> None:
        self.near_sec = near_sec
        self.told = 0
        self.changed = anyio.Event()

    def tell(self) -> None:
        self.told += 1
        self.changed.set()
        self.changed = anyio.Event()

    async def told_more_than(self, count: int) -> bool:
        with anyio.move_on_after(self.near_sec):
            while self.told <= count:
                await self.changed.wait()
        return self.told > count


@asynccontextmanager
async def watching(store: Store, *channels: str, near_sec: float) -> AsyncIterator[Watcher]:
    """Watch channels in a task of its own; the watch is in force when the block begins."""
    watcher, left = Watcher(near_sec), [0]

    async def watch() -> None:
        # An async generator by its implementations, an iterator by its type.
        items = cast("AsyncGenerator[None]", store.watch(list(channels)))
        try:
            async for _ in items:
                watcher.tell()
                left[0] += tasks.cancel_scope.cancel_called
                if left[0] > GIVEN:
                    break  # else it would never end
        finally:
            with anyio.CancelScope(shield=True):
                await items.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        expect("S-9", await watcher.told_more_than(0), f"a watch gave no first item within {near_sec:g} s")
        yield watcher
        tasks.cancel_scope.cancel()
    expect("S-9", left[0] <= GIVEN, "a watch goes on though its caller was cancelled")


class WakeClauses(StoreCase):
    """A wake reaches a watcher in time, and a read after it finds the write."""

    async def test_a_wake_reaches_a_watcher_of_another_handle(self, store: Store) -> None:
        """S-9."""
        async with store.reopen() as other, watching(store, "lane.1", "pool:docs", near_sec=self.near_sec) as watcher:
            count = watcher.told
            await other.commit([], wake=["pool:docs"])
            expect("S-9", await watcher.told_more_than(count), f"a wake was not told within {self.near_sec:g} s")

    async def test_a_wake_does_not_depend_on_what_its_call_has_done(self, store: Store) -> None:
        """S-9: one beside a take, also one that is refused, and one of a call of whose batches one was refused."""
        stale = Batch([(POOL("x"), 7)], [(POOL("x"), b"")])
        async with store.reopen() as other, watching(store, "c", near_sec=self.near_sec) as watcher:
            for name, call in (
                ("a take", partial(other.turn, [_news(1)], take_of([1], 1))),
                ("a take alone", partial(other.turn, [], take_of([1], 1))),
                ("a take that is refused", partial(other.turn, [_news(3)], take_of([1], 1, checks=[(POOL("x"), 7)]))),
                ("a conflict", partial(other.commit, [stale, _news(2)])),
            ):
                count = watcher.told
                await call(wake=["c"])
                said = f"a wake beside {name} was not told within {self.near_sec:g} s"
                expect("S-9", await watcher.told_more_than(count), said)

    async def test_every_channel_of_a_watch_is_heard(self, store: Store) -> None:
        """S-9: of many, of the longest names, and of names in which only the case differs."""
        names = ["a", "A", ":", "-._", "9" * 120, "x" * 119 + "y", "x" * 119 + "Y", *(f"lane.{n}" for n in range(60))]
        async with store.reopen() as other, watching(store, *names, near_sec=self.near_sec) as watcher:
            for name in (*names[:7], names[-1]):
                count = watcher.told
                await other.commit([], wake=[*(f"nobody.{number}" for number in range(20)), name])
                said = f"a wake of {name}, of {len(names)} channels, was not told within {self.near_sec:g} s"
                expect("S-9", await watcher.told_more_than(count), said)

    async def test_a_wake_reaches_at_least_one_of_several_watchers(self, store: Store) -> None:
        """S-9."""
        told = anyio.Event()

        async def wait(watcher: Watcher, count: int) -> None:
            if await watcher.told_more_than(count):
                told.set()

        async with (
            store.reopen() as other,
            watching(store, "c", near_sec=self.near_sec) as first,
            watching(store, "c", near_sec=self.near_sec) as second,
            watching(other, "c", near_sec=self.near_sec) as third,
            anyio.create_task_group() as tasks,
        ):
            for watcher in (first, second, third):
                tasks.start_soon(wait, watcher, watcher.told)
            await store.turn([], None, wake=["c", "nobody"])
            with anyio.move_on_after(self.near_sec):
                await told.wait()
            tasks.cancel_scope.cancel()
        expect("S-9", told.is_set(), f"none of three watchers was told within {self.near_sec:g} s")

    async def test_a_watch_that_begins_while_another_one_ends_is_told(self, store: Store) -> None:
        """S-9: a store that strikes out who leaves may strike out who came, when the two calls overtake each other."""
        for number in range(OVERTAKEN if Feature.NOTIFIES in self.backend.features and not self.inherited_turn else 1):
            begun, go, ended = anyio.Event(), anyio.Event(), anyio.Event()

            async def end_when_asked(
                begun: anyio.Event = begun, go: anyio.Event = go, ended: anyio.Event = ended
            ) -> None:
                async with watching(store, "c", near_sec=self.near_sec):
                    begun.set()
                    await go.wait()
                ended.set()

            async with anyio.create_task_group() as tasks, store.reopen() as other:
                tasks.start_soon(end_when_asked)
                await begun.wait()
                go.set()
                async with watching(store, "c", near_sec=self.near_sec) as watcher:
                    await ended.wait()
                    count = watcher.told
                    await other.commit([], wake=["c"])
                    said = f"a watch that began while another one ended was not told, at try {number + 1}"
                    expect("S-9", await watcher.told_more_than(count), said)

    async def test_who_looks_when_told_sees_the_last_write(self, store: Store) -> None:
        """S-9: a wake that came before its write could be read would leave its watcher asleep, and the write unseen."""
        is_prompt = Feature.NOTIFIES in self.backend.features and not self.inherited_turn
        delays = []
        async with store.reopen() as other, watching(store, "c", near_sec=self.near_sec) as watcher:
            for number in range(5 if is_prompt else 2):
                begun = anyio.current_time()
                count = watcher.told
                await other.turn([], None)  # lets a watch that is still registering get ready
                await put_and_wake(other, number)
                expect(
                    "S-9",
                    await self._sees(store, watcher, count, number),
                    f"write {number} was not seen by who looked when told",
                )
                delays.append(anyio.current_time() - begun)
        if is_prompt:
            median = sorted(delays)[len(delays) // 2]
            expect(
                "S-9",
                median < PROMPT_SEC,
                f"the store declares NOTIFIES, but a wake takes {median:.3f} s at the median",
            )

    async def test_nobody_is_told_before_the_write_can_be_read(self, store: Store) -> None:
        """S-9: who looks as soon as it is told finds the write; a repeated wake may come at any time, but is seldom."""
        if Feature.NOTIFIES not in self.backend.features or self.inherited_turn:
            pytest.skip("not applicable: watchers poll, so they are told at any time")
        early = [0, 0]  # of those by `commit`, and by `turn`
        async with store.reopen() as other, watching(store, "c", near_sec=self.near_sec) as watcher:
            for number in range(TOLD):
                count = watcher.told
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(put_and_wake, other, number)
                    expect("S-9", await watcher.told_more_than(count), f"wake {number} was not told")
                    entry = await get(store, POOL("news"))
                    early[number % 2] += entry is None or entry.value != b"%d" % number
        said = f"in {sum(early)} of {TOLD} wakes who was told could not read the write yet"
        expect("S-9", max(early) <= TOLD // 4, said)

    async def test_a_wake_that_comes_while_its_watcher_is_busy_is_told(self, store: Store) -> None:
        """S-9: who has been told looks for a while, and then waits again."""
        heard = -1
        with anyio.move_on_after(BUSY * self.near_sec):
            async with store.reopen() as other, aclosing(cast("AsyncGenerator[None]", store.watch(["c"]))) as items:
                async for _ in items:
                    heard += 1
                    if heard == BUSY:
                        break
                    await other.commit([], wake=["c"])
        expect("S-9", heard == BUSY, f"a wake that came while its watcher was busy was not told, at try {heard + 1}")

    async def _sees(self, store: Store, watcher: Watcher, count: int, number: int) -> bool:
        for _ in range(20):
            if not await watcher.told_more_than(count):
                return False
            count = watcher.told
            entry = await get(store, POOL("news"))
            if entry is not None and entry.value == b"%d" % number:
                return True
        return False

    async def test_a_watch_that_was_left_harms_nobody(self, store: Store) -> None:
        """S-9."""
        for _ in range(3):
            async with watching(store, "c", near_sec=self.near_sec):
                pass
        async with watching(store, "c", near_sec=self.near_sec) as watcher:
            count = watcher.told
            await store.commit([], wake=["c"])
            expect(
                "S-9",
                await watcher.told_more_than(count),
                f"a wake was not told within {self.near_sec:g} s after other watchers had left",
            )


async def put_and_wake(store: Store, number: int) -> None:
    (outcome,) = (
        (await store.turn([_news(number)], None, wake=["c"])).outcomes
        if number % 2
        else await store.commit([_news(number)], wake=["c"])
    )
    expect("S-3", isinstance(outcome, Committed), f"a put without checks was refused: {outcome}")


def _news(number: int) -> Batch:
    return Batch(puts=[(POOL("news"), b"%d" % number)])
