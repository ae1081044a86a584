"""S-14, S-16, S-17: durability, errors, handles in other threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import anyio
import anyio.lowlevel
import pytest

from converge.contracts.store import ABSENT, Batch, Entry, Key, Store
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
from converge.testing._store.races import in_two_threads
from converge.testing._store.wakes import watching
from converge.testing.clauses import expect, expect_equal

NO_CUT = "not tried: the fixture `cut` gives nothing, so no connection is broken"


class HandleClauses(StoreCase):
    """Commits stay, errors are true, handles work concurrently."""

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

    async def test_handles_may_be_left_in_any_order(self, opening: Opening) -> None:
        """S-14: who opened a place first may leave it first."""
        opened, go, left = anyio.Event(), anyio.Event(), anyio.Event()

        async def first() -> None:
            async with opening() as one:
                await put(one, POOL("one"))
                opened.set()
                await go.wait()
            left.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await opened.wait()
            async with opening() as other:
                go.set()
                await left.wait()
                revision = await put(other, POOL("other"), value=b"1")
                wanted = Entry(POOL("other"), b"1", revision)
                expect_equal("S-14", await get(other, POOL("other")), wanted, "a write after another handle was left")
                if self.is_persistent():
                    expect("S-14", await get(other, POOL("one")) is not None, "what a handle wrote has gone with it")

    async def test_a_broken_connection_before_the_request_is_told_truly(
        self, store: Store, cut: Callable[[Cut], None] | None
    ) -> None:
        """S-16."""
        if cut is None:
            pytest.skip(NO_CUT)
        await self._errors_tell_the_truth(store, cut, Cut.BEFORE)

    async def test_a_lost_reply_is_told_truly(self, store: Store, cut: Callable[[Cut], None] | None) -> None:
        """S-16."""
        if cut is None:
            pytest.skip(NO_CUT)
        await self._errors_tell_the_truth(store, cut, Cut.AFTER)

    async def _errors_tell_the_truth(self, store: Store, cut: Callable[[Cut], None] | None, moment: Cut) -> None:
        """Check, as there are no means to cut connections, only that a store raises no error for nothing."""
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

        await in_two_threads(opened, lambda other: write(other, 2), lambda: write(store, 1), anyio_backend)
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


async def _commit_quietly(store: Store, keys: Sequence[Key]) -> None:
    # A store may say so when it is cancelled; the reads that follow decide.
    with suppress(OutcomeUnknown, NotApplied):
        await store.commit([Batch(puts=[(key, b"1") for key in keys])])


async def eventually_read(store: Store, near_sec: float, *keys: Key) -> Sequence[Entry | None]:
    """Read once the store can be reached again, as soon as a machine that stood still lets it."""
    with anyio.fail_after(6 * near_sec, reason="the store was not reached again"):
        while True:
            try:
                return await store.get(keys)
            except NotApplied:
                await anyio.sleep(0.01)
