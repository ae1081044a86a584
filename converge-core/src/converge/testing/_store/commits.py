"""S-3, S-5 to S-8: what one caller sees of commits, revisions and time."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from converge.contracts.store import ABSENT, LIMITS, Batch, Committed, Conflict, Entry, Store, Window
from converge.model.keys import LATER, LEASE, POOL, READY, TASK
from converge.testing._store.base import (
    Opening,
    StoreCase,
    commit,
    committed,
    get,
    ident,
    keys_under,
    lane,
    put,
    ready,
    refused,
)
from converge.testing.clauses import expect, expect_equal

SECOND = 1_000_000
HOUR = 3_600 * SECOND
FULL_SCALE_SEC = 60
"""How far store time may be from UTC: far more than hosts with synchronised clocks differ, far less than any mix-up of
units or zones.
"""


class CommitClauses(StoreCase):
    """A batch is all or nothing, batches are independent, revisions grow, windows are compared with store time."""

    async def test_a_batch_whose_checks_hold_is_written_whole(self, store: Store) -> None:
        """S-3."""
        kept, gone, new, later = POOL("kept"), ready(1, 0, 1), TASK(ident(1)), LATER(5, ident(1))
        revision = await put(store, kept, gone)
        outcome = await commit(
            store,
            checks=[(kept, revision), (gone, revision), (new, ABSENT)],
            puts=[(kept, b"1"), (new, b"2"), (later, b"3")],
            deletes=[gone],
        )
        at = committed("S-3", outcome, "a batch whose checks hold").revision
        entries = list(await store.get([kept, gone, new, later]))
        expect_equal(
            "S-3",
            entries,
            [Entry(kept, b"1", at), None, Entry(new, b"2", at), Entry(later, b"3", at)],
            "entries after the batch",
        )

    async def test_a_batch_with_a_stale_check_writes_nothing(self, store: Store) -> None:
        """S-3."""
        checked, other, gone, new = POOL("checked"), POOL("other"), ready(1, 0, 1), TASK(ident(1))
        first = await put(store, checked, other, gone, value=b"0")
        second = await put(store, checked, value=b"1")
        for wrong in (first, second + 1, second - 1):
            outcome = await commit(
                store, checks=[(other, first), (checked, wrong)], puts=[(other, b"2"), (new, b"2")], deletes=[gone]
            )
            conflict = refused("S-3", outcome, f"a check of revision {wrong} where {second} is there")
            expect_equal(
                "S-3",
                (set(conflict.keys), conflict.window),
                ({checked}, False),
                "the keys of the conflict, and its window",
            )
        entries = list(await store.get([checked, other, gone, new]))
        wanted = [Entry(checked, b"1", second), Entry(other, b"0", first), Entry(gone, b"0", first), None]
        expect_equal("S-3", entries, wanted, "entries after refused batches")

    async def test_a_check_of_absence_is_refused_where_the_key_is(self, store: Store) -> None:
        """S-3."""
        there, new = TASK(ident(1)), ready(1, 0, 1)
        revision = await put(store, there, value=b"0")
        outcome = await commit(store, checks=[(there, ABSENT), (new, ABSENT)], puts=[(there, b"1"), (new, b"1")])
        conflict = refused("S-3", outcome, "a check that a key is absent which is there")
        expect_equal("S-3", set(conflict.keys), {there}, "the keys of the conflict")
        expect_equal(
            "S-3",
            list(await store.get([there, new])),
            [Entry(there, b"0", revision), None],
            "entries after a refused batch",
        )

    async def test_a_check_of_a_revision_is_refused_where_no_key_is(self, store: Store) -> None:
        """S-3."""
        key, other = LEASE(ident(1)), POOL("other")
        revision = await put(store, key)
        committed("S-3", await commit(store, deletes=[key]), "a delete")
        conflict = refused(
            "S-3", await commit(store, checks=[(key, revision)], puts=[(other, b"")]), "a check of a deleted key"
        )
        expect_equal("S-3", set(conflict.keys), {key}, "the keys of the conflict")
        again = await put(store, key)
        refused(
            "S-3",
            await commit(store, checks=[(key, revision)], deletes=[key]),
            "a check of the revision before the key was deleted and put again",
        )
        committed("S-3", await commit(store, checks=[(key, again)], deletes=[key]), "a check of the last revision")

    async def test_a_conflict_names_each_key_whose_check_failed_and_no_other(self, store: Store) -> None:
        """S-3."""
        keys = [TASK(ident(number)) for number in range(6)] + [ready(1, 0, number) for number in range(6)]
        revision = await put(store, *keys)
        checks = [(key, revision + number % 2) for number, key in enumerate(keys)]
        conflict = refused(
            "S-3", await commit(store, checks=checks, puts=[(POOL("x"), b"")]), "a batch of which half the checks hold"
        )
        expect_equal(
            "S-3",
            sorted(conflict.keys),
            sorted(key for number, key in enumerate(keys) if number % 2),
            "the keys of the conflict",
        )

    async def test_a_batch_of_checks_only_is_legal(self, store: Store) -> None:
        """S-3."""
        key = POOL("docs")
        revision = await put(store, key)
        committed("S-3", await commit(store, checks=[(key, revision)]), "a batch that only checks")
        refused("S-3", await commit(store, checks=[(key, revision + 1)]), "a batch that only checks, what is not so,")
        expect_equal("S-3", await get(store, key), Entry(key, b"", revision), "the entry that was only checked")

    async def test_a_delete_of_an_absent_key_changes_nothing(self, store: Store) -> None:
        """S-3."""
        outcome = committed(
            "S-3",
            await commit(store, puts=[(POOL("a"), b"")], deletes=[ready(1, 0, 1), TASK(ident(1))]),
            "a delete of nothing",
        )
        expect_equal(
            "S-3", await get(store, POOL("a")), Entry(POOL("a"), b"", outcome.revision), "the entry put beside it"
        )

    async def test_a_batch_may_be_as_large_as_the_limits_say(self, store: Store) -> None:
        """S-3."""
        third = LIMITS.batch_ops // 3
        old = [ready(1, 0, number) for number in range(third)]
        new = [ready(2, 0, number) for number in range(third)]
        for at in range(0, third, 500):
            await put(store, *old[at : at + 500])
        entries = [entry for at in range(0, third, 500) for entry in await store.get(old[at : at + 500])]
        checks = [(entry.key, entry.revision) for entry in entries if entry is not None]
        expect_equal("S-1", len(checks), third, "keys that are there")
        stale = [(checks[-1][0], checks[-1][1] + 1)]
        refused(
            "S-3",
            await commit(store, checks=checks[:-1] + stale, puts=[(key, b"") for key in new], deletes=old),
            "a large stale batch",
        )
        expect_equal("S-3", await keys_under(store, READY(lane(2))), [], "what a large refused batch has written")
        committed(
            "S-3", await commit(store, checks=checks, puts=[(key, b"") for key in new], deletes=old), "a large batch"
        )
        expect_equal("S-3", await keys_under(store, READY(lane(2))), new, "what a large batch has put")
        expect_equal("S-3", await keys_under(store, READY(lane(1))), [], "what a large batch has left of its deletes")

    async def test_a_conflict_changes_nothing_for_the_batches_beside_it(self, store: Store) -> None:
        """S-5."""
        keys = [ready(1, 0, number) for number in range(60)]
        guard = POOL("guard")
        revision = await put(store, guard)
        batches = [
            Batch([(guard, revision + (1 if n % 3 == 1 else 0)), (key, ABSENT)], [(key, b"%d" % n)])
            for n, key in enumerate(keys)
        ]
        outcomes = await store.commit(batches)
        expect_equal(
            "S-5",
            [isinstance(outcome, Committed) for outcome in outcomes],
            [n % 3 != 1 for n in range(60)],
            "which batches are committed",
        )
        there = [entry and entry.value for entry in await store.get(keys)]
        expect_equal(
            "S-5", there, [None if n % 3 == 1 else b"%d" % n for n in range(60)], "what each batch has written"
        )
        refusals = [set(outcome.keys) for outcome in outcomes if isinstance(outcome, Conflict)]
        expect_equal("S-5", refusals, [{guard}] * 20, "the keys of the conflicts")

    async def test_answers_come_in_the_order_of_the_batches(self, store: Store) -> None:
        """S-5."""
        keys = [TASK(ident((37 * number) % 101)) for number in range(101)]
        outcomes = await store.commit([Batch(puts=[(key, b"%d" % n)]) for n, key in enumerate(keys)])
        revisions = [committed("S-5", outcome, "a put").revision for outcome in outcomes]
        entries = [Entry(key, b"%d" % n, revisions[n]) for n, key in enumerate(keys)]
        expect_equal(
            "S-5",
            list(await store.get(keys)),
            entries,
            "entries, with the revisions answered in the order of the batches",
        )

    async def test_a_call_may_have_as_many_batches_as_the_limits_say(self, store: Store) -> None:
        """S-5."""
        keys = [TASK(ident(number)) for number in range(LIMITS.batches)]
        await put(store, *keys[::10])
        outcomes = await store.commit([Batch([(key, ABSENT)], [(key, b"1")]) for key in keys])
        expect_equal(
            "S-5",
            [isinstance(outcome, Conflict) for outcome in outcomes],
            [n % 10 == 0 for n in range(len(keys))],
            "which conflict",
        )
        values = [entry and entry.value for entry in await store.get(keys)]
        expect_equal("S-5", values, [b"" if n % 10 == 0 else b"1" for n in range(len(keys))], "values")

    async def test_a_call_may_have_as_many_operations_as_the_limits_say(self, store: Store) -> None:
        """S-5."""
        size = LIMITS.batch_ops
        keys = [READY(lane(number), 0, ident(at)) for number in range(LIMITS.call_ops // size) for at in range(size)]
        outcomes = await store.commit(
            [Batch(puts=[(key, b"") for key in keys[at : at + size]]) for at in range(0, len(keys), size)]
        )
        for outcome in outcomes:
            committed("S-5", outcome, "a batch of a call with many operations")
        pages = [await store.get(keys[at : at + LIMITS.keys]) for at in range(0, len(keys), LIMITS.keys)]
        there = sum(entry is not None for page in pages for entry in page)
        expect_equal("S-5", there, len(keys), "how many keys a large call has put")

    async def test_revisions_grow_over_all_keys(self, store: Store) -> None:
        """S-6."""
        last = 0
        for number in range(30):
            key = (POOL(str(number % 7)), ready(1, 0, number), TASK(ident(number)))[number % 3]
            outcome = await commit(store, deletes=[key]) if number % 5 == 4 else await commit(store, puts=[(key, b"")])
            revision = committed("S-3", outcome, "a batch without checks").revision
            expect(
                "S-6",
                revision > last,
                f"commit {number} ended at revision {revision}, not after {last}, that of the commit before it",
            )
            last = revision

    async def test_a_key_that_is_put_again_has_a_greater_revision(self, store: Store) -> None:
        """S-6."""
        key, last = LEASE(ident(1)), 0
        for _ in range(5):
            revision = await put(store, key)
            entry = await get(store, key)
            expect_equal(
                "S-6", entry, Entry(key, b"", revision), "the entry with the revision that its commit was answered with"
            )
            expect(
                "S-6",
                revision > last,
                f"the key was put again at revision {revision}; it was at {last} before it was deleted",
            )
            committed("S-3", await commit(store, checks=[(key, revision)], deletes=[key]), "a delete")
            last = revision

    async def test_revisions_grow_over_all_handles(self, store: Store) -> None:
        """S-6."""
        last = 0
        for number in range(6):
            async with store.reopen() as other:
                for handle in (other, store, other):
                    revision = await put(handle, POOL(f"{handle is other}{number}"))
                    expect("S-6", revision > last, f"revision {revision} follows {last} of another handle")
                    last = revision

    async def test_revisions_grow_over_a_restart(self, opening: Opening) -> None:
        """S-6."""
        last = 0
        for number in range(3 if self.is_persistent() else 1):
            async with opening() as store:
                for at in range(3):
                    revision = await put(store, POOL(f"{number}.{at}"))
                    expect("S-6", revision > last, f"revision {revision} after restart {number} follows {last}")
                    last = revision

    async def test_a_window_lets_a_batch_through_only_within_it(self, store: Store) -> None:
        """S-7."""
        now = await store.time()
        inside = [Window(now, now + HOUR), Window(at_least=now), Window(at_most=now + HOUR), Window(), Window(0, None)]
        outside = [
            Window(at_least=now + HOUR),
            Window(at_most=now - 1),
            Window(now - HOUR, now - SECOND),
            Window(now + HOUR, now + 2 * HOUR),
        ]
        for number, window in enumerate(inside):
            committed(
                "S-7",
                await commit(store, puts=[(TASK(ident(number)), b"")], window=window),
                f"a batch at {now} or later within {window}",
            )
        for window in outside:
            conflict = refused(
                "S-7",
                await commit(store, puts=[(POOL("x"), b"")], window=window),
                f"a batch at {now} or a little later, outside {window},",
            )
            expect_equal("S-7", (conflict.keys, conflict.window), ((), True), "the keys and the window of the conflict")
        expect_equal("S-7", await get(store, POOL("x")), None, "what batches outside their windows have written")

    async def test_each_batch_has_its_own_window(self, store: Store) -> None:
        """S-7."""
        now = await store.time()
        windows = [None, Window(at_most=now - 1), Window(at_least=now), Window(at_least=now + HOUR), None]
        outcomes = await store.commit(
            [Batch(puts=[(POOL(str(n)), b"")], window=window) for n, window in enumerate(windows)]
        )
        conflicts = [isinstance(outcome, Conflict) and outcome.window for outcome in outcomes]
        expect_equal("S-7", conflicts, [False, True, False, True, False], "which batches are refused for their window")
        there = [entry is not None for entry in await store.get([POOL(str(n)) for n in range(5)])]
        expect_equal("S-7", there, [True, False, True, False, True], "which batches are written")

    @pytest.mark.parametrize("ahead_sec", [3_600.0, -3_600.0])
    async def test_a_clients_wall_clock_plays_no_part_in_a_window(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, ahead_sec: float
    ) -> None:
        """S-7: a client whose wall clock is an hour wrong is let through, and refused, as every other."""
        async with store.reopen() as other:
            now = await store.time()
            shift_wall_clock(monkeypatch, ahead_sec)
            for number, handle in enumerate((store, other)):
                outcome = await commit(handle, puts=[(POOL(str(number)), b"")], window=Window(now, now + HOUR // 2))
                committed(
                    "S-7", outcome, f"a batch within its window, by a client whose clock is {ahead_sec:g} s wrong,"
                )
                for window in (Window(at_least=now + HOUR // 2), Window(at_most=now - 1)):
                    outcome = await commit(handle, puts=[(POOL("x"), b"")], window=window)
                    refused(
                        "S-7", outcome, f"a batch outside its window, by a client whose clock is {ahead_sec:g} s wrong,"
                    )

    @pytest.mark.parametrize("ahead_sec", [3_600.0, -3_600.0])
    async def test_a_clients_wall_clock_does_not_move_store_time(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, ahead_sec: float
    ) -> None:
        """S-8."""
        before = await store.time()
        shift_wall_clock(monkeypatch, ahead_sec)
        after = await store.time()
        expect(
            "S-8",
            0 <= after - before < HOUR // 2,
            f"store time went from {before} to {after} when a client's clock moved by {ahead_sec:g} s",
        )

    async def test_time_is_close_to_utc_in_microseconds(self, store: Store) -> None:
        """S-8."""
        now, here = await store.time(), time.time_ns() // 1_000
        expect("S-8", abs(now - here) < FULL_SCALE_SEC * SECOND, f"store time is {now}, this machine's is {here}")

    async def test_retention_never_goes_beyond_store_time(self, store: Store) -> None:
        """S-8."""
        until = await store.retention_time()
        now = await store.time()
        expect("S-8", until <= now, f"retention may remove what is due until {until}, and store time is {now}")

    async def test_time_never_runs_backwards_over_all_handles(self, store: Store) -> None:
        """S-8."""
        async with store.reopen() as other:
            last = 0
            for number in range(60):
                now = await (store, other)[number % 2].time()
                expect("S-8", now >= last, f"store time went back from {last} to {now}")
                last = now


def shift_wall_clock(monkeypatch: pytest.MonkeyPatch, ahead_sec: float) -> None:
    """Make this process read another wall-clock time; the monotonic clock, which event loops use, is unchanged."""
    seconds: Callable[[], float] = time.time
    nanoseconds: Callable[[], int] = time.time_ns
    monkeypatch.setattr(time, "time", lambda: seconds() + ahead_sec)
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + int(ahead_sec * 1e9))
