"""S-10, S-13: what one caller sees of a take and of a turn."""

from __future__ import annotations

from converge.contracts.store import LIMITS, Batch, Committed, Conflict, Entry, Range, Rest, Store, Take, Window
from converge.model.keys import HELD, LATER, LEASE, POOL, READY, STATE, TASK
from converge.testing._store.base import (
    LEASE_ID,
    NONCE,
    OTHER_LEASE_ID,
    StoreCase,
    commit,
    committed,
    get,
    ident,
    keys_under,
    lane,
    put,
    ready,
    scan,
    take,
    take_of,
    taken,
)  # fmt: skip
from converge.testing.clauses import expect, expect_equal


class TakeClauses(StoreCase):
    """A take moves the smallest rests of its ranges in one step; a turn is the batches, then the take."""

    async def test_take_moves_the_smallest_rests_over_all_ranges(self, store: Store) -> None:
        """S-10."""
        # The ranks of one lane lie among those of another, so that lane after lane, or rank without id, gives another
        # order.
        places = [(1, 5, 1), (1, 9, 9), (2, -3, 4), (2, 5, 0), (2, 7, 2), (3, 5, 3), (3, 6, 8), (4, 0, 7)]
        await put(store, *(ready(*place) for place in places), ready(0, -9, 10), ready(5, -9, 11), ready(256, -9, 12))
        rests = [(rank, ident(number)) for _, rank, number in sorted(places, key=lambda place: place[1:])]
        moved = taken("S-10", await take(store, take_of([3, 1, 4, 2], 6)), "a take without checks")
        expect_equal("S-10", list(moved.rests), rests[:6], "the rests that a take of 6 of 8 answers, in order")
        entries = await scan(store, Range(HELD(LEASE_ID)))
        wanted = [Entry(HELD(LEASE_ID, *rest, NONCE), b"%d" % moved.time, moved.revision) for rest in rests[:6]]
        expect_equal("S-10", entries, wanted, "the entries that it has put, with store time as value, at its revision")
        left = [key for number in (1, 2, 3, 4) for key in await keys_under(store, READY(lane(number)))]
        expect_equal("S-10", left, [ready(1, 9, 9), ready(2, 7, 2)], "the keys that it has left in its ranges")
        others = [key for number in (0, 5, 256) for key in await keys_under(store, READY(lane(number)))]
        expect_equal("S-10", len(others), 3, "keys left in the lanes that it did not name")

    async def test_take_answers_store_time_and_a_new_revision(self, store: Store) -> None:
        """S-10."""
        last = await put(store, *(ready(1, number, number) for number in range(4)))
        for _ in range(2):
            before = await store.time()
            moved = taken("S-10", await take(store, take_of([1], 2)), "a take without checks")
            expect(
                "S-10",
                before <= moved.time <= await store.time(),
                f"the take's time {moved.time} is not between store time before and after",
            )
            expect(
                "S-6",
                moved.revision > last,
                f"the take's revision {moved.revision} is not after {last}, that of the commit before it",
            )
            last = moved.revision

    async def test_take_with_right_checks_moves_and_leaves_them_alone(self, store: Store) -> None:
        """S-10."""
        keys = [LEASE(LEASE_ID), POOL("docs")]
        revision = await put(store, *keys)
        await put(store, ready(1, 0, 1))
        checks = [(key, revision) for key in keys]
        moved = taken("S-10", await take(store, take_of([1], 5, checks=checks)), "a take whose checks hold")
        expect_equal("S-10", len(moved.rests), 1, "rests moved")
        expect_equal(
            "S-10",
            list(await store.get(keys)),
            [Entry(key, b"", revision) for key in keys],
            "the entries that it has checked",
        )

    async def test_take_with_a_failed_check_moves_nothing(self, store: Store) -> None:
        """S-10."""
        lease, pool, gone = LEASE(LEASE_ID), POOL("docs"), LEASE(OTHER_LEASE_ID)
        revision = await put(store, lease, gone)
        committed("S-3", await commit(store, deletes=[gone]), "a delete")
        paused = await put(store, pool)
        await put(store, ready(1, 0, 1))
        for wrong in ((pool, revision), (pool, paused + 1), (gone, revision)):
            for lanes in ([1], [2]):  # with something to take, and without
                outcome = await take(store, take_of(lanes, 5, checks=[(lease, revision), wrong]))
                expect(
                    "S-10",
                    isinstance(outcome, Conflict),
                    f"a take whose check {wrong} does not hold was carried out: {outcome}",
                )
                expect_equal(
                    "S-10", isinstance(outcome, Conflict) and set(outcome.keys), {wrong[0]}, "the keys of the conflict"
                )
        expect_equal(
            "S-10", await keys_under(store, READY(lane(1))), [ready(1, 0, 1)], "the keys that a refused take has left"
        )
        expect_equal("S-10", await keys_under(store, HELD(LEASE_ID)), [], "the keys that a refused take has put")

    async def test_take_of_nothing_answers_nothing(self, store: Store) -> None:
        """S-10."""
        await put(store, ready(1, 0, 1), ready(3, 0, 1))
        moved = taken("S-10", await take(store, take_of([2, 4], 5)), "a take of empty ranges")
        answer = (moved.revision, list(moved.rests), list(moved.also), list(moved.heads))
        expect_equal("S-10", answer, (0, [], [], [None, None]), "revision, rests, also and heads of a take of nothing")

    async def test_take_begins_after_a_rest(self, store: Store) -> None:
        """S-10."""
        await put(store, *(ready(number, rank, 10 * number + rank) for number in (1, 2) for rank in (1, 2, 3)))
        ranges = [Range(READY(lane(1)), (2, ident(12))), Range(READY(lane(2)), (1, ident(20)))]
        moved = taken("S-10", await take(store, Take(ranges, 3, HELD(LEASE_ID), (NONCE,))), "a take after rests")
        expect_equal(
            "S-10", list(moved.rests), [(1, ident(21)), (2, ident(22)), (3, ident(13))], "the rests after those given"
        )

    async def test_take_reads_what_is_under_each_id(self, store: Store) -> None:
        """S-10."""
        await put(store, *(ready(1 + number % 2, number, number) for number in range(5)))
        for number in range(4):
            await put(store, TASK(ident(number)), value=b'"task %d"' % number)
        states = {2: b'"state 2"', 3: b""}  # an empty value is one, too
        for number, value in states.items():
            await put(store, STATE(ident(number)), value=value)
        moved = taken("S-10", await take(store, take_of([1, 2], 9, also=[TASK, STATE])), "a take with also")
        wanted = [[b'"task %d"' % number if number < 4 else None, states.get(number)] for number in range(5)]
        expect_equal(
            "S-10", [list(values) for values in moved.also], wanted, "the values of task and state under each rest's id"
        )
        await put(store, ready(1, 9, 2))
        moved = taken("S-10", await take(store, take_of([1, 2], 9, also=[STATE])), "a take with also")
        expect_equal("S-10", [list(values) for values in moved.also], [[b'"state 2"']], "the value of state alone")

    async def test_heads_are_rests_that_are_left(self, store: Store) -> None:
        """S-10: a hint, but in a quiet store not a wrong one."""
        await put(store, *(ready(number, rank, 10 * number + rank) for number in (1, 2) for rank in (1, 2, 3)))
        moved = taken("S-10", await take(store, take_of([1, 3, 2], 3)), "a take")
        expect_equal("S-10", len(moved.heads), 3, "heads of a take of 3 ranges")
        for at, number in ((0, 1), (1, 3), (2, 2)):
            left: list[Rest | None] = [key[2:] for key in await keys_under(store, READY(lane(number)))]
            head = moved.heads[at]
            expect(
                "S-10",
                head is None or head == left[0],
                f"the head of lane {number} is {head}, but the first rest that is left is {left[:1]}",
            )

    async def test_take_goes_from_any_family_to_any_that_fits(self, store: Store) -> None:
        """S-10: due tasks become ready in one step, and claims change their lease."""
        await put(store, *(LATER(due, ident(due)) for due in (30, 10, 20)))
        moved = taken(
            "S-10",
            await take(store, Take([Range((LATER,))], 2, READY(lane(1)), ())),
            "a take of the whole family later",
        )
        expect_equal("S-10", list(moved.rests), [(10, ident(10)), (20, ident(20))], "rests from later")
        expect_equal(
            "S-10",
            await keys_under(store, READY(lane(1))),
            [ready(1, 10, 10), ready(1, 20, 20)],
            "keys put under ready",
        )
        held = [HELD(LEASE_ID, rank, ident(rank), NONCE) for rank in (1, 2)]
        await put(store, *held)
        moved = taken(
            "S-10",
            await take(store, Take([Range(HELD(LEASE_ID))], 9, HELD(OTHER_LEASE_ID), ())),
            "a take from one lease to another",
        )
        expect_equal(
            "S-10",
            await keys_under(store, HELD(OTHER_LEASE_ID)),
            [HELD(OTHER_LEASE_ID, *key[2:]) for key in held],
            "keys moved",
        )
        expect_equal("S-10", await keys_under(store, HELD(LEASE_ID)), [], "keys left")

    async def test_take_may_be_as_large_as_the_limits_say(self, store: Store) -> None:
        """S-10."""
        count = LIMITS.taken
        places = [(number % LIMITS.ranges, number * 7 % 1_009, number) for number in range(count + 40)]
        await put(store, *(ready(*place) for place in places))
        rests = [(rank, ident(number)) for _, rank, number in sorted(places, key=lambda place: place[1:])]
        moved = taken(
            "S-10", await take(store, take_of(list(range(LIMITS.ranges)), count, also=[TASK])), "a large take"
        )
        expect_equal(
            "S-10", list(moved.rests), rests[:count], f"the rests of a take of {count} from {LIMITS.ranges} ranges"
        )
        expect_equal(
            "S-10",
            list(await store.count([HELD(LEASE_ID), (READY,)])),
            [count, 40],
            "how many keys are moved, and left",
        )

    async def test_turn_applies_its_batches_and_its_take(self, store: Store) -> None:
        """S-13."""
        lease = LEASE(LEASE_ID)
        revision = await put(store, lease)
        await put(store, ready(1, 1, 1), ready(1, 2, 2))
        held = HELD(LEASE_ID, 0, ident(9), NONCE)
        token = await put(store, held)
        batches = [
            Batch([(held, token)], [(STATE(ident(9)), b"1")], [held]),
            Batch([(lease, revision)], [(POOL("a"), b"")]),
        ]
        turned = await store.turn(batches, take_of([1], 1, checks=[(lease, revision)], also=[TASK]))
        expect_equal(
            "S-13",
            [isinstance(outcome, Committed) for outcome in turned.outcomes],
            [True, True],
            "which batches are committed",
        )
        moved = turned.taken
        expect("S-13", moved is not None and not isinstance(moved, Conflict), f"the take was not carried out: {moved}")
        expect_equal(
            "S-13",
            await keys_under(store, HELD(LEASE_ID)),
            [HELD(LEASE_ID, 1, ident(1), NONCE)],
            "held keys after the turn",
        )
        entry = await get(store, STATE(ident(9)))
        expect("S-13", entry is not None and entry.value == b"1", "what a batch of the turn has put is not there")

    async def test_the_take_of_a_turn_does_not_depend_on_its_batches(self, store: Store) -> None:
        """S-13."""
        pool = POOL("a")
        revision = await put(store, pool, ready(1, 1, 1))
        now = await store.time()
        batches = [
            Batch([(pool, revision + 1)], [(POOL("b"), b"")]),
            Batch(puts=[(POOL("c"), b"")], window=Window(at_most=now - 1)),
        ]
        turned = await store.turn([*batches, Batch(puts=[(POOL("d"), b"")])], take_of([1], 5))
        expect_equal(
            "S-13",
            [isinstance(outcome, Conflict) for outcome in turned.outcomes],
            [True, True, False],
            "which batches are refused",
        )
        moved = turned.taken
        rests = list(moved.rests) if moved is not None and not isinstance(moved, Conflict) else moved
        expect_equal("S-13", rests, [(1, ident(1))], "rests taken beside refused batches")
        expect_equal("S-13", await keys_under(store, (POOL,)), [pool, POOL("d")], "what the batches have written")

    async def test_the_batches_of_a_turn_do_not_depend_on_its_take(self, store: Store) -> None:
        """S-13."""
        lease = LEASE(LEASE_ID)
        revision = await put(store, lease)
        await put(store, ready(1, 1, 1))
        turned = await store.turn([Batch(puts=[(POOL("a"), b"")])], take_of([1], 5, checks=[(lease, revision + 1)]))
        expect_equal(
            "S-13",
            [isinstance(outcome, Committed) for outcome in turned.outcomes],
            [True],
            "which batches are committed",
        )
        expect("S-13", isinstance(turned.taken, Conflict), f"a take with a stale check was carried out: {turned.taken}")
        expect_equal("S-13", await keys_under(store, (POOL,)), [POOL("a")], "what the batch has written")

    async def test_turn_without_a_take_is_a_commit(self, store: Store) -> None:
        """S-13."""
        await put(store, ready(1, 1, 1))
        turned = await store.turn([Batch(puts=[(POOL("a"), b"")]), Batch([(POOL("b"), 7)], [(POOL("b"), b"")])], None)
        answer = ([isinstance(outcome, Conflict) for outcome in turned.outcomes], turned.taken)
        expect_equal("S-13", answer, ([False, True], None), "which batches are refused, and the take")
        expect_equal("S-13", await keys_under(store, READY(lane(1))), [ready(1, 1, 1)], "ready keys")

    async def test_what_a_turn_puts_may_be_taken_by_the_next(self, store: Store) -> None:
        """S-13: within the turn itself a take may or may not see it."""
        turned = await store.turn([Batch(puts=[(ready(1, 1, 1), b"")])], take_of([1], 5))
        first = taken(
            "S-13", turned.taken if turned.taken is not None else Conflict(), "a take beside a put into its range"
        )
        second = taken("S-10", await take(store, take_of([1], 5)), "a take")
        expect_equal("S-13", [*first.rests, *second.rests], [(1, ident(1))], "what the two takes together have moved")
