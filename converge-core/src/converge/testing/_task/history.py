"""Random histories of tasks, played by three processes on one store and on a dictionary side by side."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar
from uuid import UUID

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from converge.codec import decode, decode_plain
from converge.contracts.store import LIMITS, Range
from converge.errors import LeaseEnded
from converge.machines.task import TaskState
from converge.model.keys import DEAD, EXPIRY, HELD, LEASE, STATE, TASK
from converge.model.pool import Pool
from converge.model.task import State, Task
from converge.testing._store.base import Opening
from converge.testing._store.history import first_failure_of, histories
from converge.testing._task.base import Process, TaskCase
from converge.testing._task.calls import cancelling, closing_lanes, finishing, submitting, sweeping, sweeping_some
from converge.testing._task.model import Content, End, Known, Place, TaskModel
from converge.testing._task.world import HANDLES, TaskWorld, Work, die
from converge.testing.clauses import expect, expect_equal

STEPS = 35
MOST_DEATHS = 2
"""In one history: each costs a new process, and the time of a lease."""
SWEEP_PAGE = 2
"""Small, so that a sweep has several pages, between which its process may be killed."""

PLAIN = Content(0, None, 2)

handles = st.integers(0, HANDLES - 1)
contents = st.builds(
    Content,
    number=st.integers(0, 1),
    ordering_key=st.sampled_from([None, "k", "k", "kk"]),
    max_attempts=st.integers(1, 3),
)
ends = st.sampled_from(
    [
        End("complete", 0),
        End("complete", 1),
        End("fail", "x"),
        End("fail", "y"),
        End("give_up", "x"),
        End("release"),
        End("release"),
    ]
)
final_ends = st.sampled_from([End("complete", 0), End("complete", 1), End("give_up", "x")])
picks = st.integers(0, 2**16)


class TaskHistory(RuleBasedStateMachine):
    """One history: each rule is a call, or several at once, whose answers are compared; then everything is read back.

    A rule that finds nothing to work on makes itself a task or a claim first. It has no precondition that says so:
    which tasks there are depends on races, and Hypothesis wants the same rules to be possible when it plays a history
    again.
    """

    def __init__(self, world: TaskWorld) -> None:
        super().__init__()
        self.world, self.model = world, TaskModel()
        self.salt = world.next_salt()
        self.pool = f"pool-{self.salt}"
        self.given = 0
        self.deaths = 0
        self.leases: set[bytes] = set()
        self.world.ask(0, lambda process: process.pools.create_pool(Pool(id=self.pool)))

    # Small parts of the rules.

    def task_of(self, content: Content, dedup_key: str | None, id_: str = "") -> Task:
        return Task(
            pool_id=self.pool, id=id_, inputs={"n": content.number}, dedup_key=dedup_key,
            ordering_key=content.ordering_key,
            max_attempts=content.max_attempts, retry_delay_sec=0.0,
        )  # fmt: skip

    def new_id(self) -> str:
        self.given += 1
        return str(UUID(bytes=b"h" + self.salt.to_bytes(7, "big") + self.given.to_bytes(8, "big")))

    def some_task(self, at: int) -> Known:
        if not self.model.tasks:
            self.submit(at % HANDLES, PLAIN, None)
        return pick(list(self.model.tasks.values()), at)

    def some_held(self, at: int) -> tuple[Known, int, Task]:
        """Return a task that a living process holds, the handle of that process, and its claim."""
        if not (held := self.held_by_living()):
            if not self.model.must_be_ready():
                self.submit(at % HANDLES, PLAIN, None)
            self.claim(at % HANDLES, 2)
            held = self.held_by_living()
        known = pick(held, at)
        name, claim = known.claims[-1]
        return known, self.world.names.index(name), claim

    def held_by_living(self) -> list[Known]:
        return [task for task in self.model.at(Place.HELD) if task.claims[-1][0] in self.world.names]

    def claiming(self, limit: int) -> Callable[[Process], Awaitable[list[Task]]]:
        async def claim(process: Process) -> list[Task]:
            self.leases.add((await process.handle.lease()).id)
            return await process.tasks.claim("agent", [self.pool], limit=limit)

        return claim

    # One call.

    @rule(handle=handles, content=contents, dedup_key=st.sampled_from([None, "a", "b", "c"]))
    def submit(self, handle: int, content: Content, dedup_key: str | None) -> None:
        answer = self.world.ask(handle, submitting(self.task_of(content, dedup_key)))
        self.model.judge_submit(dedup_key, content, answer)
        self.read_back()

    @rule(handle=handles, at=picks, content=st.none() | contents)
    def submit_again_by_id(self, handle: int, at: int, content: Content | None) -> None:
        """The same id, with its own content or with another."""
        known = self.some_task(at)
        content = content or known.content
        answer = self.world.ask(handle, submitting(self.task_of(content, known.dedup_key, known.id)))
        self.model.judge_submit(known.dedup_key, content, answer, known.id)
        self.read_back()

    @rule(handle=handles, wanted=st.lists(contents, min_size=2, max_size=5))
    def submit_many(self, handle: int, wanted: list[Content]) -> None:
        tasks = [self.task_of(content, None) for content in wanted]
        answers = self.world.ask(handle, lambda process: process.tasks.submit_many(tasks))
        for content, id_ in zip(wanted, answers, strict=True):
            self.model.judge_submit(None, content, id_)
        self.read_back()

    @rule(handle=handles, limit=st.integers(1, 4), resumes=st.sampled_from([True, True, False]))
    def claim(self, handle: int, limit: int, resumes: bool = True) -> None:
        if self.model.is_paused and resumes:
            self.set_paused(handle, False)
        if not self.model.at(Place.READY, Place.LATER, Place.LOST):
            self.submit(handle, PLAIN, None)
        claimed = self.world.ask(handle, self.claiming(limit))
        self.model.judge_claim([(self.world.names[handle], task) for task in claimed], limit)
        self.read_back()

    @rule(at=picks, end=ends)
    def finish(self, at: int, end: End) -> None:
        """The current claim of a task, by its holder."""
        known, holder, claim = self.some_held(at)
        is_taken = self.world.ask(holder, finishing(claim, end))
        self.model.judge_finish(known, claim, end, is_taken)
        self.read_back()

    @rule(
        handle=handles, at=picks, which=picks, end=ends, forge=st.sampled_from(["nothing", "nothing", "nonce", "token"])
    )
    def finish_any(self, handle: int, at: int, which: int, end: End, forge: str) -> None:
        """Any claim that there ever was, by whichever process; perhaps with a nonce that nobody drew, or with the token
        of the current claim.
        """
        claimed = [task for task in self.model.tasks.values() if task.claims]
        known = pick(claimed, at) if claimed else self.some_held(at)[0]
        name, claim = known.claims[which % len(known.claims)]
        current = known.claims[-1][1]
        if forge == "nonce":
            claim = attrs.evolve(current, nonce="00" * 16)
        elif forge == "token" and claim.nonce != current.nonce:
            claim = attrs.evolve(claim, token=current.token)
        is_taken = self.world.ask(handle, finishing(claim, end))
        self.model.judge_finish(known, claim, end, is_taken, is_holder=name == self.world.names[handle])
        self.read_back()

    @rule(at=picks, which=picks)
    def say_it_again(self, at: int, which: int) -> None:
        """The end of the last attempt, by any process: its first answer may have been lost."""
        again = [task for task in self.model.tasks.values() if task.last_end is not None]
        if not again:
            self.finish(at, End("complete", 0))
            again = [task for task in self.model.tasks.values() if task.last_end is not None]
        known = pick(again, at)
        assert known.last_end is not None, "so it was picked"
        nonce, end = known.last_end
        claim = next(task for _, task in known.claims if task.nonce == nonce)
        is_taken = self.world.ask(which % HANDLES, finishing(claim, end))
        self.model.judge_finish(known, claim, end, is_taken, is_holder=False)
        self.read_back()

    @rule(handle=handles, at=picks)
    def cancel(self, handle: int, at: int) -> None:
        known = self.some_task(at)
        if known.place is not Place.LOST:  # which of two ends of its attempt came first could not be told
            self.model.judge_cancel(known, self.world.ask(handle, cancelling(known.id)))
            self.read_back()

    @rule(handle=handles, lasts=st.sampled_from([False, False, True]))
    def pause(self, handle: int, lasts: bool) -> None:
        """For a moment in which everybody tries to claim, or until somebody resumes."""
        self.set_paused(handle, True)
        self.claim_at_once([1] * HANDLES)
        if not lasts:
            self.set_paused(handle, False)

    @rule(handle=handles)
    def resume(self, handle: int) -> None:
        self.set_paused(handle, False)

    def set_paused(self, handle: int, is_paused: bool) -> None:
        self.world.ask(handle, lambda process: process.pools.set_paused(self.pool, is_paused=is_paused))
        self.model.is_paused = is_paused

    @rule(handle=handles, at=picks)
    def look(self, handle: int, at: int) -> None:
        """Through the front door: every acknowledged id can be read, by any process."""
        known = self.some_task(at)
        task = self.world.ask(handle, lambda process: process.tasks.get(known.id))
        self.model.judge_state(known, task.state, task.attempts, task.result)

    @rule(handle=handles)
    def sweep(self, handle: int) -> None:
        """To its end: then nothing is left of a dead process, and what retries is ready if it was due."""
        began, later = self.world.ask(handle, sweeping)
        due = [id_ for at, id_ in later if at <= began and id_ in self.model.tasks]
        expect("T-8", not due, f"retries that were due are not ready after a whole sweep: {due}")
        self.model.swept([id_ for _, id_ in later])
        held = self.world.ask(handle, lambda process: process.tasks.list(state=TaskState.ASSIGNED, pool_id=self.pool))
        wanted = sorted(known.id for known in self.model.at(Place.HELD))
        expect_equal("T-10", sorted(task.id for task in held), wanted, "what is listed as ASSIGNED after a whole sweep")
        self.read_back()

    @rule(handle=handles)
    def close_lanes(self, handle: int) -> None:
        """Nobody who puts a task there later loses it."""
        self.world.ask(handle, closing_lanes)

    # Several calls at once.

    @rule(
        content=contents,
        other=contents,
        by_key=st.booleans(),
        asked=st.lists(st.tuples(handles, st.booleans()), min_size=2, max_size=4),
    )
    def submit_at_once(self, content: Content, other: Content, by_key: bool, asked: list[tuple[int, bool]]) -> None:
        """One new id or dedup key, from several processes or from one that does not wait for its first answer; some
        with another content.
        """
        id_ = self.new_id()
        dedup_key, given = (id_, "") if by_key else (None, id_)
        sent = [other if is_other else content for _, is_other in asked]
        calls = [submitting(self.task_of(each, dedup_key, given)) for each in sent]
        answers = self.world.ask_at_once([(handle, call) for (handle, _), call in zip(asked, calls, strict=True)])
        stored = {answer for answer in answers if answer is not None}
        expect("T-1", len(stored) == 1, f"submits of one key at once were answered with these ids: {answers}")
        first = next(at for at, answer in enumerate(answers) if answer is not None)
        for at in (first, *range(len(answers))):
            self.model.judge_submit(dedup_key, sent[at], answers[at], given)
        self.read_back()

    @rule(limits=st.lists(st.integers(1, 3), min_size=HANDLES, max_size=HANDLES))
    def claim_at_once(self, limits: list[int]) -> None:
        answers = self.world.ask_at_once([(handle, self.claiming(limit)) for handle, limit in enumerate(limits)])
        for answer, limit in zip(answers, limits, strict=True):
            expect("T-2", len(answer) <= limit, f"more than {limit} tasks were claimed at once")
        claimed = [(self.world.names[handle], task) for handle, tasks in enumerate(answers) for task in tasks]
        self.model.judge_claim(claimed, sum(limits))
        self.read_back()

    @rule(
        at=picks,
        said=st.lists(final_ends, min_size=1, max_size=3),
        cancels=st.lists(handles, max_size=3),
        then=st.none() | handles,
    )
    def finish_at_once(self, at: int, said: list[End], cancels: list[int], then: int | None) -> None:
        """A claim is finished several times, in one way or in several, while others cancel the task: one of all these
        is what happened.

        Beside it the next task of its ordering key may be submitted, which must not wait for one that has ended.
        """
        known, holder, claim = self.some_held(at)
        asks: list[tuple[int, Work[Any]]] = [(holder, finishing(claim, end)) for end in said]
        asks += [(handle, cancelling(known.id)) for handle in cancels]
        if then is not None:
            asks.append((then, submitting(self.task_of(known.content, None))))
        answers = self.world.ask_at_once(asks)
        taken, cancelled = answers[: len(said)], answers[len(said) : len(said) + len(cancels)]
        won = [end for end, is_taken in zip(said, taken, strict=True) if is_taken]
        expect(
            "T-6",
            sum(cancelled) + bool(won) == 1,
            f"{sum(cancelled)} cancels and {len(won)} finishes {won} of one claim say that they won",
        )
        if any(cancelled):
            self.model.judge_cancel(known, True)
        else:
            self.model.judge_finish(known, claim, won[0], True)
        for end, is_taken in zip(said, taken, strict=True):
            self.model.judge_finish(known, claim, end, is_taken)
        if then is not None:
            self.model.judge_submit(None, known.content, answers[-1])
        self.read_back()

    # Deaths.

    @precondition(lambda self: self.deaths < MOST_DEATHS)
    @rule(
        handle=st.integers(1, HANDLES - 1),
        limit=st.integers(0, 4),
        pages=st.integers(0, 3),
        is_whole=st.booleans(),
        end=ends,
        at=picks,
    )
    def die(self, handle: int, limit: int, pages: int, is_whole: bool, end: End, at: int) -> None:
        """A process claims and is paused for longer than its lease; a sweep is killed after some pages, another may go
        on; the process wakes.
        """
        self.deaths += 1
        if limit:
            self.claim(handle, limit)
        lease = self.world.ask(handle, die)
        lost = self.model.died(self.world.names[handle])
        self.world.ask(0, sweeping_some(pages))
        if is_whole:
            self.sweep(0)
            self.nothing_is_left_of(lease)
            self.nothing_is_claimed_by(handle, lease)
        if lost:
            known = pick(lost, at)
            claim = known.claims[-1][1]
            is_taken = self.world.ask(handle, finishing(claim, end))
            self.model.judge_finish(known, claim, end, is_taken, is_holder=not is_whole)
        self.world.replace(handle)
        self.read_back()

    def nothing_is_left_of(self, lease: bytes) -> None:
        left = self.world.call(0, lambda store: store.scan([Range(HELD(lease)), Range(DEAD(lease))]))
        live = self.world.call(0, lambda store: store.get([LEASE(lease), EXPIRY(lease)]))
        expect(
            "T-10",
            not any(left) and live == [None, None],
            f"after a whole sweep there is left of a dead lease: {left} {live}",
        )

    def nothing_is_claimed_by(self, handle: int, lease: bytes) -> None:
        """Check that the process, which has woken up and believes in its lease, claims nothing."""

        async def claim(process: Process) -> list[Task]:
            try:
                return await process.tasks.claim("agent", [self.pool], limit=3)
            except LeaseEnded:
                return []

        expect_equal("T-10", self.world.ask(handle, claim), [], "what was claimed under a lease that had ended")

    # After every rule.

    def read_back(self) -> None:
        """Check that every acknowledged id is there, is in a state that is possible, and is held at most once."""
        known = list(self.model.tasks.values())
        keys = [family(UUID(task.id).bytes) for task in known for family in (TASK, STATE)]
        entries = self.world.call(0, lambda store: store.get(keys)) if keys else []
        leases = sorted(self.leases)
        pages = (
            self.world.call(0, lambda store: store.scan([Range(HELD(lease), None, LIMITS.keys) for lease in leases]))
            if leases
            else []
        )
        held = [entry.key[3] for page in pages for entry in page]
        for task, spec, raw in zip(known, entries[::2], entries[1::2], strict=True):
            expect("T-1", spec is not None, f"an acknowledged task is not there: {task.id}")
            claims = held.count(UUID(task.id).bytes)
            expect("T-2", claims <= 1, f"{claims} claims of {task.id} are current")
            state = None if raw is None else decode(raw.value, State, task.id)
            name = TaskState(state.state) if state is not None else TaskState.PENDING
            attempts = state.attempts if state is not None else 0
            if claims:
                expect("T-6", name is TaskState.PENDING, f"{task.id} has ended as {name}, and is held")
                name, attempts = TaskState.ASSIGNED, attempts + 1
            self.model.judge_state(
                task, name, attempts, None if state is None else decode_plain(bytes(state.result), task.id)
            )

    def teardown(self) -> None:
        """Bring everything to its end; after a failure that would hide what failed first."""
        error = sys.exception()
        try:
            if error is None:
                self.end_all()
        except Exception as late:
            error = late
            raise
        finally:
            self.world.note(error)

    def end_all(self) -> None:
        """Check that nothing is stranded: whatever has happened, each task can be completed in the end."""
        self.set_paused(0, False)
        for _ in range(3 + len(self.model.tasks)):
            for known in self.held_by_living():
                name, claim = known.claims[-1]
                holder, end = self.world.names.index(name), End("complete", 0)
                self.model.judge_finish(known, claim, end, self.world.ask(holder, finishing(claim, end)))
            open_tasks = [task for task in self.model.tasks.values() if task.place is not Place.ENDED]
            if not open_tasks:
                break
            if len(self.model.must_be_ready()) < len(open_tasks):
                self.sweep(0)
            if self.model.must_be_ready():
                self.claim(1, 50)
        left = [(task.id, task.place.value) for task in self.model.tasks.values() if task.place is not Place.ENDED]
        expect("T-10", not left, f"tasks that nobody can bring to an end: {left}")
        self.read_back()


def pick(tasks: Sequence[Known], at: int) -> Known:
    return tasks[at % len(tasks)]


class TaskHistoryClauses(TaskCase):
    """All clauses at once. A history that fails is not made shorter unless an author asks: many would wait for leases,
    all of them again.
    """

    examples: ClassVar[int] = 20
    shrinks: ClassVar[bool] = False

    def test_random_histories_agree_with_a_plain_model(
        self, opening: Opening, anyio_backend: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """T-1 to T-13: which one was broken is in the failure."""
        monkeypatch.setattr("converge.services.tasks.sweep.SWEPT_TOGETHER", SWEEP_PAGE)
        chosen = histories(self.examples, STEPS, shrinks=self.shrinks)
        with TaskWorld(opening, anyio_backend) as world, first_failure_of(world):
            # Any factory of machines serves, whatever the type says.
            run_state_machine_as_test(lambda: TaskHistory(world), settings=chosen)  # type: ignore[arg-type]
