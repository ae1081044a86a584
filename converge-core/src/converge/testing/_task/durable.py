"""T-15 to T-22: tasks that outlive their attempts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio

from converge.contracts.store import Batch, Entry, Key, Range
from converge.errors import NotWaiting, StaleClaim, WaitTimeout
from converge.ids import id_bytes
from converge.machines.events import Completed, Event, Failed, Released
from converge.machines.task import TaskState
from converge.model.keys import (
    ACTOR,
    CHILD,
    CHUNK,
    DONE,
    ENDED,
    FAMILIES,
    GONE,
    HELD,
    KEPT,
    LATER,
    READER,
    READY,
    SIGNAL,
    SIGNALS,
    STEP,
    TASK,
    TOLD,
)  # fmt: skip
from converge.model.place import Found
from converge.model.pool import Pool
from converge.model.task import Task
from converge.model.working import StepOptions
from converge.runtime.attempts.attempt import Attempt
from converge.services.durable.output import Following
from converge.services.store.pages import read_all
from converge.services.tasks.finish import Finishes
from converge.testing._task.base import PATIENCE_SEC, POOL, Process, TaskCase, another, let_pass, raised
from converge.testing.clauses import expect, expect_equal

OF_TASKS = (STEP, SIGNALS, SIGNAL, CHUNK, READER, CHILD, ENDED, TOLD, KEPT, GONE)


TASK_ENDS = {TaskState.COMPLETED: "complete", TaskState.CANCELLED: "cancel"}


class Parks(Exception):
    """The handler would be ended here: its task is parked."""


def _park() -> None:
    raise Parks


class Working:
    """An attempt without a node: what a handler calls, and how its attempt ends."""

    def __init__(self, process: Process, task: Task) -> None:
        found: Found = process.tasks._held[id_bytes("task id", task.id)][0]
        self.process, self.task = process, task
        self.attempt = Attempt(process.handle, found, _park)

    async def step(self, name: str, function: Callable[[], Any]) -> Any:
        """Run a step."""

        async def call() -> Any:
            return function()

        return await self.attempt.step(name, call, (), StepOptions())

    async def parks(self, call: Any) -> bool:
        """Return whether the call parks the task, and park it then."""
        try:
            await call
        except Parks:
            assert self.attempt.event is not None, "it parks with an event"
            await Finishes(self.process.handle).finish(self.attempt.ledger.found, self.attempt.event)
            return True
        return False

    async def ends(self, event: Event) -> None:
        """End the attempt, as its worker does."""
        await Finishes(self.process.handle).finish(self.attempt.ledger.found, event)

    async def complete(self) -> None:
        """Complete the task."""
        await self.ends(Completed(b"null"))


async def begun(process: Process, **more: Any) -> Working:
    """Submit a task and begin an attempt."""
    await process.tasks.submit(Task(pool_id=POOL, **more))
    return Working(process, await process.claim_one())


async def keys_of(process: Process, id_: bytes) -> list[Key]:
    """Return the keys that are left of a task."""
    pages = [await read_all(process.store, family(id_)) for family in OF_TASKS]
    return [entry.key for page in pages for entry in page]


class DurableClauses(TaskCase):
    """What an attempt records, waits for, puts out and spawns."""

    async def test_a_recorded_step_does_not_run_again(self, one: Process, two: Process) -> None:
        """T-15."""
        ran: list[int] = []

        def mark(attempt: int, value: int) -> int:
            ran.append(attempt)
            return value

        first = await begun(one)
        expect_equal("T-15", await first.step("s", partial(mark, 1, 5)), 5, "what the step returned")
        await first.ends(Released())
        second = Working(two, await two.claim_one())
        expect_equal("T-15", await second.step("s", partial(mark, 2, 6)), 5, "the recorded value")
        expect_equal("T-15", ran, [1], "which attempts ran the step")

    async def test_a_claim_that_was_taken_over_records_nothing(self, one: Process) -> None:
        """T-15."""
        async with another(one.store) as other:
            stale = await begun(other)
            await let_pass(one.store, (await other.handle.lease()).id)
            await one.sweep_all()
            expect_equal("T-15", (await one.claim_one()).id, stale.task.id, "what is claimed after a death")
            attempt = stale.attempt
            calls: dict[str, Callable[[], Any]] = {
                "a step": lambda: stale.step("s", lambda: 1),
                "output": lambda: attempt.emit("x"),
                "a child": lambda: attempt.spawn(Task(pool_id=POOL), "c"),
                "a wait": lambda: stale.parks(attempt.wait_for(("a",), None)),
            }
            for what, call in calls.items():
                expect("T-15", await raised(StaleClaim, call()), f"a stale claim recorded {what}")
            expect_equal("T-15", await keys_of(one, id_bytes("task id", stale.task.id)), [], "what it has left")

    async def test_signals_come_in_order_and_once(self, one: Process, two: Process) -> None:
        """T-16."""
        work = await begun(one)
        for number, name in enumerate("abab"):
            expect("T-16", await two.tasks.signal(work.task.id, name, number), "a running task took no signal")
        got = [await work.attempt.wait_for((name,), None) for name in "ba"]
        got.append(await work.attempt.wait_for(("a", "b"), None))
        expect_equal("T-16", got, [1, 0, ("a", 2)], "the payloads in the order of waits")
        await work.ends(Released())
        again = Working(two, await two.claim_one())
        replayed = [await again.attempt.wait_for((name,), None) for name in "ba"]
        replayed += [await again.attempt.wait_for(("a", "b"), None), await again.attempt.wait_for(("b",), None)]
        expect_equal("T-16", replayed, [1, 0, ("a", 2), 3], "what the next attempt is told")

    async def test_a_signal_is_sent_once_for_its_key(self, one: Process, two: Process) -> None:
        """T-16."""
        work = await begun(one)
        async with anyio.create_task_group() as group:
            for process in (one, two, one):
                group.start_soon(partial(process.tasks.signal, work.task.id, "a", 1, key="k"))
        await one.tasks.signal(work.task.id, "a", 2)
        expect_equal("T-16", await work.attempt.wait_for(("a",), None), 1, "the first payload")
        await two.tasks.signal(work.task.id, "a", 1, key="k")
        expect_equal("T-16", await work.attempt.wait_for(("a",), None), 2, "the second payload")
        expect("T-16", await work.parks(work.attempt.wait_for(("a",), None)), "a repeat was another signal")

    async def test_a_signal_to_a_task_that_has_ended_says_so(self, one: Process) -> None:
        """T-16."""
        work = await begun(one)
        await work.complete()
        expect("T-16", not await one.tasks.signal(work.task.id, "a"), "a task that had ended took a signal")

    async def test_a_parked_task_stands_at_one_place_and_is_resumed_once(self, one: Process, two: Process) -> None:
        """T-17."""
        work = await begun(one)
        expect("T-17", await work.parks(work.attempt.wait_for(("a",), 3_600)), "nothing had come, and it went on")
        expect_equal("T-17", (await one.tasks.get(work.task.id)).state, TaskState.WAITING, "its state")
        expect_equal("T-17", [await one.claim(), await two.claim()], [[], []], "what is claimed")
        counts = await one.store.count([HELD(), LATER(), READY()])
        expect_equal("T-17", list(counts), [0, 1, 0], "where it stands: held, later, ready")
        await two.tasks.signal(work.task.id, "other")
        expect_equal("T-17", await one.claim(), [], "what another signal made ready")
        async with anyio.create_task_group() as group:
            for process in (one, two):
                group.start_soon(process.tasks.signal, work.task.id, "a", 1)
        expect_equal("T-17", list(await one.store.count([LATER(), READY()])), [0, 1], "where it stands: later, ready")
        again = Working(two, await two.claim_one())
        expect_equal("T-17", await again.attempt.wait_for(("a",), 3_600), 1, "what it waited for")

    async def test_a_signal_beside_a_park_is_not_lost(self, one: Process, two: Process) -> None:
        """T-17."""
        work = await begun(one)
        try:
            await work.attempt.wait_for(("a",), None)
        except Parks:
            await two.tasks.signal(work.task.id, "a", 1)  # it has looked, and is not parked yet
        assert work.attempt.event is not None, "it parks"
        await Finishes(one.handle).finish(work.attempt.ledger.found, work.attempt.event)
        expect_equal("T-17", len(await two.claim()), 1, "how many tasks are ready")

    async def test_a_wait_ends_in_time_and_a_signal_before_that_wins(self, one: Process, two: Process) -> None:
        """T-17."""
        work = await begun(one)
        expect("T-17", await work.parks(work.attempt.wait_for(("a",), 0.3)), "nothing had come, and it went on")
        await _due(one)
        again = Working(two, await two.claim_one())
        await one.tasks.signal(work.task.id, "b")
        expect("T-17", await raised(WaitTimeout, again.attempt.wait_for(("a",), 0.3)), "its time passed, and it waits")
        late = Working(two, again.task)
        await one.tasks.signal(work.task.id, "a")
        expect("T-17", await raised(WaitTimeout, late.attempt.wait_for(("a",), 0.3)), "a wait that ended has come true")

    async def test_a_signal_between_the_look_and_the_end_of_the_time_wins(self, one: Process, two: Process) -> None:
        """T-17."""
        work = await begun(one)
        seen = await work.attempt.ledger.look(("a",))
        await two.tasks.signal(work.task.id, "a", 1)
        await work.attempt.gave_up("?a", await one.store.time(), seen)
        expect_equal("T-17", await work.attempt.wait_for(("a",), 0.0), 1, "what a signal in time was worth")

    async def test_of_all_that_ends_a_wait_one_wins(self, one: Process, two: Process) -> None:
        """T-17."""
        for _ in range(self.rounds):
            work = await begun(one)
            await work.parks(work.attempt.wait_for(("a",), None))
            won: list[str] = []

            async def complete(id_: str, won: list[str]) -> None:
                if not await raised(NotWaiting, one.tasks.complete(id_, 1)):
                    won.append("complete")

            async def cancel(id_: str, won: list[str]) -> None:
                if await two.tasks.cancel(id_):
                    won.append("cancel")

            async with anyio.create_task_group() as group:
                group.start_soon(complete, work.task.id, won)
                group.start_soon(two.tasks.signal, work.task.id, "a")
                group.start_soon(cancel, work.task.id, won)
            state = (await one.tasks.get(work.task.id)).state
            ended = [TASK_ENDS[TaskState(state)]] if TaskState(state) in TASK_ENDS else []
            expect_equal("T-17", won, ended, f"who won, where the task is {state}")
            places = sum(await one.store.count([LATER(), READY(), HELD()]))
            expect_equal("T-17", places, 0 if ended else 1, "at how many places it stands")

    async def test_output_is_read_in_order_and_once(self, one: Process, two: Process) -> None:
        """T-18."""
        work = await begun(one)
        for number in range(20):
            await work.attempt.emit(number)
        await work.ends(Released())
        again = Working(two, await two.claim_one())
        await again.attempt.emit("again")
        await again.complete()
        seen = [one_ async for one_ in two.tasks.watch(work.task.id) if one_.kind == "data"]
        expect_equal("T-18", [one_.data for one_ in seen], [*range(20), "again"], "what a reader is given")
        for at in (0, 7, 19):
            rest = [one_ async for one_ in one.tasks.watch(work.task.id, after=seen[at].cursor) if one_.kind == "data"]
            expect_equal("T-18", rest, seen[at + 1 :], f"what one is given that has seen {at + 1}")

    async def test_a_reader_is_told_of_a_gap_and_of_a_step_that_ran_again(self, one: Process, two: Process) -> None:
        """T-18."""
        first = await begun(one)
        for work, process in ((first, one), (None, two)):
            work = work or Working(process, await process.claim_one())

            async def speak(work: Working = work) -> None:
                await work.attempt.emit("a")
                await work.attempt.emit("b")
                raise ValueError

            await raised_any(work.attempt.step("s", speak, (), StepOptions()))
            await work.ends(Released())
        id_ = id_bytes("task id", first.task.id)
        chunks = await read_all(one.store, CHUNK(id_))
        await one.store.commit([Batch((), (), [chunks[0].key])])
        following, seen = Following(two.handle, id_, "", 1.0), list[Any]()
        with anyio.fail_after(PATIENCE_SEC / 2):
            async for output in following:
                seen += [output] if output.kind == "data" else []
                if len(seen) == 3:
                    break
        marks = [(output.data, output.is_again, output.missing) for output in seen]
        expect_equal("T-18", marks, [("b", False, 1), ("a", True, 0), ("b", True, 0)], "data, again, missing")

    async def test_a_child_is_submitted_once_and_its_end_reaches_the_parent(self, one: Process, two: Process) -> None:
        """T-19."""
        work = await begun(one, type="parent")
        child = await work.attempt.spawn(Task(pool_id=POOL, type="child"), "c")
        expect("T-19", await work.parks(work.attempt.gather((child,), None)), "a child had not ended, and it went on")
        claimed = await two.claim_one()
        expect_equal("T-19", (claimed.id, claimed.parent_id), (child.id, work.task.id), "the child and its parent")
        await two.tasks.complete(claimed, 7)  # and dies: nobody has told the parent
        await let_pass(one.store, (await two.handle.lease()).id)
        await one.sweep_all()
        again = Working(one, await one.claim_one())
        same = await again.attempt.spawn(Task(pool_id=POOL, type="child"), "c")
        expect_equal("T-19", same.id, child.id, "the child of the next attempt")
        expect_equal("T-19", await again.attempt.gather((same,), None), [7], "its result")
        expect_equal("T-19", await one.claim(), [], "what else was submitted")

    async def test_an_end_beside_a_park_is_not_lost(self, one: Process, two: Process) -> None:
        """T-19."""
        work = await begun(one, type="parent")
        child = await work.attempt.spawn(Task(pool_id=POOL, type="child"), "c")
        try:
            await work.attempt.gather((child,), None)
        except Parks:
            await two.tasks.complete(await two.claim_one())
            await two.sweep_all()  # told before it is parked
        assert work.attempt.event is not None, "it parks"
        await Finishes(one.handle).finish(work.attempt.ledger.found, work.attempt.event)
        await one.sweep_all()
        expect_equal("T-19", [task.type for task in await one.claim()], ["parent"], "what is ready")

    async def test_the_end_of_a_parent_reaches_all_descendants(self, one: Process, two: Process) -> None:
        """T-19."""
        work = await begun(one, type="parent")
        child = await work.attempt.spawn(Task(pool_id=POOL, type="child"), "c")
        inner = Working(two, await two.claim_one())
        grandchild = await inner.attempt.spawn(Task(pool_id=POOL, type="grandchild"), "g")
        await inner.parks(inner.attempt.wait_for(("never",), None))
        await work.complete()
        await two.sweep_all()
        states = [(await one.tasks.get(id_)).state for id_ in (child.id, grandchild.id)]
        expect_equal("T-19", states, [TaskState.CANCELLED] * 2, "the states of its descendants")
        expect_equal("T-19", await one.claim(), [], "what is still claimed")

    async def test_a_virtual_agents_state_goes_with_its_answer(self, one: Process, two: Process) -> None:
        """T-20."""
        key = ACTOR(POOL, "a")
        async with another(one.store) as other:
            stale = await begun(other, ordering_key="a")
            await let_pass(one.store, (await other.handle.lease()).id)
            await one.sweep_all()
            fresh = Working(one, await one.claim_one())
            finish = Finishes(other.handle).finish(stale.attempt.ledger.found, Completed(b"1", "", (key, b"1", 0)))
            expect("T-20", await raised(StaleClaim, finish), "a stale answer was taken")
            expect_equal("T-20", list(await one.store.get([key])), [None], "the state after a stale answer")
        await Finishes(one.handle).finish(fresh.attempt.ledger.found, Completed(b"2", "", (key, b"2", 0)))
        (entry,) = await one.store.get([key])
        state = None if entry is None else entry.value
        expect_equal("T-20", (state, (await two.tasks.get(fresh.task.id)).result), (b"2", 2), "state and answer")

    async def test_nothing_is_left_of_a_task_after_its_retention(self, one: Process, two: Process) -> None:
        """T-21."""
        await one.pools.create_pool(Pool(id="short", keep_completed_sec=0.0, keep_failed_sec=0.0))
        await one.tasks.submit(Task(pool_id="short"))
        work = Working(one, (await one.tasks.claim("agent", ["short"]))[0])
        await work.step("s", lambda: 1)
        await work.attempt.emit("x")
        await two.tasks.signal(work.task.id, "a")
        await two.tasks.signal(work.task.id, "b")
        await work.attempt.wait_for(("a",), None)
        child = await work.attempt.spawn(Task(pool_id="short", type="child"), "c")
        await work.complete()
        for _ in range(20):  # each sweep is one page: any other process goes on where one was killed
            async with another(one.store) as other:
                await other.sweep.page()
        ids = [id_bytes("task id", id_) for id_ in (work.task.id, child.id)]
        left = [key for id_ in ids for key in await keys_of(one, id_)]
        left += [entry.key for entry in await one.store.get([TASK(id_) for id_ in ids]) if entry is not None]
        expect_equal("T-21", left, [], "what is left")

    async def test_what_an_older_release_has_left_goes_too(self, one: Process) -> None:
        """T-21."""
        work = await begun(one)
        await work.step("s", lambda: 1)
        await work.complete()
        id_ = id_bytes("task id", work.task.id)
        done: Entry = (await one.store.scan([Range(DONE(), None, 1)]))[0][0]
        await one.store.commit([Batch((), (), [done.key, TASK(id_), FAMILIES["state"](id_)])])
        await one.sweep_all()
        expect_equal("T-21", await keys_of(one, id_), [], "what is left")

    async def test_a_park_forgives_attempts_and_a_crash_loop_is_failed(self, one: Process) -> None:
        """T-22."""
        work = await begun(one, max_attempts=2, retry_delay_sec=0.0)
        for round_ in range(3):
            await work.ends(Failed("crash"))
            await one.sweep_all()
            work = Working(one, await one.claim_one())
            expect_equal("T-22", work.task.attempts, 2, f"the attempt after a crash in round {round_}")
            expect("T-22", await work.parks(work.attempt.wait_for((f"w{round_}",), None)), "it did not park")
            await one.tasks.signal(work.task.id, f"w{round_}")
            work = Working(one, await one.claim_one())
            expect_equal("T-22", work.task.attempts, 1, f"the attempt after park {round_}")
            for before in range(round_ + 1):
                await work.attempt.wait_for((f"w{before}",), None)
        await work.ends(Released())
        for _ in range(2):
            async with another(one.store) as other:
                await other.claim_one()
                await let_pass(one.store, (await other.handle.lease()).id)
                await one.sweep_all()
        expect_equal("T-22", await one.claim(), [], "what is claimed after a crash loop")
        expect_equal("T-22", (await one.tasks.get(work.task.id)).state, TaskState.FAILED, "its state")


async def raised_any(call: Any) -> None:
    """Wait for a step that fails."""
    try:
        await call
    except ValueError:
        return
    raise AssertionError("the step fails")


async def _due(process: Process) -> None:
    """Let the next waiting task come due."""
    with anyio.fail_after(PATIENCE_SEC):
        while not (await process.store.count([READY()]))[0]:
            await process.sweep_all()
            await anyio.sleep(0.05)  # the store's clock has to reach the end of the wait
