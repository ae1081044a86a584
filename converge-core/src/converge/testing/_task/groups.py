"""T-9 to T-14, T-23: ordering keys, dead processes, pauses, deadlines, lost answers, retention."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import anyio
import attrs
import pytest

from converge.contracts.store import Conflict, Entry, Range, Store
from converge.errors import LeaseEnded, NoSuchTask, OutcomeUnknown, StoreUnavailable
from converge.machines.task import TaskState
from converge.model.keys import DEAD, EXPIRY, HELD, LEASE, ORDER, READY, STATE, TASK
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.store.handle import StoreHandle
from converge.services.tasks.lanes import LaneCloser
from converge.testing._store.base import Inheriting
from converge.testing._task.base import (
    PATIENCE_SEC,
    POOL,
    Process,
    TakeCut,
    TaskCase,
    another,
    let_pass,
    raised,
    wait_until_store_time,
)
from converge.testing.clauses import expect, expect_equal
from converge.testing.fixtures import wait_until

LEASES_SEC = (0.6, 3.0, 10.0)  # short: each is outlasted
"""Leases that are to be renewed: a longer one where a loaded machine was too slow for one before."""


class Between(Inheriting):
    """A store that lets something happen right after a look at what is ready; the first look is number 1."""

    def __init__(self, inner: Store, look: int, act: Callable[[], Awaitable[object]]) -> None:
        super().__init__(inner)
        self.looks = 0
        self._look, self._act = look, act

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        pages = await super().scan(ranges)
        if any(each.prefix[0] is READY for each in ranges):
            self.looks += 1
            if self.looks == self._look:
                await self._act()
        return pages


class Busy(Inheriting):
    """A store that lets something happen each time somebody has looked for what waits behind an ordering key."""

    def __init__(self, inner: Store, most: int, act: Callable[[], Awaitable[object]]) -> None:
        super().__init__(inner)
        self.looks = 0
        self._most, self._act = most, act

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        pages = await super().scan(ranges)
        if any(each.prefix[0] is ORDER for each in ranges):
            self.looks += 1
            if self.looks <= self._most:
                await self._act()
        return pages


async def submitted(process: Process) -> Task:
    """Submit a task and claim it."""
    await process.tasks.submit(Task(pool_id=POOL))
    return await process.claim_one()


class GroupClauses(TaskCase):
    """What holds between tasks, and between processes."""

    async def test_tasks_of_one_key_are_attempted_one_at_a_time_in_order(self, one: Process, two: Process) -> None:
        """T-9."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL, ordering_key="k") for _ in range(6)])
        seen = []
        for at in range(6):
            process = (one, two)[at % 2]
            claimed = await process.claim()
            expect_equal("T-9", len(claimed), 1, "how many tasks of one key are claimed at a time")
            seen.append(claimed[0].id)
            await process.tasks.complete(claimed[0], at)
        expect_equal("T-9", seen, ids, "the order of the attempts")

    async def test_a_task_that_retries_holds_its_key(self, one: Process) -> None:
        """T-9."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL, ordering_key="k", retry_delay_sec=0.0) for _ in range(2)])
        await one.tasks.fail(await one.claim_one(), "once")
        await one.sweep_all()
        again = await one.claim()
        expect_equal("T-9", [task.id for task in again], ids[:1], "what is claimed after a failure of the first of two")
        await one.tasks.fail(again[0], "for good", retry=False)
        expect_equal(
            "T-9",
            [task.id for task in await one.claim()],
            ids[1:],
            "what is claimed once the first has failed for good",
        )

    async def test_cancelling_a_waiting_task_moves_nobody(self, one: Process, two: Process) -> None:
        """T-9."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL, ordering_key="k") for _ in range(3)])
        expect("T-9", await two.tasks.cancel(ids[1]), "a waiting task could not be cancelled")
        first = await one.claim_one()
        expect_equal(
            "T-9",
            (first.id, await one.claim()),
            (ids[0], []),
            "what is claimed after the second of three was cancelled",
        )
        await one.tasks.complete(first, 1)
        expect_equal(
            "T-9",
            [task.id for task in await one.claim()],
            [ids[2]],
            "what follows the first when the second is cancelled",
        )

    async def test_a_submit_never_strands_behind_a_key_that_is_freed(self, one: Process, two: Process) -> None:
        """T-9."""
        for _ in range(self.rounds):
            await one.tasks.submit(Task(pool_id=POOL, ordering_key="k"))
            task = await one.claim_one()
            async with anyio.create_task_group() as group:
                group.start_soon(one.tasks.complete, task, 1)
                group.start_soon(two.tasks.submit, Task(pool_id=POOL, ordering_key="k"))
            claimed = await two.claim()
            expect_equal(
                "T-9",
                len(claimed),
                1,
                "how many tasks are ready after a submit beside the completion of the one before",
            )
            await two.tasks.complete(claimed[0], 1)

    async def test_submits_to_a_key_never_keep_its_finish_from_being_stored(self, one: Process, two: Process) -> None:
        """T-23."""
        more = Task(pool_id=POOL, ordering_key="k")
        await two.tasks.submit_many([more] * 2)
        busy = Busy(one.store, self.rounds, partial(two.tasks.submit, more))
        process = Process(busy, 15.0)
        try:
            for end in (process.tasks.complete, partial(process.tasks.fail, retry=False)):
                task = await process.claim_one()
                busy.looks = 0
                await end(task, "it")
                expect_equal("T-23", busy.looks, 1, "how often a task's end looked for the next while others submit")
        finally:
            await process.handle.close()

    async def test_lanes_that_are_closed_beside_submits_strand_no_task(self, one: Process, two: Process) -> None:
        """T-2."""
        closer = LaneCloser(one.handle, idle_sec=0.0)
        submitted: list[str] = []
        claimed: list[str] = []

        async def submit() -> None:
            for at in range(3 * self.rounds):
                submitted.append(await two.tasks.submit(Task(pool_id=POOL, type=f"type-{at % 2}")))

        async def close() -> None:
            while len(submitted) < 3 * self.rounds:
                await closer.page()
                tasks = await one.claim(1)
                claimed.extend(task.id for task in tasks)
                for task in tasks:
                    await one.tasks.complete(task)

        with anyio.fail_after(PATIENCE_SEC):
            async with anyio.create_task_group() as group:
                group.start_soon(submit)
                group.start_soon(close)
        async with another(one.store) as third:  # which knows no lane but those that are there
            claimed += [task.id for task in await third.claim(3 * self.rounds)]
        expect_equal(
            "T-2", sorted(claimed), sorted(submitted), "what was claimed of the tasks submitted while lanes were closed"
        )

    @pytest.mark.parametrize("look", [1, 2], ids=["before-it-closes", "while-it-closes"])
    async def test_a_task_that_comes_while_its_lane_is_closed_is_not_stranded(
        self, one: Process, two: Process, look: int
    ) -> None:
        """T-2."""
        await two.tasks.complete(await submitted(two))  # it knows the lane from now on
        store = Between(one.store, look, partial(two.tasks.submit, Task(pool_id=POOL)))
        await LaneCloser(StoreHandle(store), idle_sec=0.0).page()
        expect("T-2", store.looks >= look, "a lane was closed without a look at whether it is empty")
        async with another(one.store) as third:  # which knows no lane but those that are there
            expect_equal(
                "T-2",
                len(await third.claim()),
                1,
                "how many tasks are claimed of one that came while its lane was closed",
            )

    async def test_a_dead_process_gives_its_work_back(self, one: Process) -> None:
        """T-10."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL, max_attempts=2) for _ in range(5)])
        async with another(one.store) as dying:
            held = await dying.claim()
            await dying.die()
            await one.sweep_all()
            claimed = await one.claim()
            expect_equal("T-10", [task.id for task in claimed], ids, "what is ready once the lease has ended, in order")
            expect_equal(
                "T-10", {task.attempts for task in claimed}, {2}, "the attempts that a claim after a crash shows"
            )
            expect(
                "T-3",
                min(task.token for task in claimed) > max(task.token for task in held),
                "a token did not rise after a crash",
            )
            for task in claimed:
                await one.tasks.complete(task, 1)

    async def test_a_task_that_kills_its_process_ends_as_a_dead_letter(self, one: Process) -> None:
        """T-7."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, max_attempts=2))
        for _ in range(2):
            async with another(one.store) as dying:
                expect_equal("T-7", len(await dying.claim()), 1, "how many tasks a process that will die claims")
                await dying.die()
                await one.sweep_all()
        task = await one.tasks.get(task_id)
        expect_equal("T-7", (task.state, task.attempts), (TaskState.FAILED, 2), "state and attempts after two crashes")
        expect("T-7", "exhausted" in task.error, f"the error does not say why: {task.error}")

    async def test_a_sweep_that_died_half_way_is_resumed_by_any_other(self, one: Process) -> None:
        """T-10."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL) for _ in range(450)])
        async with another(one.store) as dying:
            lease = await dying.handle.lease()
            expect_equal("T-10", len(await dying.claim(500)), 450, "how many tasks the process held")
            await dying.die()
            async with another(one.store) as killed:
                await killed.sweep.end_leases()
                await killed.sweep.put_back()  # one page of three; then this process is heard of no more
            expect(
                "T-10",
                (await one.store.get([DEAD(lease.id)]))[0] is not None,
                "a dead lease was forgotten before all its work was back",
            )
            await one.sweep_all()
            expect_equal(
                "T-10", {task.id for task in await one.claim(500)}, set(ids), "what is ready after the second sweep"
            )
            left = await one.store.scan([Range(HELD(lease.id)), Range(DEAD())])
            expect_equal("T-10", [len(page) for page in left], [0, 0], "what is left of the dead lease")

    async def test_under_an_ended_lease_nothing_is_claimed(self, one: Process) -> None:
        """T-10."""
        async with another(one.store) as dying:
            await dying.claim()
            await dying.die()
            await one.sweep_all()
            await one.tasks.submit(Task(pool_id=POOL))
            expect("T-10", await raised(LeaseEnded, dying.claim()), "a process claimed under a lease that had ended")
            expect_equal("T-10", len(await one.claim()), 1, "how many tasks are left for a live process")

    async def test_a_renewal_does_not_revive_a_lease_that_has_ended(self, one: Process) -> None:
        """T-10."""
        await one.tasks.submit_many([Task(pool_id=POOL) for _ in range(2)])
        async with another(one.store, 3.0) as paused:
            await paused.claim(1)
            lease = await paused.handle.lease()
            with anyio.fail_after(PATIENCE_SEC):
                while (await one.store.get([DEAD(lease.id)]))[0] is None:
                    await let_pass(one.store, lease.id)  # as if it had been away since long ago; it may renew just now
                    await one.sweep.end_leases()
            renewals = lease.renewals
            await wait_until(
                lambda: lease.why_ended is not None or lease.renewals > renewals + 1,
                timeout=PATIENCE_SEC,
                what="a renewal after the end",
            )
            await one.sweep_all()
            left = await one.store.get([LEASE(lease.id), EXPIRY(lease.id)])
            expect_equal("T-10", list(left), [None, None], "what a renewal has put back of a lease that had ended")
            expect(
                "T-10",
                await raised(LeaseEnded, paused.claim()),
                "a process that renewed too late claims under its ended lease",
            )
            expect_equal("T-10", len(await one.claim()), 2, "how many tasks others claim once the lease has ended")

    async def test_a_lease_that_is_renewed_keeps_its_work(self, one: Process) -> None:
        """T-10."""
        for lease_sec in LEASES_SEC:
            await one.tasks.submit(Task(pool_id=POOL))
            async with another(one.store, lease_sec) as working:
                lease = await working.handle.lease()
                with suppress(LeaseEnded):
                    task = await working.claim_one()
                    await wait_until_store_time(one.store, await one.store.time() + int(2.5 * lease_sec * 1_000_000))
                    await one.sweep_all()
                    claimed = await one.claim()
                    if lease.remaining_sec() > 0:
                        expect_equal("T-10", claimed, [], "what others claim of a process that lives")
                        await working.tasks.complete(task, 1)
                        return
                    for task in claimed:
                        await one.tasks.complete(task, 1)
            await one.sweep_all()  # it was not renewed in time, so its work has gone back
            for task in await one.claim():
                await one.tasks.complete(task, 1)
        expect("T-10", False, f"no lease of {', '.join(map(str, LEASES_SEC))} s was renewed in time")

    async def test_a_pause_holds_from_its_return_on(self, one: Process, two: Process) -> None:
        """T-11."""
        await one.tasks.submit_many([Task(pool_id=POOL) for _ in range(4)])
        expect_equal("T-11", len(await two.claim(1)), 1, "how many tasks are claimed before the pause")
        await one.pools.set_paused(POOL, is_paused=True)
        expect_equal("T-11", (await two.claim(), await one.claim()), ([], []), "what is claimed from a paused pool")
        await two.pools.set_paused(POOL, is_paused=False)
        expect_equal(
            "T-11", len(await one.claim()) + len(await two.claim()), 3, "how many tasks are claimed after the pause"
        )

    async def test_a_waiting_task_fails_at_its_deadline(self, one: Process) -> None:
        """T-12."""
        for seconds in (0.4, 2.0, 10.0):
            deadline = datetime.now(UTC) + timedelta(seconds=seconds)
            end = int(deadline.timestamp() * 1_000_000) + 1
            common = Task(pool_id=POOL, deadline=deadline)
            waiting = await one.tasks.submit(attrs.evolve(common, required_capabilities=["nobody-has-it"]))
            behind = await one.tasks.submit_many(
                [attrs.evolve(common, ordering_key=f"{seconds} s", max_attempts=5) for _ in range(2)]
            )
            plain = await one.tasks.submit(attrs.evolve(common, max_attempts=5, retry_delay_sec=600.0))
            claimed = {task.id: task for task in await one.claim(10)}
            if await one.store.time() < end:
                break  # a slow machine needs the later deadline, to claim before it
        held, failing = claimed[behind[0]], claimed[plain]
        await wait_until_store_time(one.store, end)
        await one.sweep_all()
        states = [(await one.tasks.get(task_id)).state for task_id in (waiting, *behind)]
        expect_equal(
            "T-12", states, [TaskState.FAILED, TaskState.ASSIGNED, TaskState.FAILED], "the states past the deadline"
        )
        await one.tasks.release(held)
        await one.tasks.fail(failing, "so")
        expect_equal(
            "T-12",
            [(await one.tasks.get(task.id)).state for task in (held, failing)],
            [TaskState.FAILED] * 2,
            "the states of tasks that were released and that failed past their deadline",
        )

    @pytest.mark.parametrize("refusals", [0, 1, 3])
    async def test_a_claim_whose_answer_was_lost_holds_nothing(self, one: Process, refusals: int) -> None:
        """T-13, also where the store refuses the first reads after it."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, max_attempts=1))
        async with one.store.reopen() as store:
            cut = TakeCut(store, refusals)
            two = Process(cut, 15.0)
            try:
                told = await raised(OutcomeUnknown, two.claim())
                expect("T-13", told, "a claim whose answer was lost does not say so")
                for _ in range(refusals):
                    with suppress(StoreUnavailable):
                        await two.claim(types=["none"])  # whatever it claims next
                late = await store.turn([], cut.lost())
                expect("T-13", isinstance(late.taken, Conflict), "a take took something when it arrived late")
                claimed = [(task.id, task.attempts) for task in await one.claim()]
                expect_equal("T-13", claimed, [(task_id, 1)], "the task and its attempts after a lost claim")
            finally:
                await two.handle.close()

    async def test_retention_removes_a_task_and_its_dedup_key(self, one: Process) -> None:
        """T-14."""
        await one.pools.create_pool(Pool(id="short", keep_completed_sec=0.2, dedup_window_sec=0.0))
        task_id = await one.tasks.submit(Task(pool_id="short", dedup_key="k"))
        (task,) = await one.tasks.claim("agent", ["short"])
        kept = await one.tasks.submit(Task(pool_id=POOL, dedup_key="k"))
        await one.tasks.complete(task, 1)
        await one.tasks.complete(await one.claim_one(), 1)
        await wait_until_store_time(one.store, await one.store.time() + 250_000)
        await one.sweep_all()
        expect("T-14", await raised(NoSuchTask, one.tasks.get(task_id)), "a task is still there after its retention")
        raw = bytes.fromhex(task_id.replace("-", ""))
        expect_equal(
            "T-14", list(await one.store.get([TASK(raw), STATE(raw)])), [None, None], "the records after retention"
        )
        expect(
            "T-14",
            await one.tasks.submit(Task(pool_id="short", dedup_key="k")) != task_id,
            "a dedup key outlived its task",
        )
        expect_equal(
            "T-14",
            (await one.tasks.get(kept)).state,
            TaskState.COMPLETED,
            "the state of a task whose retention has not passed",
        )
