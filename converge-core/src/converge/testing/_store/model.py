"""The store contract as a plain dictionary, for one caller at a time: the expected answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

import attrs

from converge.contracts.store import (
    ABSENT,
    Batch,
    Committed,
    Conflict,
    Entry,
    Key,
    Prefix,
    Range,
    Rest,
    Take,
    Taken,
    Window,
)
from converge.testing.clauses import expect, expect_equal


class When(Enum):
    """Where store time stands to a window, by a wide margin."""

    NO_WINDOW = "without a window"
    BEFORE = "before its window"
    INSIDE = "inside its window"
    PAST = "past its window"

    def window(self, now: int) -> Window | None:
        """Return a window to which `now`, and any moment of the next half hour, stands like this."""
        hour = 3_600_000_000
        return {
            When.NO_WINDOW: None,
            When.BEFORE: Window(now + hour, now + 2 * hour),
            When.INSIDE: Window(now, now + hour),
            When.PAST: Window(None, now - 1),
        }[self]

    @property
    def is_inside(self) -> bool:
        return self in (When.NO_WINDOW, When.INSIDE)


@attrs.define
class StoreModel:
    """The keys that should be there, and the greatest revision that was answered."""

    entries: dict[Key, Entry] = attrs.field(factory=dict)
    greatest: int = 0

    def revision(self, key: Key) -> int:
        entry = self.entries.get(key)
        return ABSENT if entry is None else entry.revision

    def failed(self, checks: Iterable[tuple[Key, int]]) -> set[Key]:
        """Return the keys whose checks do not hold."""
        return {key for key, revision in checks if self.revision(key) != revision}

    def page(self, wanted: Range) -> list[Entry]:
        """Return what a scan of one range answers."""
        size = len(wanted.prefix)
        keys = sorted(
            key
            for key in self.entries
            if key[:size] == wanted.prefix and (wanted.after is None or key[size:] > wanted.after)
        )
        return [self.entries[key] for key in keys[: wanted.limit]]

    def count(self, prefix: Prefix) -> int:
        return sum(1 for key in self.entries if key[: len(prefix)] == prefix)

    def chosen(self, take: Take) -> list[tuple[Rest, Key]]:
        """Return what a take moves: each rest, and the key that it follows now."""
        found = []
        for wanted in take.ranges:
            entries = self.page(Range(wanted.prefix, wanted.after, take.limit))
            found += [(entry.key[len(wanted.prefix) :], entry.key) for entry in entries]
        return sorted(found)[: take.limit]

    def judge_batches(
        self, batches: Sequence[Batch], whens: Sequence[When], outcomes: Sequence[Committed | Conflict]
    ) -> None:
        """Compare the answers to the batches of one call with what they should be, and write what they have written.

        Raises:
            ClauseBroken: An answer is wrong.
        """
        expect_equal("S-5", len(outcomes), len(batches), "answers to the batches of a call")
        failures = [self.failed(batch.checks) for batch in batches]
        has_conflict = any(failures) or not all(when.is_inside for when in whens)
        before = self.greatest
        for batch, when, failed, outcome in zip(batches, whens, failures, outcomes, strict=True):
            what = f"{batch}, {when.value},"
            if failed or not when.is_inside:
                self._judge_conflict(what, when, failed, outcome)
            else:
                clause = "S-7" if when is When.INSIDE else "S-5" if has_conflict else "S-3"
                expect(clause, isinstance(outcome, Committed), f"{what} was refused: {outcome}")
                assert isinstance(outcome, Committed)
                expect(
                    "S-6",
                    outcome.revision > before,
                    f"a commit ended at revision {outcome.revision}, not after {before}, known when it began",
                )
                self._write(batch, outcome.revision)

    def _judge_conflict(self, what: str, when: When, failed: set[Key], outcome: Committed | Conflict) -> None:
        clause = "S-3" if when.is_inside else "S-7"
        expect(
            clause, isinstance(outcome, Conflict), f"{what} was committed, though {failed or 'the window'} did not hold"
        )
        assert isinstance(outcome, Conflict)
        expect_equal("S-7", outcome.window, not when.is_inside, f"{what} was refused; whether for its window")
        if when.is_inside:
            expect_equal("S-3", set(outcome.keys), failed, f"{what} was refused; the keys of the conflict")

    def _write(self, batch: Batch, revision: int) -> None:
        self.greatest = max(self.greatest, revision)
        for key, value in batch.puts:
            self.entries[key] = Entry(key, value, revision)
        for key in batch.deletes:
            self.entries.pop(key, None)

    def judge_get(self, keys: Sequence[Key], entries: Sequence[Entry | None], clause: str) -> None:
        """Compare the answer of a get with what it should be; entries out of place are S-1's matter, wrong ones
        `clause`'s.

        Raises:
            ClauseBroken: An entry is wrong.
        """
        expect_equal("S-1", len(entries), len(keys), "entries of a get")
        placed = [entry is None or entry.key == key for key, entry in zip(keys, entries, strict=True)]
        expect("S-1", all(placed), f"a get of {keys} has answered entries of other keys, or in another order")
        expect_equal(clause, list(entries), [self.entries.get(key) for key in keys], "entries read back")

    def judge_pages(self, ranges: Sequence[Range], pages: Sequence[Sequence[Entry]], clause: str) -> None:
        """Compare the pages of a scan with what they should be; keys out of place are S-2's matter, wrong ones
        `clause`'s.

        Raises:
            ClauseBroken: A page is wrong.
        """
        expect_equal("S-2", len(pages), len(ranges), "pages of a scan")
        for wanted, page in zip(ranges, pages, strict=True):
            keys = [entry.key for entry in page]
            strangers = [key for key in keys if key[: len(wanted.prefix)] != wanted.prefix]
            expect(
                "S-2", not strangers, f"a scan of {wanted} has answered keys that are not under its prefix: {strangers}"
            )
            expect_equal("S-2", keys, sorted(set(keys))[: wanted.limit], f"the order of the keys of {wanted}")
            expect_equal(clause, list(page), self.page(wanted), f"the entries of {wanted}")

    def judge_take(self, take: Take, outcome: Taken | Conflict | None, *, has_batches: bool) -> None:
        """Compare the answer to a take, alone or with batches in its turn, with what it should be, and move what it has
        moved.

        Raises:
            ClauseBroken: The answer is wrong.
        """
        failed = self.failed(take.checks)
        if failed:
            expect(
                "S-10",
                isinstance(outcome, Conflict),
                f"{take} was carried out, though {failed} did not hold: {outcome}",
            )
            expect_equal(
                "S-10",
                isinstance(outcome, Conflict) and set(outcome.keys),
                failed,
                "the keys of the conflict of a take",
            )
            return
        chosen = self.chosen(take)
        is_left_out = has_batches and (not isinstance(outcome, Taken) or (chosen and not outcome.rests))
        clause = "S-13" if is_left_out else "S-10"
        expect(clause, isinstance(outcome, Taken), f"{take} was answered {outcome}, though its checks hold")
        assert isinstance(outcome, Taken)
        expect_equal(clause, list(outcome.rests), [rest for rest, _ in chosen], f"the rests that {take} has moved")
        values = [[self._value(family(rest[-1])) for family in take.also] for rest, _ in chosen]
        expect_equal("S-10", [list(row) for row in outcome.also], values, f"the values that {take} has read")
        expect_equal("S-10", len(outcome.heads), len(take.ranges), f"heads of {take}")
        if not chosen:
            expect_equal("S-10", outcome.revision, 0, "the revision of a take that moved nothing")
            return
        expect(
            "S-6",
            outcome.revision > self.greatest,
            f"a take ended at revision {outcome.revision}, not after {self.greatest}",
        )
        puts = [(take.to + rest + take.tail, b"%d" % outcome.time) for rest, _ in chosen]
        self._write(Batch((), puts, [key for _, key in chosen]), outcome.revision)

    def _value(self, key: Key) -> bytes | None:
        entry = self.entries.get(key)
        return None if entry is None else entry.value
