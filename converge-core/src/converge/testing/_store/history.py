"""Random histories, played on the store through three handles and on a dictionary side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, groupby
from typing import Any, NamedTuple

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from converge.contracts.store import ABSENT, Batch, Check, Committed, Key, Put, Range, Rest, Take
from converge.model.keys import DEDUP, HELD, LEASE, POOL, READY, STATE, TASK, Family
from converge.testing._store.base import Opening, StoreCase
from converge.testing._store.model import StoreModel, When
from converge.testing._store.world import HANDLES, World
from converge.testing.clauses import expect_equal

STEPS = 25
MOST_REOPENS, MOST_RESTARTS = 2, 1
"""In one history: connecting to a server takes longer than everything else together."""
LANES, RANKS, IDS = range(4), (-1, 0, 2**40), range(2)
NAMES = ("a", "aa", "a%", "b")
VALUES = (b"", b"1", b'{"text": "\xc3\xa9"}', b'"' + b"x" * 3_000 + b'"')

# A key before the salt of its history is known: the family, then a number or text for each part; an id is (lane,
# number).
Place = tuple[Family, tuple[Any, ...]]
READIES: tuple[Place, ...] = tuple((READY, (n, rank, (n, at))) for n in LANES for rank in RANKS for at in IDS)
RECORDS: tuple[Place, ...] = tuple((family, ((n, at),)) for family in (TASK, STATE) for n in LANES for at in IDS)
DEDUPS: tuple[Place, ...] = tuple((DEDUP, (pool, key)) for pool in NAMES for key in ("x", "xx"))
GUARDS: tuple[Place, ...] = ((LEASE, ((9, 0),)), (LEASE, ((9, 1),)), (POOL, ("a",)), (POOL, ("aa",)))


class Op(NamedTuple):
    """What a batch does to one key."""

    place: Place
    check: str
    action: str
    value: bytes
    batch: int


def ops(places: Sequence[Place], *, most: int) -> st.SearchStrategy[list[Op]]:
    op = st.builds(
        Op,
        place=st.sampled_from(places),
        check=st.sampled_from(["none", "right", "right", "absent", "older", "newer"]),
        action=st.sampled_from(["put", "put", "delete", "none"]),
        value=st.sampled_from(VALUES),
        batch=st.integers(0, 3),
    )
    return st.lists(op, min_size=1, max_size=most, unique_by=lambda op: op.place)


handles = st.integers(0, HANDLES - 1)
whens = st.lists(st.sampled_from([When.NO_WINDOW, When.NO_WINDOW, *When]), min_size=4, max_size=4)
guards = st.lists(
    st.tuples(st.sampled_from(GUARDS), st.sampled_from(["right", "right", "right", "older"])),
    max_size=2,
    unique_by=lambda guard: guard[0],
)
lanes = st.lists(st.sampled_from(LANES), min_size=1, max_size=4, unique=True)
afters = st.lists(st.none() | st.tuples(st.sampled_from(RANKS), st.sampled_from(IDS)), min_size=4, max_size=4)


class StoreHistory(RuleBasedStateMachine):
    """One history: each rule is a call, whose answer is compared at once, and what it left is read back through any
    handle.
    """

    def __init__(self, world: World, is_persistent: bool) -> None:
        super().__init__()
        self.world, self.is_persistent = world, is_persistent
        self.salt = world.next_salt()
        self.model = StoreModel()
        self.nonces = count()
        self.reopens = self.restarts = 0

    # Keys of this history.

    def part(self, value: Any) -> Any:
        """Salt ids and names; integers stay as they are."""
        if isinstance(value, tuple):
            lane_number, number = value
            return b"h" + self.salt.to_bytes(7, "big") + lane_number.to_bytes(4, "big") + number.to_bytes(4, "big")
        return f"{self.salt}.{value}" if isinstance(value, str) else value

    def lane(self, number: int) -> bytes:
        return b"l" + self.salt.to_bytes(7, "big") + number.to_bytes(8, "big")

    def key(self, place: Place) -> Key:
        family, parts = place
        if family == READY:
            return READY(self.lane(parts[0]), parts[1], self.part(parts[2]))
        return family(self.part(parts[0]), *parts[1:])

    def check_of(self, key: Key, kind: str, *, is_put: bool) -> Check | None:
        now = self.model.revision(key)
        if kind == "none" or (kind == "right" and now == ABSENT and not is_put):
            return None
        if kind == "absent":
            return (key, ABSENT) if is_put else (key, now + 7)
        return key, {"right": now, "older": max(now - 1, 1) if now != 1 else 2, "newer": now + 1}[kind]

    def batches_of(self, chosen: Sequence[Op], guarded: Sequence[tuple[Place, str]] = ()) -> list[Batch]:
        shared = [
            check
            for place, kind in guarded
            if (check := self.check_of(self.key(place), kind, is_put=False)) is not None
        ]
        batches = []
        for _, group in groupby(sorted(chosen, key=lambda op: op.batch), key=lambda op: op.batch):
            checks: list[Check] = list(shared)
            puts: list[Put] = []
            deletes: list[Key] = []
            for op in group:
                key = self.key(op.place)
                check = self.check_of(key, op.check, is_put=op.action == "put")
                checks += [check] if check is not None else []
                if op.action == "put":
                    puts.append((key, op.value))
                elif op.action == "delete":
                    deletes.append(key)
            batches.append(Batch(checks, puts, deletes))
        return batches

    def timed(self, handle: int, batches: Sequence[Batch], when: Sequence[When]) -> list[Batch]:
        now = self.world.call(handle, lambda store: store.time())
        return [batch._replace(window=at.window(now)) for batch, at in zip(batches, when, strict=False)]

    def read_back(self, handle: int, keys: Sequence[Key], clause: str) -> None:
        entries = self.world.call(handle, lambda store: store.get(keys))
        self.model.judge_get(keys, entries, clause)

    def read_back_batches(self, handle: int, batches: Sequence[Batch], is_committed: Sequence[bool]) -> None:
        is_mixed = not all(is_committed)
        for batch, committed in zip(batches, is_committed, strict=True):
            clause = "S-5" if is_mixed and committed else "S-3"
            self.read_back(
                handle, [*(key for key, _ in batch.checks), *(key for key, _ in batch.puts), *batch.deletes], clause
            )

    # Calls.

    @rule(handle=handles, reader=handles, chosen=ops(READIES + RECORDS + DEDUPS, most=10), guarded=guards, when=whens)
    def commit(
        self, handle: int, reader: int, chosen: list[Op], guarded: list[tuple[Place, str]], when: list[When]
    ) -> None:
        batches = self.timed(handle, self.batches_of(chosen, guarded), when)
        outcomes = self.world.call(handle, lambda store: store.commit(batches))
        when = when[: len(batches)]
        self.model.judge_batches(batches, when, outcomes)
        self.read_back_batches(reader, batches, [isinstance(outcome, Committed) for outcome in outcomes])

    @rule(handle=handles, places=st.lists(st.sampled_from(READIES), min_size=1, max_size=12, unique=True))
    def fill_lanes(self, handle: int, places: list[Place]) -> None:
        batch = Batch(puts=[(self.key(place), b"") for place in places])
        outcomes = self.world.call(handle, lambda store: store.commit([batch]))
        self.model.judge_batches([batch], [When.NO_WINDOW], outcomes)

    @rule(handle=handles, place=st.sampled_from(GUARDS), action=st.sampled_from(["put", "put", "put", "delete"]))
    def change_a_guard(self, handle: int, place: Place, action: str) -> None:
        self.commit(handle, handle, [Op(place, "right", action, b"1", 0)], [], [When.NO_WINDOW])

    @rule(place=st.sampled_from(RECORDS + DEDUPS), turns=st.integers(1, 3))
    def race_for_a_key(self, place: Place, turns: int) -> None:
        """All handles at once check one key, absent or at its revision, and put it: one is committed."""
        for _ in range(turns):
            key = self.key(place)
            batches = [Batch([(key, self.model.revision(key))], [(key, b"%d" % number)]) for number in range(HANDLES)]
            answers = self.world.at_once([lambda store, batch=batch: store.commit([batch]) for batch in batches])  # type: ignore[misc]
            won = [number for number, (outcome,) in enumerate(answers) if isinstance(outcome, Committed)]
            expect_equal(
                "S-4",
                len(won),
                1,
                f"commits that checked {key} at {self.model.revision(key)} at once and were carried out",
            )
            self.model.judge_batches([batches[won[0]]], [When.NO_WINDOW], answers[won[0]])
            self.read_back(won[0] - 1, [key], "S-4")

    @rule(
        handle=handles,
        place=st.sampled_from(READIES + RECORDS + DEDUPS),
        action=st.sampled_from(["put", "delete"]),
        when=st.booleans(),
    )
    def say_it_three_times(self, handle: int, place: Place, action: str, when: bool) -> None:
        """A fenced call that is repeated, as after a lost reply, has its effect once."""
        key = self.key(place)
        if action == "delete" and self.model.revision(key) == ABSENT:
            return
        at = When.INSIDE if when else When.NO_WINDOW
        check = (key, self.model.revision(key))
        batch = Batch([check], [(key, b"1")]) if action == "put" else Batch([check], (), [key])
        batches = self.timed(handle, [batch], [at])
        for number in range(3):
            outcomes = self.world.call((handle + number) % HANDLES, lambda store: store.commit(batches))
            self.model.judge_batches(batches, [at], outcomes)
        self.read_back(handle, [key], "S-3")

    @rule(
        handle=handles, reader=handles, numbers=lanes, limit=st.integers(1, 5), after=afters, guarded=guards,
        also=st.lists(st.sampled_from([TASK, STATE]), max_size=2, unique=True), lease=st.integers(0, 1),
        chosen=st.just([]) | ops(RECORDS + DEDUPS, most=4), when=whens,
    )  # fmt: skip
    def turn(
        self, handle: int, reader: int, numbers: list[int], limit: int, after: list[tuple[int, int] | None],
        guarded: list[tuple[Place, str]],
        also: list[Family], lease: int, chosen: list[Op], when: list[When],
    ) -> None:  # fmt: skip
        """A take, with batches beside it or alone; the batches write nothing that the take moves, reads or checks."""
        if chosen:
            also = []  # whether the take would see what the batches put is not said
        ranges = [Range(READY(self.lane(n)), self._after(n, rest)) for n, rest in zip(numbers, after, strict=False)]
        checks = [
            check
            for place, kind in guarded
            if (check := self.check_of(self.key(place), kind, is_put=False)) is not None
        ]
        nonce = b"n" + self.salt.to_bytes(7, "big") + next(self.nonces).to_bytes(8, "big")
        take = Take(ranges, limit, HELD(self.part((9, lease))), (nonce,), checks, also)
        batches = self.timed(handle, self.batches_of(chosen), when)
        when = when[: len(batches)]
        turned = self.world.call(handle, lambda store: store.turn(batches, take))
        # The revisions of a turn's take and batches have no order among themselves: each is after what was known
        # before.
        before = self.model.greatest
        self.model.judge_take(take, turned.taken, has_batches=bool(batches))
        after_take, self.model.greatest = self.model.greatest, before
        self.model.judge_batches(batches, when, turned.outcomes)
        self.model.greatest = max(after_take, self.model.greatest)
        self.read_back_batches(reader, batches, [isinstance(outcome, Committed) for outcome in turned.outcomes])
        self._read_all(reader, "S-10")

    def _after(self, lane_number: int, rest: tuple[int, int] | None) -> Rest | None:
        return None if rest is None else (rest[0], self.part((lane_number, rest[1])))

    @precondition(lambda self: any(key[0] == HELD for key in self.model.entries))
    @rule(handle=handles, at=st.integers(0, 50), is_late=st.booleans(), goes_back=st.booleans())
    def finish(self, handle: int, at: int, is_late: bool, goes_back: bool) -> None:
        """Delete a held key at its token, or with a wrong one; perhaps put it back."""
        held = sorted(key for key in self.model.entries if key[0] == HELD)
        key = held[at % len(held)]
        back = READY(self.lane(int.from_bytes(key[3][8:12], "big")), *key[2:4])
        batch = Batch([(key, self.model.revision(key) - is_late)], [(back, b"")] if goes_back else [], [key])
        outcomes = self.world.call(handle, lambda store: store.commit([batch]))
        self.model.judge_batches([batch], [When.NO_WINDOW], outcomes)
        self.read_back(handle, [key, back], "S-3")

    def prefixes(self) -> list[Key]:
        ready = [READY(self.lane(n), *rank) for n in LANES for rank in ((), (0,))]
        return [*ready, *(DEDUP(self.part(name)) for name in NAMES), *(HELD(self.part((9, n))) for n in (0, 1))]

    @rule(handle=handles, picks=st.lists(st.integers(0, 13), min_size=1, max_size=5), limit=st.integers(1, 4))
    def scan(self, handle: int, picks: list[int], limit: int) -> None:
        """Pages of several ranges, to their ends."""
        prefixes = [self.prefixes()[pick] for pick in picks]
        wanted: list[tuple[Key, Rest | None]] = [(prefix, None) for prefix in prefixes]
        while wanted:
            ranges = [Range(prefix, after, limit) for prefix, after in wanted]
            pages = self.world.call(handle, lambda store, ranges=ranges: store.scan(ranges))  # type: ignore[misc]
            self.model.judge_pages(ranges, pages, "S-2")
            expected = [self.model.page(each) for each in ranges]
            wanted = [
                (each.prefix, page[-1].key[len(each.prefix) :])
                for each, page in zip(ranges, expected, strict=True)
                if len(page) == limit
            ]

    @rule(handle=handles)
    def count(self, handle: int) -> None:
        prefixes = self.prefixes()
        counts = self.world.call(handle, lambda store: store.count(prefixes))
        expect_equal("S-18", list(counts), [self.model.count(prefix) for prefix in prefixes], f"counts of {prefixes}")

    @precondition(lambda self: self.reopens < MOST_REOPENS)
    @rule(handle=st.integers(1, HANDLES - 1))
    def reopen(self, handle: int) -> None:
        self.reopens += 1
        self.world.reopen(handle)
        self._read_all(handle, "S-14")

    @precondition(lambda self: self.is_persistent and self.restarts < MOST_RESTARTS)
    @rule(handle=handles)
    def restart(self, handle: int) -> None:
        self.restarts += 1
        self.world.restart()
        self._read_all(handle, "S-14")

    def _read_all(self, handle: int, clause: str) -> None:
        ranges = [Range(prefix) for prefix in self.prefixes()]
        pages = self.world.call(handle, lambda store: store.scan(ranges))
        self.model.judge_pages(ranges, pages, clause)
        self.read_back(handle, [self.key(place) for place in RECORDS + GUARDS], clause)

    def teardown(self) -> None:
        """Compare everything once more, through the handle in the other thread; after a failure that would hide what
        failed first.
        """
        error = sys.exception()
        if error is not None:
            self.world.note(error)
            return
        self._read_all(HANDLES - 1, "S-14")


@contextmanager
def first_failure_of(world: World) -> Iterator[None]:
    """Let what failed come out by its name, also where Hypothesis could not see it again: a race happens once."""
    try:
        yield
    except Flaky as error:
        if world.broken is None:
            raise
        world.broken.add_note(
            "the same history did not fail in the same way again: a race in the store, or something that it keeps "
            "beside its keys"
        )
        raise world.broken from error


def histories(examples: int, steps: int, *, shrinks: bool) -> settings:
    """Return how random histories are drawn; nothing of them is kept, and the clause that broke first is told alone."""
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, print_blob=False,
        report_multiple_bugs=False, phases=[Phase.generate, Phase.shrink] if shrinks else [Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


class HistoryClauses(StoreCase):
    """All clauses at once."""

    def test_random_histories_agree_with_a_dictionary(self, opening: Opening, anyio_backend: str) -> None:
        """S-1 to S-18: which one was broken is in the failure."""
        chosen = histories(self.examples, STEPS, shrinks=self.shrinks)
        with World(opening, anyio_backend) as world, first_failure_of(world):
            # Any factory of machines serves, whatever the type says.
            run_state_machine_as_test(lambda: StoreHistory(world, self.is_persistent()), settings=chosen)  # type: ignore[arg-type]
