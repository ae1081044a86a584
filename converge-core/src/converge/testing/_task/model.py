"""Tasks as a plain dictionary keeps them, in one process and one step at a time: what a store's tasks are compared
with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import attrs

from converge.machines.task import TERMINAL, TaskState
from converge.model.task import Task
from converge.testing.clauses import expect, expect_equal


class Place(Enum):
    """Where a task stands."""

    READY = "ready"
    LATER = "later"  # its retry is due at once, and ready after a sweep
    HELD = "held"
    LOST = "lost"  # its process has died; a sweep, whoever's, may have come by
    ENDED = "ended"


class Content(NamedTuple):
    """What makes two submits the same."""

    number: int
    ordering_key: str | None
    max_attempts: int


class End(NamedTuple):
    """How a claim is finished; `what` is a method of the task manager."""

    what: str
    content: Any = None

    @property
    def is_final(self) -> bool:
        """Whether the task has ended with it, whatever its attempts."""
        return self.what in ("complete", "give_up")

    def is_like(self, other: End) -> bool:
        """Return whether it is the same, said again: of a failure only the error counts."""
        kinds = {"give_up": "fail"}
        return (kinds.get(self.what, self.what), self.content) == (kinds.get(other.what, other.what), other.content)


@attrs.define(kw_only=True)
class Known:
    """What must be true of one task."""

    id: str
    content: Content
    dedup_key: str | None
    place: Place = Place.READY
    state: TaskState = TaskState.PENDING
    attempts: int = 0
    claims: list[tuple[int, Task]] = attrs.field(factory=list)
    """Every claim, the last one last, with the process that made it."""
    last_end: tuple[str, End] | None = None
    """The nonce of the last attempt that ended by a call, and how."""
    result: Any = None
    is_seen_ended: bool = False
    """Whether somebody was told that it has ended."""

    @property
    def is_exhausted(self) -> bool:
        """Whether one more attempt that fails is its last."""
        return self.attempts + 1 >= self.content.max_attempts

    def possible(self) -> set[tuple[TaskState, int]]:
        """Return the states, each with its attempts, that a reader may find."""
        more = self.attempts + 1
        if self.place is Place.ENDED:
            return {(self.state, self.attempts)}
        if self.place is Place.HELD:
            return {(TaskState.ASSIGNED, more)}
        if self.place is Place.LOST:
            return {(TaskState.ASSIGNED, more), (TaskState.FAILED if self.is_exhausted else TaskState.PENDING, more)}
        return {(TaskState.PENDING, self.attempts)}


class TaskModel:
    """One pool's tasks, in the order of their submits. Each `judge_...` compares an answer, then does what the call
    did.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, Known] = {}
        self.is_paused = False

    # Which tasks.

    def of_key(self, ordering_key: str) -> list[Known]:
        return [task for task in self.tasks.values() if task.content.ordering_key == ordering_key]

    def before(self, task: Known) -> list[Known]:
        """Return what stands before it in its ordering key, and has not ended."""
        if task.content.ordering_key is None:
            return []
        same = self.of_key(task.content.ordering_key)
        return [other for other in same[: same.index(task)] if other.place is not Place.ENDED]

    def must_be_ready(self) -> list[Known]:
        return [task for task in self.tasks.values() if task.place is Place.READY and not self.before(task)]

    def at(self, *places: Place) -> list[Known]:
        return [task for task in self.tasks.values() if task.place in places]

    # Answers.

    def known(self, dedup_key: str | None) -> Known | None:
        return next(
            (task for task in self.tasks.values() if dedup_key is not None and task.dedup_key == dedup_key), None
        )

    def judge_submit(self, dedup_key: str | None, content: Content, id_: str | None, given: str = "") -> None:
        """Judge a submit; `id_` is None if it was refused as another content under the same key or id (`given`)."""
        there = self.tasks.get(given) or self.known(dedup_key)
        if there is None:
            expect("T-1", id_ is not None, f"a first submit with dedup key {dedup_key} was refused")
            assert id_ is not None  # for the type checker
            expect("T-1", id_ not in self.tasks, f"a new task got the id of another: {id_}")
            expect("T-1", not given or given == id_, f"a task submitted as {given} was answered as {id_}")
            self.tasks[id_] = Known(id=id_, content=content, dedup_key=dedup_key)
        elif there.content == content:
            expect_equal("T-1", id_, there.id, f"the answer of a submit that repeats one (dedup key {dedup_key})")
        else:
            expect(
                "T-1",
                id_ is None,
                f"another content under the dedup key {dedup_key} of {there.id} was answered as {id_}",
            )

    def judge_claim(self, claimed: Iterable[tuple[int, Task]], limit: int) -> None:
        """Judge what one claim got, or several that ran at once, each answer with its process."""
        claimed = list(claimed)
        needed = bool(self.must_be_ready()) and not self.is_paused
        ids = [task.id for _, task in claimed]
        expect("T-11", not ids or not self.is_paused, f"claimed from a paused pool: {ids}")
        expect("T-2", len(ids) == len(set(ids)), f"a task was given to two claimers: {ids}")
        expect("T-2", len(ids) <= limit, f"more than {limit} tasks were claimed: {ids}")
        expect("T-2", bool(ids) or not needed, "nothing was claimed where a task is ready")
        for process, task in claimed:
            self._claimed(process, task)

    def _claimed(self, process: int, task: Task) -> None:
        known = self.tasks.get(task.id)
        expect("T-2", known is not None, f"a task was claimed that nobody submitted: {task.id}")
        assert known is not None  # for the type checker
        expect("T-6", known.place is not Place.ENDED, f"a task that is {known.state} was claimed: {task.id}")
        expect("T-2", known.place is not Place.HELD, f"a task was claimed that another holds: {task.id}")
        for other in self.before(known):
            is_gone = other.place is Place.LOST and other.is_exhausted
            expect(
                "T-9",
                is_gone,
                f"{task.id} was claimed before {other.id} of the same ordering key, which is {other.place.value}",
            )
            self.lose(other)
        if known.place is Place.LOST:
            self.lose(known)
        if known.claims:
            expect(
                "T-3",
                task.token > known.claims[-1][1].token,
                f"token {task.token} of {task.id} after {known.claims[-1][1].token}",
            )
            expect(
                "T-4",
                task.nonce not in {old.nonce for _, old in known.claims},
                f"two claims of {task.id} have one nonce",
            )
        expect_equal("T-7", task.attempts, known.attempts + 1, f"the attempts that the claim of {task.id} shows")
        expect(
            "T-7",
            task.attempts <= known.content.max_attempts,
            f"{task.id} was claimed for attempt {task.attempts} of {known.content.max_attempts}",
        )
        known.place = Place.HELD
        known.claims.append((process, task))

    def judge_finish(self, known: Known, claim: Task, end: End, is_taken: bool, *, is_holder: bool = True) -> None:
        """Judge a finish of that claim, by the process that made it or another; `is_taken` is False for StaleClaim."""
        is_again = known.last_end is not None and known.last_end[0] == claim.nonce and known.last_end[1].is_like(end)
        is_current = known.place in (Place.HELD, Place.LOST) and claim == known.claims[-1][1] and is_holder
        if is_current and known.place is Place.LOST and not is_taken:
            self.lose(known)  # a sweep came first
        elif is_current:
            expect("T-4", is_taken, f"{end.what} of the current claim of {known.id} was refused")
            self._finished(known, claim, end)
        elif is_again and known.place is Place.LOST and not is_taken:
            self.lose(known)  # what a sweep writes takes the place of how the attempt before had ended
        elif is_again:
            expect("T-5", is_taken, f"{end.what} of {known.id} was refused when it was said again")
        else:
            clause = "T-5" if known.last_end is not None and known.last_end[0] == claim.nonce else "T-4"
            expect(
                clause,
                not is_taken,
                f"{end.what} with token {claim.token} of {known.id} was taken; it is {known.place.value}",
            )

    def _finished(self, known: Known, claim: Task, end: End) -> None:
        known.last_end = (claim.nonce, end)
        if end.what == "release":
            known.place = Place.READY
            return
        known.attempts += 1
        if end.what == "complete":
            self._end(known, TaskState.COMPLETED, end.content)
            known.is_seen_ended = True
        elif end.is_final or known.attempts >= known.content.max_attempts:
            self._end(known, TaskState.FAILED)
        else:
            known.place = Place.LATER

    def judge_cancel(self, known: Known, is_cancelled: bool) -> None:
        expect_equal(
            "T-6",
            is_cancelled,
            known.place is not Place.ENDED,
            f"whether {known.id} could be cancelled, which is {known.state}",
        )
        if is_cancelled:
            known.last_end = None
            self._end(known, TaskState.CANCELLED)
            known.is_seen_ended = True

    def judge_state(self, known: Known, state: str, attempts: int, result: Any) -> None:
        """Judge what a reader found, by any way of reading."""
        expect(
            "T-6",
            not known.is_seen_ended or state == known.state,
            f"{known.id} has ended as {known.state}, and is {state} now",
        )
        known.is_seen_ended = known.is_seen_ended or (known.place is Place.ENDED and state == known.state)
        possible = known.possible()
        expect(
            "T-7",
            (state, attempts) in possible,
            f"{known.id} is {state} after {attempts} attempts; possible is {sorted(possible)}",
        )
        expect(
            "T-7",
            attempts <= known.content.max_attempts,
            f"{known.id} has {attempts} attempts of {known.content.max_attempts}",
        )
        expect_equal("T-4", result, known.result, f"the result of {known.id}")

    # What happens by itself.

    def died(self, process: int) -> list[Known]:
        """Note that a process has died; return what it held."""
        lost = [task for task in self.at(Place.HELD) if task.claims[-1][0] == process]
        for task in lost:
            task.place = Place.LOST
        return lost

    def swept(self, still_later: Sequence[str]) -> None:
        """Note that a sweep went to its end; retries which were not due yet are where they were."""
        for task in self.at(Place.LOST):
            self.lose(task)
        for task in self.at(Place.LATER):
            if task.id not in still_later:
                task.place = Place.READY

    def lose(self, known: Known) -> None:
        """Count the attempt of a process that died."""
        known.attempts += 1
        known.last_end = None
        if known.attempts >= known.content.max_attempts:
            self._end(known, TaskState.FAILED)
        else:
            known.place = Place.READY

    def _end(self, known: Known, state: TaskState, result: Any = None) -> None:
        assert state in TERMINAL, "only a terminal state is an end"
        known.place, known.state, known.result = Place.ENDED, state, result
