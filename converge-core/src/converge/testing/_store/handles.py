"""S-9, S-14, S-16, S-17: wakes, what stays, what an error means, handles in other threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import cast

import anyio
import anyio.lowlevel

from converge.contracts.store import ABSENT, Batch, Committed, Entry, Feature, Key, Store
from converge.errors import NotApplied, OutcomeUnknown
from converge.model.keys import HELD, POOL, READY, TASK
from converge.testing._store.base import (
    LEASE_ID,
    NONCE,
    Cut,
    Opening,
    StoreCase,
    commit,
    committed,
    get,
    ident,
    in_other_thread,
    keys_under,
    lane,
    put,
    ready,
    refused,
    take,
    take_of,
    taken,
)  # fmt: skip
from converge.testing.clauses import expect, expect_equal

PROMPT_SEC = 0.5
"""What a wake of a store that NOTIFIES takes at the median, at most: half of the time of those that poll each
second.
"""


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
    watcher = Watcher(near_sec)

    async def watch() -> None:
        # An async generator by its implementations, an iterator by its type.
        items = cast("AsyncGenerator[None]", store.watch(list(channels)))
        try:
            async for _ in items:
                watcher.tell()
        finally:
            with anyio.CancelScope(shield=True):
                await items.aclose()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        expect("S-9", await watcher.told_more_than(0), f"a watch gave no first item within {near_sec:g} s")
        yield watcher
        tasks.cancel_scope.cancel()


class HandleClauses(StoreCase):
    """Wakes arrive, commits stay, errors tell the truth, handles work side by side."""

    async def test_a_wake_reaches_a_watcher_of_another_handle(self, store: Store) -> None:
        """S-9."""
        async with store.reopen() as other, watching(store, "lane.1", "pool:docs", near_sec=self.near_sec) as watcher:
            count = watcher.told
            await other.commit([], wake=["pool:docs"])
            expect("S-9", await watcher.told_more_than(count), f"a wake was not told within {self.near_sec:g} s")

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

    async def test_every_handle_sees_what_was_committed(self, store: Store) -> None:
        """S-14."""
        async with store.reopen() as other:
            for number in range(10):
                writer, reader = (store, other) if number % 2 else (other, store)
                key = ready(1, number, number)
                revision = await put(writer, key, value=b"%d" % number)
                expect_equal(
                    "S-14",
                    await get(reader, key),
                    Entry(key, b"%d" % number, revision),
                    "what another handle has written",
                )
            expect_equal(
                "S-14", len(await keys_under(other, READY(lane(1)))), 10, "keys seen by a scan of another handle"
            )
            moved = taken("S-10", await take(other, take_of([1], 4)), "a take through another handle")
            expect_equal(
                "S-14",
                [key[2:4] for key in await keys_under(store, HELD(LEASE_ID))],
                list(moved.rests),
                "keys that another handle has taken",
            )

    async def test_a_new_handle_sees_the_last_write(self, store: Store) -> None:
        """S-14."""
        for number in range(5):
            key = POOL(str(number))
            revision = await put(store, key, value=b"%d" % number)
            async with store.reopen() as other:
                expect_equal(
                    "S-14",
                    await get(other, key),
                    Entry(key, b"%d" % number, revision),
                    "the last write, through a new handle",
                )
                last = await put(other, POOL("last"), value=b"%d" % number)
            expect_equal(
                "S-14",
                await get(store, POOL("last")),
                Entry(POOL("last"), b"%d" % number, last),
                "the last write of a handle that is closed",
            )

    async def test_what_was_committed_outlives_its_handles(self, opening: Opening) -> None:
        """S-14: within one opening for every store, over a restart for one that is PERSISTENT."""
        revisions: dict[int, int] = {}
        for restart in range(3 if self.is_persistent() else 1):
            async with opening() as store:
                expect_equal(
                    "S-14",
                    await keys_under(store, READY(lane(1))),
                    [ready(1, n, n) for n in range(4 * restart)],
                    "keys after a restart",
                )
                entries = await store.get([ready(1, n, n) for n in range(4 * restart)])
                expect_equal(
                    "S-14",
                    [entry and entry.revision for entry in entries],
                    list(revisions.values()),
                    "revisions after a restart",
                )
                for number in range(4 * restart, 4 * restart + 4):
                    revisions[number] = await put(store, ready(1, number, number))
                expect_equal(
                    "S-14",
                    await keys_under(store, READY(lane(1))),
                    [ready(1, n, n) for n in revisions],
                    "keys within one opening",
                )

    async def test_a_broken_connection_before_the_request_is_told_truly(
        self, store: Store, cut: Callable[[Cut], None] | None
    ) -> None:
        """S-16."""
        await self._errors_tell_the_truth(store, cut, Cut.BEFORE)

    async def test_a_lost_reply_is_told_truly(self, store: Store, cut: Callable[[Cut], None] | None) -> None:
        """S-16."""
        await self._errors_tell_the_truth(store, cut, Cut.AFTER)

    async def _errors_tell_the_truth(self, store: Store, cut: Callable[[Cut], None] | None, moment: Cut) -> None:
        """Without a means to cut connections this only sees that a store raises no error for nothing."""
        for number in range(8):
            key = POOL(str(number))
            if cut is not None and number % 2:
                cut(moment)
            try:
                outcome = await commit(store, checks=[(key, ABSENT)], puts=[(key, b"1"), (TASK(ident(number)), b"1")])
            except NotApplied as error:
                left = [
                    entry is not None for entry in await eventually_read(store, self.near_sec, key, TASK(ident(number)))
                ]
                expect_equal(
                    "S-16", left, [False, False], f"what a commit that raised {error!r} ({moment.value}) has written"
                )
            except OutcomeUnknown:
                left = [
                    entry is not None for entry in await eventually_read(store, self.near_sec, key, TASK(ident(number)))
                ]
                expect(
                    "S-3",
                    left in ([False, False], [True, True]),
                    f"half a batch is there after a cut {moment.value}: {left}",
                )
            else:
                at = committed("S-16", outcome, "a batch that was repeated by nobody").revision
                expect_equal(
                    "S-16", await get(store, key), Entry(key, b"1", at), "what an acknowledged commit has written"
                )

    async def test_a_cancelled_commit_is_whole_or_not_at_all(self, store: Store) -> None:
        """S-16: cancelled at a moment that moves with each round, a commit is as one whose outcome is unknown."""
        for number in range(self.rounds):
            keys = [POOL(f"{number}.{at}") for at in range(4)]
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_commit_quietly, store, keys)
                    for _ in range(number % 7):
                        await anyio.lowlevel.checkpoint()
                    if number % 3 == 2:
                        await anyio.sleep(0.0004 * number)
                    scope.cancel()
            there = [entry is not None for entry in await store.get(keys)]
            expect("S-3", len(set(there)) == 1, f"half a batch is there after its commit was cancelled: {there}")
            # What was cancelled may still be on its way: who re-puts the keys decides, as a caller of an unknown
            # outcome would.
            committed("S-16", await commit(store, puts=[(key, b"2") for key in keys]), "a commit after a cancelled one")

    async def test_a_handle_works_in_another_thread_with_a_loop_of_its_own(
        self, store: Store, anyio_backend: str
    ) -> None:
        """S-17."""
        key = POOL("docs")
        revision = await put(store, key, ready(1, 1, 1), ready(1, 2, 2))
        opened, seen = store.reopen(), []

        async def elsewhere() -> None:
            async with opened as other:
                seen.append(await get(other, key))
                moved = taken(
                    "S-17", await take(other, take_of([1], 1, checks=[(key, revision)])), "a take in another thread"
                )
                seen.append(Entry(HELD(LEASE_ID, *moved.rests[0], NONCE), b"%d" % moved.time, moved.revision))
                refused(
                    "S-17",
                    await commit(other, checks=[(key, revision + 1)], puts=[(key, b"1")]),
                    "a stale batch in another thread",
                )

        await in_other_thread(elsewhere, anyio_backend)
        expect_equal("S-17", seen[0], Entry(key, b"", revision), "what another thread has read")
        expect_equal(
            "S-17", await get(store, HELD(LEASE_ID, 1, ident(1), NONCE)), seen[1], "what another thread has taken"
        )

    async def test_handles_in_two_threads_work_at_the_same_time(self, store: Store, anyio_backend: str) -> None:
        """S-17."""
        opened = store.reopen()

        async def write(handle: Store, number: int) -> None:
            for at in range(self.rounds):
                key = TASK(ident(1_000 * number + at))
                revision = await put(handle, key, value=b"%d" % at)
                expect_equal(
                    "S-17",
                    await get(handle, key),
                    Entry(key, b"%d" % at, revision),
                    "what this thread has just written",
                )

        async def elsewhere() -> None:
            async with opened as other:
                await write(other, 2)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_other_thread, elsewhere, anyio_backend)
            tasks.start_soon(write, store, 1)
        keys = [TASK(ident(1_000 * number + at)) for number in (1, 2) for at in range(self.rounds)]
        expect("S-17", all(await store.get(keys)), "not all that two threads have written is there")

    async def test_a_wake_crosses_threads(self, store: Store, anyio_backend: str) -> None:
        """S-17."""
        opened = store.reopen()

        async def elsewhere() -> None:
            async with opened as other:
                await other.commit([], wake=["c"])

        async with watching(store, "c", near_sec=self.near_sec) as watcher:
            count = watcher.told
            await in_other_thread(elsewhere, anyio_backend)
            expect(
                "S-17",
                await watcher.told_more_than(count),
                f"a wake from another thread was not told within {self.near_sec:g} s",
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


async def _commit_quietly(store: Store, keys: Sequence[Key]) -> None:
    # A store may say so when it is cancelled; the reads that follow decide.
    with suppress(OutcomeUnknown, NotApplied):
        await store.commit([Batch(puts=[(key, b"1") for key in keys])])


async def eventually_read(store: Store, near_sec: float, *keys: Key) -> Sequence[Entry | None]:
    """Read once the store can be reached again."""
    with anyio.fail_after(near_sec):
        while True:
            try:
                return await store.get(keys)
            except NotApplied:
                await anyio.sleep(0.01)
