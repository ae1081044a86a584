"""S-4, S-11, S-12: what several callers at once see, in one event loop and in two threads."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import anyio.lowlevel

from converge.contracts.store import ABSENT, Batch, Check, Conflict, Entry, Key, Rest, Store, Take, Taken
from converge.model.keys import DEDUP, HELD, LEASE, POOL, READY, TASK
from converge.testing._store.base import (
    LEASE_ID,
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
    take,
    take_of,
)  # fmt: skip
from converge.testing.clauses import expect, expect_equal

RACERS = 6
TASKS = 60
HALT_SEC = 0.001


class Halting(tuple[Check, ...]):
    """Checks behind whose last one the reading thread stands still: where they and the writes are not one step, another
    thread comes in between. By itself it nearly never would.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[Check]:
        yield from super().__iter__()
        time.sleep(HALT_SEC)  # it blocks on purpose: only so does the interpreter turn to the other thread


class RaceClauses(StoreCase):
    """Checks and writes are one step, no key is taken twice, what a take checks stays."""

    async def test_of_many_commits_that_check_one_revision_one_holds(self, store: Store) -> None:
        """S-4."""
        key, other = POOL("docs"), TASK(ident(1))
        revision = await put(store, key)
        async with several(store, RACERS) as handles:
            for turn in range(self.rounds):
                winners: list[tuple[int, int]] = []

                async def race(number: int, at: int = revision, won: list[tuple[int, int]] = winners) -> None:
                    outcome = await commit(
                        handles[number], checks=[(key, at)], puts=[(key, b"%d" % number), (other, b"%d" % number)]
                    )
                    if not isinstance(outcome, Conflict):
                        won.append((number, outcome.revision))

                await at_once([lambda number=number: race(number) for number in range(RACERS)])  # type: ignore[misc]  # default binds the number
                expect_equal(
                    "S-4", len(winners), 1, f"commits that checked one revision and were carried out, in round {turn}"
                )
                number, revision = winners[0]
                wanted = [Entry(key, b"%d" % number, revision), Entry(other, b"%d" % number, revision)]
                expect_equal("S-4", list(await store.get([key, other])), wanted, "what the winner has written")

    async def test_of_many_commits_that_check_one_absence_one_holds(self, store: Store) -> None:
        """S-4."""
        async with several(store, RACERS) as handles:
            for turn in range(self.rounds):
                key: Key = (DEDUP("pool", str(turn)), TASK(ident(turn)), ready(1, turn, turn))[turn % 3]
                winners: list[int] = []

                async def race(number: int, key: Key = key, won: list[int] = winners) -> None:
                    outcome = await commit(handles[number], checks=[(key, ABSENT)], puts=[(key, b"%d" % number)])
                    if not isinstance(outcome, Conflict):
                        won.append(number)

                await at_once([lambda number=number: race(number) for number in range(RACERS)])  # type: ignore[misc]  # default binds the number
                expect_equal(
                    "S-4", len(winners), 1, f"commits that checked one absence and were carried out, in round {turn}"
                )
                entry = await get(store, key)
                expect(
                    "S-4",
                    entry is not None and entry.value == b"%d" % winners[0],
                    f"the winner is {winners[0]}, but {entry} is there",
                )

    async def test_no_increment_of_a_counter_is_lost_between_threads(self, store: Store, anyio_backend: str) -> None:
        """S-4."""
        key, opened = POOL("counter"), store.reopen()
        await put(store, key, value=b"0")
        each = max(4, self.rounds // 2)

        async def add(handle: Store) -> None:
            done = 0
            for _ in range(400 * each):
                entry = await get(handle, key)
                assert entry is not None
                checks = Halting([(key, entry.revision)])
                outcome = await commit(handle, checks=checks, puts=[(key, b"%d" % (int(entry.value) + 1))])
                done += not isinstance(outcome, Conflict)
                if done == each:
                    return
            expect(
                "S-4",
                False,
                f"{400 * each} tries of a counter gave {done} of {each} increments: the loser of a race never wins",
            )

        async def add_twice(handle: Store) -> None:
            await at_once([lambda: add(handle)] * 2)

        await in_two_threads(opened, add_twice, lambda: add_twice(store), anyio_backend)
        entry = await get(store, key)
        expect_equal("S-4", entry and entry.value, b"%d" % (4 * each), "the counter after all increments")

    async def test_two_takes_never_move_the_same_key(self, store: Store, anyio_backend: str) -> None:
        """S-11."""
        opened = store.reopen()
        for turn in range(max(2, self.rounds // 8)):
            keys = [ready(number % 3, number // 5, number) for number in range(TASKS)]
            await put(store, *keys)
            moved: list[Rest] = []
            await self._drain(store, moved, nonces=range(100 * turn, 100 * turn + 4))
            await self._moved_once(store, keys, moved)
        keys = [ready(number % 3, number // 5, number) for number in range(TASKS)]
        await put(store, *keys)
        here: list[Rest] = []
        there: list[Rest] = []

        await in_two_threads(
            opened,
            lambda other: self._drain(other, there, nonces=range(901, 903)),
            lambda: self._drain(store, here, nonces=range(903, 905)),
            anyio_backend,
        )
        await self._moved_once(store, keys, here + there)

    async def _drain(self, store: Store, moved: list[Rest], *, nonces: range) -> None:
        """Take with one task for each nonce until nothing is left; a take may answer too little while others are at
        it.
        """

        async def claim(number: int) -> None:
            for _ in range(20 * TASKS):
                outcome = await take(store, take_of([0, 1, 2], 1 + number % 7, nonce=ident(number)))
                if isinstance(outcome, Conflict):
                    expect("S-10", False, f"a take without checks was refused: {outcome}")
                    return
                moved.extend(outcome.rests)
                if not outcome.rests and sum(await store.count([READY(lane(number)) for number in range(3)])) == 0:
                    return
            expect("S-11", False, f"{20 * TASKS} takes did not empty {TASKS} keys")

        await at_once([lambda number=number: claim(number) for number in nonces])  # type: ignore[misc]  # default binds the number

    async def _moved_once(self, store: Store, keys: Sequence[Key], moved: Sequence[Rest]) -> None:
        twice = sorted({rest for rest in moved if moved.count(rest) > 1})
        expect("S-11", not twice, f"{len(twice)} keys were answered by more than one take, such as {twice[:1]}")
        expect_equal(
            "S-11", sorted(moved), sorted(key[2:] for key in keys), "the rests that all takes together have answered"
        )
        held = await keys_under(store, HELD(LEASE_ID))
        expect_equal(
            "S-11", sorted(key[2:4] for key in held), sorted(moved), "the keys that all takes together have put"
        )
        await store.commit([Batch(deletes=held)])

    async def test_a_take_never_ends_after_what_it_checks_was_changed(self, store: Store) -> None:
        """S-12: who ends a lease and then reads what was taken under it has read all that ever will be."""
        async with store.reopen() as other:
            await self._lease_ends_under_takes(store, other)

    async def test_a_take_in_another_thread_never_ends_after_what_it_checks_was_changed(
        self, store: Store, anyio_backend: str
    ) -> None:
        """S-12."""
        opened = store.reopen()

        begun = [threading.Event() for _ in range(self.rounds)]

        async def end_all(other: Store) -> None:
            for number, event in enumerate(begun):
                if number % 2:  # the others end whenever they do
                    await turns_until(event)
                await self._end_lease(other, number)

        takes: list[Taken | Conflict | None] = []
        for number in range(self.rounds):
            await put(store, *(ready(number, at, at) for at in range(3)))
        self.seen: dict[int, list[Key]] = {}
        revisions = [await put(store, LEASE(ident(number))) for number in range(self.rounds)]

        async def take_all() -> None:
            try:
                for number, revision in enumerate(revisions):
                    begun[number].set()
                    claim = self._claim(number, revision)
                    takes.append(await take(store, claim._replace(checks=Halting(claim.checks))))
            finally:
                for event in begun:  # the other thread waits for no take that is never made
                    event.set()

        await in_two_threads(opened, end_all, take_all, anyio_backend)
        for number, outcome in enumerate(takes):
            await self._nothing_came_later(store, number, outcome)

    async def _lease_ends_under_takes(self, store: Store, other: Store) -> None:
        self.seen = {}
        for number in range(2 * self.rounds):
            await put(store, *(ready(number, at, at) for at in range(3)))
            revision = await put(store, LEASE(ident(number)))
            takes: list[Taken | Conflict] = []

            async def claim(
                number: int = number, revision: int = revision, takes: list[Taken | Conflict] = takes
            ) -> None:
                takes.append(await take(store, self._claim(number, revision)))

            async def end(number: int = number) -> None:
                for _ in range(number // 2 % 6):
                    await anyio.lowlevel.checkpoint()
                await self._end_lease(other, number)

            await at_once([claim, end] if number % 2 else [end, claim])
            await self._nothing_came_later(store, number, takes[0])

    def _claim(self, number: int, revision: int) -> Take:
        return take_of([number], 3, lease=ident(number), checks=[(LEASE(ident(number)), revision)])

    async def _end_lease(self, store: Store, number: int) -> None:
        committed("S-3", await commit(store, deletes=[LEASE(ident(number))]), "the delete of a lease")
        self.seen[number] = await keys_under(store, HELD(ident(number)))

    async def _nothing_came_later(self, store: Store, number: int, outcome: Taken | Conflict | None) -> None:
        held, seen = await keys_under(store, HELD(ident(number))), self.seen[number]
        expect_equal(
            "S-12",
            held,
            seen,
            f"keys taken under a lease, at last and just after the lease had ended (the take answered {outcome})",
        )
        if isinstance(outcome, Conflict):
            expect_equal("S-12", held, [], "keys taken by a take that was refused")


@asynccontextmanager
async def several(store: Store, count: int) -> AsyncIterator[list[Store]]:
    """Yield as many references as asked, to this handle and to a second one in turn."""
    async with store.reopen() as other:
        yield [(store, other)[number % 2] for number in range(count)]


async def in_two_threads(
    opened: AbstractAsyncContextManager[Store],
    there: Callable[[Store], Awaitable[None]],
    here: Callable[[], Awaitable[None]],
    loop: str,
) -> None:
    """Run one coroutine function on a handle of another thread and one here, both from when that handle is open: else
    this one had mostly ended before.
    """
    is_open, is_begun = threading.Event(), threading.Event()

    async def elsewhere() -> None:
        async with opened as other:
            is_open.set()
            await turns_until(is_begun)
            await there(other)

    async def begin() -> None:
        try:
            await turns_until(is_open)
        finally:
            is_begun.set()  # also when this is cancelled: the other thread cannot be
        await here()

    await at_once([lambda: in_other_thread(elsewhere, loop), begin])


async def turns_until(event: threading.Event) -> None:
    """Let the event loop run until another thread has set this."""
    while not event.is_set():
        await anyio.lowlevel.checkpoint()


async def at_once(works: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run coroutine functions as tasks, each started before the next has had a turn; the first error of a clause comes
    out alone.
    """
    errors: list[BaseException] = []

    async def run(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # told by the caller, who is one task up
            errors.append(error)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for work in works:
            tasks.start_soon(run, work)
    if errors:
        raise errors[0]
