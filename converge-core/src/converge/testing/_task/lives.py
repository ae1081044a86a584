"""T-1 to T-8, T-14 and T-24: how one task is stored, claimed, finished, retried, ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import anyio
import attrs
import pytest

from converge.errors import DedupConflict, NoSuchPool, NoSuchTask, StaleClaim
from converge.ids import id_bytes
from converge.machines.attempt import RETRY_AFTER_GREATEST_SEC
from converge.machines.task import TaskState
from converge.model.keys import LATER
from converge.model.pool import Pool
from converge.model.task import Task
from converge.services.store.pages import read_all
from converge.testing._task.base import POOL, Process, TaskCase, another, raised, wait_until_store_time
from converge.testing.clauses import expect, expect_equal


class LifeClauses(TaskCase):
    """One task at a time, and two processes that want it."""

    async def test_a_task_submitted_again_with_its_id_is_the_same_task(self, one: Process, two: Process) -> None:
        """T-1."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, inputs={"n": 1}))
        again = await two.tasks.submit(Task(pool_id=POOL, id=task_id, inputs={"n": 1}))
        expect_equal("T-1", again, task_id, "the id of a task submitted again")
        expect_equal("T-1", len(await one.claim()), 1, "how many tasks two submits of one id made")

    async def test_a_dedup_key_gives_one_task_and_refuses_other_content(self, one: Process, two: Process) -> None:
        """T-1."""
        first = await one.tasks.submit(Task(pool_id=POOL, dedup_key="k", inputs={"n": 1}))
        expect_equal(
            "T-1",
            await two.tasks.submit(Task(pool_id=POOL, dedup_key="k", inputs={"n": 1})),
            first,
            "the id for the same dedup key",
        )
        refused = await raised(DedupConflict, two.tasks.submit(Task(pool_id=POOL, dedup_key="k", inputs={"n": 2})))
        expect("T-1", refused, "other content under a dedup key was taken")
        expect_equal("T-1", (await one.tasks.get(first)).inputs, {"n": 1}, "the inputs after a refused submit")
        expect_equal("T-1", len(await one.claim()), 1, "how many tasks one dedup key made")

    async def test_many_submits_at_once_with_one_dedup_key_make_one_task(self, one: Process, two: Process) -> None:
        """T-1."""
        ids: list[str] = []

        async def submit(process: Process) -> None:
            ids.append(await process.tasks.submit(Task(pool_id=POOL, dedup_key="k")))

        async with anyio.create_task_group() as group:
            for at in range(16):
                group.start_soon(submit, (one, two)[at % 2])
        expect_equal("T-1", len(set(ids)), 1, "how many ids 16 submits with one dedup key gave")

    async def test_every_acknowledged_task_can_be_found(self, one: Process, two: Process) -> None:
        """T-1."""
        ids = await one.tasks.submit_many(
            [Task(pool_id=POOL, inputs={"n": n}, ordering_key="k" if n % 3 == 0 else None) for n in range(60)]
        )
        expect_equal(
            "T-1",
            [(await two.tasks.get(task_id)).inputs["n"] for task_id in ids],
            list(range(60)),
            "what is found under 60 ids",
        )

    async def test_a_submit_to_a_pool_that_is_not_there_names_the_nearest(self, one: Process) -> None:
        """T-1."""
        try:
            await one.tasks.submit(Task(pool_id="dosc"))
        except NoSuchPool as error:
            expect_equal("T-1", error.nearest, POOL, "the nearest pool named")
        else:
            expect("T-1", False, "a task was taken for a pool that does not exist")

    async def test_a_claim_takes_the_smallest_rank_first(self, one: Process) -> None:
        """T-2."""
        ids = [await one.tasks.submit(Task(pool_id=POOL, priority=priority)) for priority in (0, 5, -5, 1)]
        claimed = [task.id for task in await one.claim()]
        expect_equal("T-2", claimed, [ids[1], ids[3], ids[0], ids[2]], "the order of a claim of priorities 0, 5, -5, 1")

    async def test_tasks_of_one_rank_come_in_the_order_of_their_submit(self, one: Process) -> None:
        """T-2."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL) for _ in range(30)])
        expect_equal("T-2", [task.id for task in await one.claim(30)], ids, "the order of 30 tasks of one submit")

    async def test_a_claim_takes_no_task_that_its_claimer_may_not_have(self, one: Process) -> None:
        """T-2."""
        plain = await one.tasks.submit(Task(pool_id=POOL))
        await one.tasks.submit(Task(pool_id=POOL, required_capabilities=["gpu"]))
        about = await one.tasks.submit(Task(pool_id=POOL, topic="news"))
        typed = await one.tasks.submit(Task(pool_id=POOL, type="resize"))
        claimed = {task.id for task in await one.claim(topics=["sport"], types=["resize"])}
        expect_equal("T-2", claimed, {typed}, "what a claimer of topic sport and type resize got")
        expect_equal(
            "T-2",
            {task.id for task in await one.claim(topics=["news"])},
            {plain, about},
            "what a claimer of topic news got",
        )
        expect_equal(
            "T-2",
            len(await one.claim(capabilities=["gpu", "cpu"])),
            1,
            "what a claimer with more capabilities than needed got",
        )

    async def test_no_task_is_claimed_twice(self, one: Process, two: Process) -> None:
        """T-2."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL) for _ in range(100)])
        claimed: list[str] = []

        async def drain(process: Process, limit: int) -> None:
            while tasks := await process.claim(limit):
                claimed.extend(task.id for task in tasks)

        async with anyio.create_task_group() as group:
            for at in range(8):
                group.start_soon(drain, (one, two)[at % 2], 1 + at % 3)
        expect_equal("T-2", sorted(claimed), sorted(ids), "what 8 claimers took of 100 tasks")

    async def test_each_claim_of_a_task_has_a_greater_token(self, one: Process, two: Process) -> None:
        """T-3."""
        await one.tasks.submit(Task(pool_id=POOL))
        tokens = []
        for at in range(6):
            process = (one, two)[at % 2]
            task = await process.claim_one()
            tokens.append(task.token)
            await process.tasks.release(task)
        expect("T-3", tokens[0] > 0 and all(a < b for a, b in pairwise(tokens)), f"tokens of six claims: {tokens}")

    async def test_a_finish_with_an_older_token_changes_nothing(self, one: Process, two: Process) -> None:
        """T-4."""
        await one.tasks.submit(Task(pool_id=POOL))
        old = await one.claim_one()
        await one.tasks.release(old)
        new = await two.claim_one()
        for call in (
            one.tasks.complete(old, 1),
            one.tasks.fail(old, "no"),
            one.tasks.complete(attrs.evolve(old, token=new.token), 1),
        ):
            expect("T-4", await raised(StaleClaim, call), "a finish of a claim that had been released was taken")
        await two.tasks.complete(new, 2)
        expect_equal("T-4", (await one.tasks.get(new.id)).result, 2, "the result after stale finishes")

    async def test_a_finish_with_the_right_token_and_a_wrong_nonce_changes_nothing(self, one: Process) -> None:
        """T-4."""
        await one.tasks.submit(Task(pool_id=POOL))
        task = await one.claim_one()
        async with another(one.store) as stranger:
            forged = attrs.evolve(task, nonce="00" * 16)
            expect(
                "T-4",
                await raised(StaleClaim, stranger.tasks.complete(forged, 1)),
                "a finish with a wrong nonce was taken",
            )
        expect_equal("T-4", (await one.tasks.get(task.id)).state, TaskState.ASSIGNED, "the state after a forged finish")

    async def test_a_finish_may_be_said_again(self, one: Process) -> None:
        """T-5."""
        await one.tasks.submit(Task(pool_id=POOL))
        task = await one.claim_one()
        await one.tasks.complete(task, {"n": 1})
        await one.tasks.complete(task, {"n": 1})
        expect(
            "T-5",
            await raised(StaleClaim, one.tasks.complete(task, {"n": 2})),
            "a second finish with another result was taken",
        )
        expect("T-5", await raised(StaleClaim, one.tasks.fail(task, "no")), "a failure after the completion was taken")
        expect_equal("T-5", (await one.tasks.get(task.id)).result, {"n": 1}, "the result")

    async def test_cancel_wins_or_loses_against_completion(self, one: Process, two: Process) -> None:
        """T-6."""
        for _ in range(self.rounds):
            task_id = await one.tasks.submit(Task(pool_id=POOL))
            task = await one.claim_one()
            won: list[str] = []

            async def complete(task: Task = task, won: list[str] = won) -> None:
                if not await raised(StaleClaim, one.tasks.complete(task, 1)):
                    won.append(TaskState.COMPLETED)

            async def cancel(task_id: str = task_id, won: list[str] = won) -> None:
                if await two.tasks.cancel(task_id):
                    won.append(TaskState.CANCELLED)

            async with anyio.create_task_group() as group:
                group.start_soon(complete)
                group.start_soon(cancel)
            expect_equal(
                "T-6",
                [str(state) for state in won],
                [(await one.tasks.get(task_id)).state],
                "who won, and the state that is stored",
            )

    async def test_a_terminal_task_stays_as_it_is(self, one: Process, two: Process) -> None:
        """T-6."""
        ids = await one.tasks.submit_many([Task(pool_id=POOL) for _ in range(3)])
        first, second, _ = await one.claim(3)
        await one.tasks.complete(first, 1)
        await one.tasks.fail(second, "no", retry=False)
        await one.tasks.cancel(ids[2])
        for task_id in ids:
            expect("T-6", not await two.tasks.cancel(task_id), "a terminal task was cancelled")
        states = [(await two.tasks.get(task_id)).state for task_id in ids]
        expect_equal("T-6", states, [TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED], "the states")
        expect_equal("T-6", await two.claim(), [], "what is claimed of terminal tasks")

    async def test_failures_count_and_the_last_one_is_final(self, one: Process) -> None:
        """T-7."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, max_attempts=3, retry_delay_sec=0.0))
        for attempt in (1, 2, 3):
            await one.sweep_all()
            task = await one.claim_one()
            expect_equal("T-7", task.attempts, attempt, "the attempts that a claim shows")
            await one.tasks.fail(task, f"failure {attempt}")
        ended = await one.tasks.get(task_id)
        expect_equal(
            "T-7",
            (ended.state, ended.attempts, len(ended.history)),
            (TaskState.FAILED, 3, 3),
            "state, attempts and history at the end",
        )
        expect(
            "T-7",
            "failure 3" in ended.error and "exhausted" in ended.error,
            f"the error does not say why: {ended.error}",
        )

    async def test_a_release_counts_no_attempt(self, one: Process) -> None:
        """T-7."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, max_attempts=1))
        for _ in range(5):
            await one.tasks.release(await one.claim_one())
        await one.tasks.complete(await one.claim_one(), 1)
        expect_equal("T-7", (await one.tasks.get(task_id)).attempts, 1, "attempts after five releases and a completion")

    async def test_a_task_is_not_claimed_before_its_time(self, one: Process) -> None:
        """T-8."""
        due = datetime.now(UTC) + timedelta(seconds=0.4)
        await one.tasks.submit(Task(pool_id=POOL, not_before=due))
        await one.sweep.page()
        early, now = await one.claim(), await one.store.time()
        due_us = int(due.timestamp() * 1_000_000)
        expect("T-8", not early or now >= due_us, "a task was claimed before its not_before")
        await wait_until_store_time(one.store, due_us + 1)
        await one.sweep_all()
        expect_equal(
            "T-8", len(early) + len(await one.claim()), 1, "how often the task was claimed once its time had come"
        )

    async def test_a_retry_waits(self, one: Process) -> None:
        """T-8."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, retry_delay_sec=3_600.0))
        await one.tasks.fail(await one.claim_one(), "once")
        await one.sweep_all()
        task = await one.tasks.get(task_id)
        expect_equal("T-8", (task.state, task.attempts), (TaskState.PENDING, 1), "state and attempts after a failure")
        expect_equal("T-8", await one.claim(), [], "what is claimed while a retry waits (a random part of an hour)")

    async def test_a_failure_without_a_retry_is_final(self, one: Process) -> None:
        """T-24."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, max_attempts=5, retry_delay_sec=0.0))
        await one.tasks.fail(await one.claim_one(), "no use", retry=False)
        ended = await one.tasks.get(task_id)
        expect_equal(
            "T-24",
            (ended.state, ended.attempts, ended.error),
            (TaskState.FAILED, 1, "no use"),
            "state, attempts and error after a failure without a retry",
        )

    async def test_a_failure_with_a_wait_is_tried_again_after_it_and_counts(self, one: Process) -> None:
        """T-24."""
        task_id = await one.tasks.submit(Task(pool_id=POOL, max_attempts=2, retry_delay_sec=0.0))
        failed_at = await one.store.time()
        await one.tasks.fail(await one.claim_one(), "later", after=0.5)
        await one.sweep_all()
        early, now = await one.claim(), await one.store.time()
        expect("T-24", not early or now >= failed_at + 500_000, "a task was claimed before the wait was over")
        await wait_until_store_time(one.store, now + 500_001)
        await one.sweep_all()
        (again,) = early or await one.claim()
        expect_equal("T-24", again.attempts, 2, "the attempts that the next claim shows")
        await one.tasks.fail(again, "and again", after=0.0)
        expect_equal("T-24", (await one.tasks.get(task_id)).state, TaskState.FAILED, "the state after the last attempt")

    async def test_no_wait_is_longer_than_the_greatest(self, one: Process) -> None:
        """T-24."""
        task_id = await one.tasks.submit(Task(pool_id=POOL))
        await one.tasks.fail(await one.claim_one(), "much later", after=float("inf"))
        entries = await read_all(one.store, LATER())
        (due,) = [entry.key[1] for entry in entries if entry.key[2] == id_bytes("task", task_id)]
        left_sec = (due - await one.store.time()) / 1_000_000
        expect("T-24", left_sec <= RETRY_AFTER_GREATEST_SEC, f"it is due in {left_sec:.0f} s")
        expect("T-24", left_sec > RETRY_AFTER_GREATEST_SEC - 3_600, f"it is due in {left_sec:.0f} s")

    async def test_a_pool_keeps_no_more_than_it_should(self, one: Process, monkeypatch: pytest.MonkeyPatch) -> None:
        """T-14."""
        monkeypatch.setattr("converge.services.tasks.retention.COUNT_SHARE", 0.0)
        await one.pools.create_pool(Pool(id="small", keep_count=3, dedup_window_sec=60.0))
        made = [Task(pool_id="small", dedup_key="k" if number == 1 else None) for number in range(8)]
        ids = await one.tasks.submit_many(made)
        for number, task in enumerate(sorted(await one.tasks.claim("agent", ["small"], limit=8), key=_id_of)):
            await (one.tasks.complete(task, number) if number else one.tasks.fail(task, "bad", retry=False))
        await one.sweep_all()
        for id_ in ids:
            expect("T-14", (await one.tasks.get(id_)).finished_at is not None, "a task that has just ended is gone")
        monkeypatch.setattr("converge.machines.retention.FRESH_SEC", 0.0)
        await one.sweep_all()
        left = [number for number, id_ in enumerate(ids) if not await raised(NoSuchTask, one.tasks.get(id_))]
        expect_equal("T-14", left[:2], [0, 1], "the failed task and the one with a dedup key")
        expect_equal("T-14", len(left), 3, "how many of eight tasks are left of a pool that keeps three")


def _id_of(task: Task) -> str:
    return task.id
