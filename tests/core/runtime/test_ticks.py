"""Ticks: they come, one at a time for an agent, at different moments for different agents, and cost no task while they
are awaited.
"""

from __future__ import annotations

import logging
import threading
from itertools import pairwise
from typing import Any

import anyio
import pytest

from converge.env import Env
from converge.errors import InvalidValue
from converge.machines.breaker import Breaker
from converge.model.message import Message
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.background import Background
from converge.runtime.agents.boundary import Boundary, Worker
from converge.runtime.agents.hosted import hosted_of
from converge.runtime.agents.ticks import Ticks
from converge.runtime.node import Node
from converge.testing.fixtures import wait_until


class Ticking(Agent):
    """Remembers when it ticked, and how many ticks of it ran at once."""

    tick_sec = 0.05
    pause_sec = 0.0
    running: int = 0
    most: int = 0
    ticks: int = 0

    async def on_tick(self) -> None:
        """See the class."""
        self.running += 1
        self.most = max(self.most, self.running)
        self.ticks += 1
        await anyio.sleep(type(self).pause_sec)
        self.running -= 1


async def test_an_agent_ticks_again_and_again_beside_its_tasks(store_url: str) -> None:
    class Busy(Ticking):
        async def on_task(self, task: Task) -> int:
            await wait_until(lambda: self.ticks >= 3)
            return self.ticks

    with anyio.fail_after(20):
        async with Node(store=store_url) as node:
            await node.spawn(Busy, pool="p")
            task = await node.tasks.result(await node.tasks.submit(Task(pool_id="p")))
            assert task.result >= 3


async def test_a_tick_that_takes_longer_than_its_interval_is_never_overlapped() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            slow = type("Slow", (Ticking,), {"tick_sec": 0.01, "pause_sec": 0.05})
            agent: Agent
            (agent,) = await node.spawn(slow)
            assert isinstance(agent, Ticking)
            await wait_until(lambda: agent.ticks >= 4)
            assert agent.most == 1


async def test_agents_that_are_started_together_do_not_tick_together() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            await node.spawn(type("Patient", (Ticking,), {"tick_sec": 3_600.0}), count=20)
            # When they are due, not when they came: a process that stands still ticks for all of them at once.
            moments, now = sorted(due for due, *_ in node.ticks._due), node.env.monotonic()
            assert len(moments) == 20 and moments[0] - now < 3_600.0, "the first does not wait for a whole interval"
            assert moments[19] - moments[0] > 900.0, "twenty moments of an hour lie closer once in 10 million"


async def test_an_agent_that_waits_for_its_tick_costs_no_task() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            before = len(anyio.get_running_tasks())
            await node.spawn(type("Patient", (Ticking,), {"tick_sec": 3_600.0}), count=100)
            assert len(anyio.get_running_tasks()) - before < 10


async def test_a_sync_tick_runs_in_a_thread_and_does_not_stop_the_loop() -> None:
    class Blocking(Agent):
        tick_sec = 0.01
        began = ended = False
        go_on = threading.Event()

        def on_tick(self) -> None:
            type(self).began = True
            self.go_on.wait(15)
            type(self).ended = True

        async def on_message(self, message: Message) -> Any:
            return message.payload

    with anyio.fail_after(20):
        async with Node() as node:
            (agent,) = await node.spawn(Blocking)
            await wait_until(lambda: Blocking.began)
            assert await node.ask(agent.id, "quick") == "quick"
            assert not Blocking.ended, "it waited for the tick"
            Blocking.go_on.set()


async def test_a_tick_that_fails_is_counted_and_the_next_ones_come_after_a_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: list[tuple[float, object]] = []

    class Failing(Ticking):
        tick_sec = 0.01
        breaker = Breaker(on=(Exception,), failures=2, rest_sec=0.4)

        async def on_tick(self) -> None:
            found.append((anyio.current_time(), (self.health.failures, self.health.state, self.health.last_error)))
            if len(found) <= 2:
                raise RuntimeError(f"tick {len(found)}")

    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(20):
        async with Node() as node:
            (agent,) = await node.spawn(Failing)
            await wait_until(lambda: len(found) >= 3)
            (second, _), (third, seen) = found[1:3]
            assert third - second > 0.15 and seen == (2, "half-open", "RuntimeError: tick 2")
            await wait_until(lambda: agent.health.state == "closed")


async def test_no_tick_begins_once_on_stop_was_called() -> None:
    class Lasting(Ticking):
        async def on_stop(self) -> None:
            self.ticks = 0
            await anyio.sleep(0.2)
            self.most = self.ticks

    with anyio.fail_after(20):
        async with Node() as node:
            agent: Agent
            (agent,) = await node.spawn(type("Quick", (Lasting,), {"tick_sec": 0.01}))
            assert isinstance(agent, Ticking)
            await wait_until(lambda: agent.ticks >= 2)
    assert agent.most == 0


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"tick_sec": None}, "expected seconds: it has an on_tick"),
        ({"tick_sec": 0}, r"expected seconds, from 0\.01 to 86,400"),
        ({"tick_sec": "1"}, r"expected seconds, from 0\.01"),
        ({"on_tick": Agent.on_tick}, "expected None: it has neither on_tick nor decide"),
    ],
)
async def test_an_interval_and_a_handler_must_go_together(attributes: dict[str, Any], text: str) -> None:
    async with Node() as node:
        with pytest.raises(InvalidValue, match=text):
            await node.spawn(type("Wrong", (Ticking,), attributes))


async def test_the_timer_ends_when_it_is_stopped_though_ticks_are_due() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            agent: Agent
            (agent,) = await node.spawn(type("Quick", (Ticking,), {"tick_sec": 3_600.0}))
            async with anyio.create_task_group() as group:
                ticks = Ticks(node.env, Boundary(Worker, Background(group, node.env)), node.supervision)
                group.start_soon(ticks.run)
                await anyio.wait_all_tasks_blocked()
                await ticks.stop()
                ticks.add([hosted_of(agent)])


async def test_the_agent_s_log_says_whose_tick_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Saying(Agent):
        tick_sec = 0.01

        async def on_tick(self) -> None:
            self.log.warning("tick")

    with anyio.fail_after(20):
        async with Node() as node:
            (agent,) = await node.spawn(Saying)
            await wait_until(lambda: bool([record for record in caplog.records if record.getMessage() == "tick"]))
            record = next(record for record in caplog.records if record.getMessage() == "tick")
            assert vars(record)["agent"] == agent.id


async def test_ticks_drift_apart_by_up_to_a_tenth() -> None:
    class Noting(Agent):
        tick_sec = 0.1
        moments: list[float] = []  # noqa: RUF012  # remembered for the test

        async def on_tick(self) -> None:
            self.moments.append(anyio.current_time())

    with anyio.fail_after(20):
        async with Node() as node:
            (agent,) = await node.spawn(Noting)
            await node.ticks.stop()
            Noting.moments.clear()
            async with anyio.create_task_group() as group:
                env = Env(entropy=lambda count: b"\xff" * count)  # as late as chance has it
                ticks = Ticks(env, Boundary(Worker, Background(group, env)), node.supervision)
                ticks.add([hosted_of(agent)])
                group.start_soon(ticks.run)
                await wait_until(lambda: len(Noting.moments) >= 4)
                await ticks.stop()
                group.cancel_scope.cancel()
            assert min(after - before for before, after in pairwise(Noting.moments)) > 0.108
