"""Fifty tasks, several threads with an event loop each; what they were told is checked against the order in which it
can have happened.

Calls of one task that overlap may have happened in any order; calls that do not, in theirs. Tokens make the check
small: they say in which order the claims of a task were made, so that only the end of each claim, the cancels and the
final state are left to be explained.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count, pairwise
from typing import TypeVar

import anyio
import anyio.to_thread
import attrs

from converge.contracts.store import Store
from converge.errors import NotApplied, StaleClaim
from converge.machines.task import TERMINAL, TaskState
from converge.model.task import Task
from converge.testing._store.base import in_other_thread
from converge.testing._task.base import POOL, Process, TaskCase
from converge.testing.clauses import expect, expect_equal

T = TypeVar("T")

TASKS = 50
THREADS = 3
LOOPS = 2
"""Claimers of each thread, which share its process."""
MOST_ATTEMPTS = 3
PATIENCE_SEC = 30.0
RACE_LEASE_SEC = 60.0
FINISHES = ("complete", "fail", "give_up", "release", "stale")
WEIGHTS = (3, 6, 1, 4, 2)


@attrs.frozen(kw_only=True)
class Call:
    """A call of one task as its caller saw it, from its beginning to its answer (seconds, on the one clock that all
    threads have).

    Attributes:
        what: `claim`, `cancel`, or a way to finish.
        is_taken: Whether the answer was that it took effect.
        token: The claim's; 0 for a cancel.
        result: What a `complete` gave, different in each.
        attempts: What a claim showed.
    """

    task_id: str
    what: str
    began: float
    ended: float
    is_taken: bool
    token: int = 0
    result: str = ""
    attempts: int = 0


class Racer:
    """One thread: a process of its own, claimers that do what their seed says, and the calls they made."""

    def __init__(
        self,
        number: int,
        seed: int,
        calls: list[Call],
        ids: Sequence[str],
        start: threading.Barrier,
        done: threading.Event,
    ) -> None:
        self.number, self.seed, self.calls, self.ids = number, seed, calls, ids
        self.start, self.done = start, done
        self.claims: list[Task] = []
        self.results = count()  # no two calls say the same

    async def run(self, opened: Store) -> None:
        """Claim and finish until nothing is left."""
        process = Process(opened, RACE_LEASE_SEC)
        try:
            await until_applied(process.handle.lease)
            await anyio.to_thread.run_sync(self.start.wait, PATIENCE_SEC)
            with anyio.fail_after(PATIENCE_SEC):
                async with anyio.create_task_group() as group:
                    for loop in range(LOOPS):
                        group.start_soon(self.claimer, process, random.Random(f"{self.seed}/{self.number}/{loop}"))
                    group.start_soon(self.canceller, process, random.Random(f"{self.seed}/{self.number}/cancel"))
        finally:
            self.done.set()  # after a failure nobody goes on
            await process.handle.close()

    async def claimer(self, process: Process, choice: random.Random) -> None:
        while not self.done.is_set():
            limit = choice.randint(1, 6)
            began = time.monotonic()
            tasks = await until_applied(partial(process.claim, limit))
            ended = time.monotonic()
            for task in tasks:
                made = {"what": "claim", "token": task.token, "attempts": task.attempts}
                self.calls.append(Call(task_id=task.id, began=began, ended=ended, is_taken=True, **made))  # type: ignore[arg-type]
            self.claims += tasks
            for task in tasks:
                await anyio.sleep(choice.choice((0, 0, 0.002)))
                await self.finish(process, task, choice)
            if not tasks:
                await until_applied(process.sweep.page)  # failed ones wait there for their retry
                await self.look_for_the_end(process)
                await anyio.sleep(0.002)  # a store that answers from memory lets nobody else of this loop go on

    async def look_for_the_end(self, process: Process) -> None:
        for state in (TaskState.PENDING, TaskState.ASSIGNED):
            if await process.tasks.list(state=state, pool_id=POOL, limit=1):
                return
        # What moved between the two looks was in one of them: only a task that goes back is in neither, so a third look
        # decides.
        if not await process.tasks.list(state=TaskState.PENDING, pool_id=POOL, limit=1):
            states = [(await process.tasks.get(task_id)).state for task_id in self.ids]
            if all(state in TERMINAL for state in states):
                self.done.set()

    async def finish(self, process: Process, task: Task, choice: random.Random) -> None:
        (what,) = choice.choices(FINISHES, WEIGHTS)
        if what == "stale":  # somebody who was away comes first, with any earlier claim of this process
            await self.say(process, choice.choice(self.claims), "complete")
            what = "complete"
        await self.say(process, task, what)

    async def say(self, process: Process, task: Task, what: str) -> None:
        result = f"{self.number}-{next(self.results)}"
        began = time.monotonic()
        try:
            if what == "complete":
                await until_applied(partial(process.tasks.complete, task, result))
            elif what == "release":
                await until_applied(partial(process.tasks.release, task, result))
            else:
                await until_applied(partial(process.tasks.fail, task, result, retry=what == "fail"))
            is_taken = True
        except StaleClaim:
            is_taken = False
        made = Call(
            task_id=task.id,
            what=what,
            began=began,
            ended=time.monotonic(),
            is_taken=is_taken,
            token=task.token,
            result=result,
        )
        self.calls.append(made)

    async def canceller(self, process: Process, choice: random.Random) -> None:
        for task_id in choice.sample(list(self.ids), 5):
            began = time.monotonic()
            is_taken = await until_applied(partial(process.tasks.cancel, task_id))
            self.calls.append(
                Call(task_id=task_id, what="cancel", began=began, ended=time.monotonic(), is_taken=is_taken)
            )
            await anyio.sleep(choice.random() * 0.02)


async def until_applied(call: Callable[[], Awaitable[T]]) -> T:
    """Make the call until the store does not refuse it: a disk that stalls for longer than a store waits breaks no
    clause, and changed nothing.
    """
    while True:
        try:
            return await call()
        except NotApplied:
            await anyio.sleep(0.01)


def check_history(task: Task, calls: Sequence[Call]) -> None:
    """Find the one order in which the calls of this task can have happened, or fail with the clause that forbids it."""
    claims = sorted((call for call in calls if call.what == "claim"), key=lambda call: call.token)
    ends = {
        claim.token: [call for call in calls if call.token == claim.token and call is not claim] for claim in claims
    }
    tokens = [claim.token for claim in claims]
    expect("T-3", len(set(tokens)) == len(tokens), f"two claims of {task.id} have one token: {tokens}")
    for earlier, later in pairwise(claims):
        expect("T-3", earlier.began <= later.ended, f"token {earlier.token} of {task.id} was given after {later.token}")
    effects = [check_ends(task, claim, ends[claim.token]) for claim in claims]
    check_order(task, claims, effects)
    check_attempts(task, claims, effects)
    check_end(task, calls, claims, effects)


def check_ends(task: Task, claim: Call, ends: Sequence[Call]) -> Call | None:
    """Check that each claim has at most one effective end; return it."""
    taken = [call for call in ends if call.is_taken]
    expect(
        "T-5",
        len(taken) <= 1,
        f"claim {claim.token} of {task.id} was ended in several ways: {[call.what for call in taken]}",
    )
    for call in taken:
        expect(
            "T-4",
            call.ended >= claim.began,
            f"{call.what} with token {claim.token} of {task.id} was taken before that was claimed",
        )
    return taken[0] if taken else None


def check_order(task: Task, claims: Sequence[Call], effects: Sequence[Call | None]) -> None:
    """Check that a claim is over when the next one is made, by an end that can have come before it."""
    for claim, effect, following in zip(claims, effects, claims[1:], strict=False):
        what = f"claim {claim.token} of {task.id} and the next, {following.token}"
        expect("T-2", effect is not None, f"{what}, were current at once: nobody has ended the first")
        assert effect is not None  # for the type checker
        expect(
            "T-2",
            effect.began <= following.ended,
            f"{what}, were current at once: the first was ended later, by {effect.what}",
        )
        expect(
            "T-6",
            effect.what in ("release", "fail"),
            f"{task.id} was claimed ({following.token}) after {effect.what} had ended it for good",
        )


def check_attempts(task: Task, claims: Sequence[Call], effects: Sequence[Call | None]) -> None:
    """Check that failures count, and releases do not."""
    counted = 0
    for claim, effect in zip(claims, effects, strict=True):
        expect_equal("T-7", claim.attempts, counted + 1, f"the attempts that claim {claim.token} of {task.id} shows")
        expect(
            "T-7",
            claim.attempts <= MOST_ATTEMPTS,
            f"{task.id} was claimed for attempt {claim.attempts} of {MOST_ATTEMPTS}",
        )
        counted += effect is not None and effect.what != "release"
    expect_equal("T-7", task.attempts, counted, f"the attempts of {task.id} at its end")


def check_end(task: Task, calls: Sequence[Call], claims: Sequence[Call], effects: Sequence[Call | None]) -> None:
    """Check that the stored state is what the one call says that ended it, and that all later ones were refused."""
    last = effects[-1] if effects else None
    cancels = [call for call in calls if call.what == "cancel" and call.is_taken]
    is_exhausted = last is not None and last.what == "fail" and task.attempts >= MOST_ATTEMPTS
    final = last if last is not None and (last.what in ("complete", "give_up") or is_exhausted) else None
    won = [call.what for call in (*cancels, final) if call is not None]
    expect("T-6", len(won) == 1, f"{task.id} has ended as {task.state}, and these calls say that it was they: {won}")
    end = cancels[0] if cancels else final
    assert end is not None, "there is one"
    wanted = {"complete": TaskState.COMPLETED, "cancel": TaskState.CANCELLED}.get(end.what, TaskState.FAILED)
    expect_equal("T-6", task.state, wanted, f"the state of {task.id}, which was ended by {end.what}")
    expect_equal("T-4", task.result, end.result if end.what == "complete" else None, f"the result of {task.id}")
    if end.what == "cancel" and claims:
        expect("T-6", claims[-1].began <= end.ended, f"{task.id} was claimed after it had been cancelled")
        expect("T-6", last is None or last.began <= end.ended, f"{task.id} was finished after it had been cancelled")
    by_token = {claim.token: effect for claim, effect in zip(claims, effects, strict=True)}
    for call in calls:
        if call.what == "cancel" and not call.is_taken:
            expect("T-6", call.ended >= end.began, f"a cancel of {task.id} was refused before {end.what} had ended it")
        elif not call.is_taken:
            why = by_token[call.token] or end
            expect(
                "T-4",
                call.ended >= why.began,
                f"{call.what} with token {call.token} of {task.id} was refused while that claim was current",
            )


class RaceClauses(TaskCase):
    """What holds when several threads do everything at once."""

    async def test_histories_of_threads_can_have_happened_one_call_at_a_time(
        self, one: Process, anyio_backend: str
    ) -> None:
        """T-2 to T-7: which one was broken is in the failure."""
        for _ in range(max(1, self.rounds // 4)):
            seed = random.SystemRandom().randrange(2**32)
            print(f"seed of the race: {seed}")  # noqa: T201 - shown where the test fails
            await self._race(one, seed, anyio_backend)

    async def _race(self, one: Process, seed: int, loop: str) -> None:
        ids = await one.tasks.submit_many(
            [Task(pool_id=POOL, max_attempts=MOST_ATTEMPTS, retry_delay_sec=0.0) for _ in range(TASKS)]
        )
        calls: list[list[Call]] = [[] for _ in range(THREADS)]
        start, done = threading.Barrier(THREADS), threading.Event()
        opens = [one.store.reopen() for _ in range(THREADS)]

        async def thread(number: int) -> None:
            async def work() -> None:
                async with opens[number] as opened:
                    await Racer(number, seed, calls[number], ids, start, done).run(opened)

            await in_other_thread(work, loop)

        async with anyio.create_task_group() as group:
            for number in range(THREADS):
                group.start_soon(thread, number)
        made = [call for some in calls for call in some]
        for task_id in ids:
            check_history(await one.tasks.get(task_id), [call for call in made if call.task_id == task_id])
