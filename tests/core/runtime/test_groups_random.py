"""Agents that join, leave, fail and rest at random while tasks flow: each task is done, once, and nothing is left
held.
"""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import Sequence

import anyio
import pytest

from converge.errors import ConvergeError
from converge.machines.breaker import Breaker
from converge.machines.task import TaskState
from converge.model.pool import Pool
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.decisions import ReportTask
from converge.runtime.node import Node
from converge.testing.fixtures import wait_until

POOLS = ("a", "b", "c")
TASKS = 300
STEPS = 60
SEEDS = (1, 2, 3) if os.environ.get("FULL_TESTS") == "1" else (1,)


class Chaotic(Agent):
    """Fails now and then, and has a breaker that opens easily."""

    concurrency = 2
    breaker = Breaker(on=(Exception,), failures=1, rest_sec=0.02, rest_greatest_sec=0.05)
    is_wild = True
    chance: random.Random
    done: Counter[str]

    async def on_task(self, task: Task) -> None:
        """See the class."""
        await anyio.sleep(self.chance.choice((0.0, 0.0, 0.005)))
        if self.is_wild and self.chance.random() < 0.1:
            raise RuntimeError("by chance")
        self.done[task.id] += 1


class Deciding(Agent):
    """The same with the whole loop: it holds tasks for a while."""

    concurrency = 3
    tick_sec = 0.01
    breaker = Chaotic.breaker
    is_wild = True
    chance: random.Random
    done: Counter[str]

    def decide(self, messages: object, tasks: list[Task]) -> list[ReportTask]:
        """See the class."""
        if self.is_wild and tasks and self.chance.random() < 0.05:
            raise RuntimeError("by chance")
        ended = [task for task in tasks if self.chance.random() < 0.5]
        self.done.update(task.id for task in ended)
        return [ReportTask(task_id=task.id) for task in ended]


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_agents_do_each_task_is_done_once(
    seed: int, store_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    print(f"seed {seed}")  # noqa: T201  # it replays a failure
    caplog.set_level(logging.CRITICAL)
    chance, done = random.Random(seed), Counter[str]()
    kinds: list[type[Chaotic | Deciding]] = [
        type(cls.__name__, (cls,), {"chance": chance, "done": done}) for cls in (Chaotic, Deciding)
    ]
    with anyio.fail_after(60):
        async with Node(store=store_url, poll_sec=0.05, grace_sec=1.0) as node:
            for pool_id in POOLS:
                await node.pools.create_pool(Pool(id=pool_id))
            agents = [
                agent for kind in kinds for _ in range(3) for agent in await node.spawn(kind, pool=chance.choice(POOLS))
            ]
            tasks = [Task(pool_id=chance.choice(POOLS), max_attempts=50, retry_delay_sec=0.0) for _ in range(TASKS)]
            ids = await node.tasks.submit_many(tasks)
            await _stir(agents, chance)
            for agent in agents:
                for pool_id in POOLS:
                    await agent.join(pool_id)
            for task_id in ids:
                assert (await node.tasks.result(task_id, timeout=30)).state == TaskState.COMPLETED
            assert done.keys() == set(ids)
            await wait_until(
                lambda: len(node.feeds) == 1 and sum(feed.in_hand for feed in node.feeds) == 0, what="nothing is held"
            )
            for kind in kinds:
                kind.is_wild = False  # those on trial succeed now, as soon as they get a task
            for _ in range(50):
                if all(agent.health.state == "closed" for agent in agents):
                    break
                for task_id in await node.tasks.submit_many([Task(pool_id="a") for _ in range(30)]):
                    await node.tasks.result(task_id, timeout=30)
            await wait_until(
                lambda: sum(feed.slots.free for feed in node.feeds) == 15, what="every agent has all its slots again"
            )
            assert not node.parts.boundary.background.failures
            await wait_until(lambda: node.health().is_ready)


async def _stir(agents: Sequence[Agent], chance: random.Random) -> None:
    for _ in range(STEPS):
        agent, pool_id = chance.choice(agents), chance.choice(POOLS)
        try:
            await (agent.join(pool_id) if chance.random() < 0.5 else agent.leave(pool_id))
        except ConvergeError as error:
            raise AssertionError(f"{agent.id} could not change {pool_id}") from error
        await anyio.sleep(chance.choice((0.0, 0.001, 0.01)))
