"""One task ends all waits at their deadlines: none early, none forgotten, and nothing is left when nobody waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import checkpoint

from converge.env import SYSTEM
from converge.services.messages.waits import GRAIN_SEC, Deadlines, waiters
from converge.testing.fixtures import wait_until


class Wait:
    """A wait that notes how it ended."""

    def __init__(self, ends: list[Wait]) -> None:
        self.ends, self.is_given_up = ends, False

    def expire(self) -> None:
        self.ends.append(self)

    def give_up(self) -> None:
        self.is_given_up = True


class Tasks:
    """Starts the task, and knows how often it was started and whether it runs."""

    def __init__(self, group: anyio.abc.TaskGroup) -> None:
        self.group, self.started, self.running = group, 0, 0

    def errand(self, run: object) -> None:
        self.started += 1
        self.group.start_soon(self._run, run)

    async def _run(self, run: object) -> None:
        self.running += 1
        try:
            await run()  # type: ignore[operator]  # what it is given
        finally:
            self.running -= 1


@asynccontextmanager
async def opened(monotonic: Callable[[], float] = SYSTEM.monotonic) -> AsyncIterator[tuple[Deadlines, Tasks]]:
    async with anyio.create_task_group() as group:
        tasks = Tasks(group)
        yield Deadlines(monotonic, tasks.errand), tasks
        group.cancel_scope.cancel()


async def test_each_wait_ends_at_its_deadline_and_not_before_whatever_the_order_in_which_they_came() -> None:
    now = 1_000.0  # it stands still, unless it is moved
    async with opened(lambda: now) as (deadlines, tasks):
        ends = list[Wait]()
        due = {Wait(ends): now + 0.03 * number for number in (9, 1, 5, 3, 12)}
        for one, until in due.items():
            deadlines.add(one, until)
            await checkpoint()  # the task sleeps already, and is to wake for an earlier one
        for number, one in enumerate(sorted(due, key=due.__getitem__), 1):
            await anyio.sleep(0.05)  # the task has looked at the clock meanwhile, and it is not yet time
            assert len(ends) == number - 1
            now = due[one] + GRAIN_SEC
            await wait_until(lambda number=number: len(ends) >= number, what="one has ended")  # type: ignore[misc]  # bound now
            assert ends[-1] is one
        await wait_until(lambda: tasks.running == 0, what="nobody waits, so nothing runs")
        deadlines.add(Wait(ends), now - 1)
        await wait_until(lambda: len(ends) == len(due) + 1, what="it begins again")
        assert tasks.started == 2


async def test_a_wait_that_has_ended_is_not_told_of_its_deadline() -> None:
    async with opened() as (deadlines, _):
        ends = list[Wait]()
        one, other = Wait(ends), Wait(ends)
        until = SYSTEM.monotonic() + GRAIN_SEC
        grain = deadlines.add(one, until)
        deadlines.add(other, until)
        deadlines.discard(one, grain)
        await wait_until(lambda: bool(ends), what="the other one has ended")
        assert ends == [other]
        deadlines.discard(other, grain)  # late, as by a caller that wakes up


async def test_waits_that_nothing_watches_any_more_are_told_so() -> None:
    async with opened() as (deadlines, tasks):
        one = Wait([])
        deadlines.add(one, SYSTEM.monotonic() + 60)
        await wait_until(lambda: tasks.running == 1, what="it runs")
    assert one.is_given_up and not one.ends


async def test_a_waiter_wakes_whoever_awaits_it_and_is_done_with_that() -> None:
    waiter, woken = waiters()(), list[bool]()

    async def wait() -> None:
        await waiter
        woken.append(waiter.done())

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not waiter.done()
        waiter.set_result(None)
    assert woken == [True]
