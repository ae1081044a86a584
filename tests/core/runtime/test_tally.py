"""What a node counts of its attempts: each once, by what the store made of it."""

from __future__ import annotations

import http.client
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from converge import Agent, Node, Task, TaskState
from converge.machines.breaker import Breaker
from converge.machines.events import Completed, Event, Failed, Parked, Released
from converge.model.place import Found, Held
from converge.model.task import Spec, State, Wait
from converge.runtime.probes.tally import Tally
from converge.testing.fixtures import wait_until

DEADLINE = 1_000_000
NONE = {"completed": 0, "retried": 0, "failed": 0, "released": 0, "lost": 0}


def found(*, deadline: int = 0, attempts: int = 0) -> Found:
    """A claimed task of the pool `docs`."""
    spec = Spec("docs", "0" * 32, 0, 1, 1, deadline=deadline, max_attempts=3)
    state = State("PENDING", attempts, 0, 0) if attempts else None
    return Found(b"i" * 16, spec, state, Held(b"l" * 16, b"n" * 16, 7, 5))


def begun(one: Found) -> Tally:
    """A tally that has seen the claim."""
    tally = Tally(lambda: 0.0)
    tally.claimed(one)
    return tally


@pytest.mark.parametrize(
    ("event", "one", "outcome"),
    [
        (Completed(b"1"), found(), "completed"),
        (Completed(b"1"), found(deadline=DEADLINE), "completed"),
        (Failed("no"), found(), "retried"),
        (Failed("no"), found(attempts=2), "failed"),
        (Failed("no", is_retried=False), found(), "failed"),
        (Failed("no"), found(deadline=DEADLINE), "failed"),
        (Failed("no"), found(deadline=DEADLINE + 1), "retried"),
        (Released("a"), found(attempts=2), "released"),
        (Released("a"), found(deadline=DEADLINE), "failed"),
    ],
)
def test_an_attempt_counts_as_what_the_store_made_of_it(event: Event, one: Found, outcome: str) -> None:
    tally = begun(one)
    tally.finished(one, event, DEADLINE)
    assert tally.pools["docs"].outcomes == {**NONE, outcome: 1}
    assert sum(tally.pools["docs"].durations.counts) == 1


def test_an_attempt_that_begins_to_wait_has_taken_its_time_and_has_no_outcome() -> None:
    one = found()
    tally = begun(one)
    tally.finished(one, Parked(Wait(("go",)), 0), 1)
    assert tally.pools["docs"].outcomes == NONE
    assert sum(tally.pools["docs"].durations.counts) == 1


def test_what_went_back_before_it_began_is_not_counted_though_the_task_was_here_before() -> None:
    one = found()
    tally = begun(one)
    tally.dropped(one)
    tally.dropped(one)  # nothing of it has begun since
    tally.finished(one, Released(), 1)
    assert tally.pools["docs"].outcomes == {**NONE, "lost": 1}
    assert sum(tally.pools["docs"].durations.counts) == 0


def shown(url: str) -> str:
    """What a node shows of its figures."""
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


class Waiter(Agent):
    """Works until it is told to stop."""

    async def on_task(self, task: Task) -> None:
        """Wait."""
        await anyio.sleep_forever()


async def test_an_attempt_at_a_task_that_is_cancelled_counts_as_lost() -> None:
    async with Node(health="0", poll_sec=0.05) as node:
        await node.spawn(Waiter, pool="docs")
        task_id = await node.tasks.submit(Task(pool_id="docs"))
        await wait_until(lambda: node.feeds[0].slots.running == 1)
        await node.tasks.cancel(task_id)
        await wait_until(lambda: node.feeds[0].slots.running == 0)
        found = await anyio.to_thread.run_sync(shown, str(node.health_url))
    assert 'converge_task_attempts_total{outcome="lost",pool="docs"} 1.0' in found


class Ill(Agent):
    """Fails at whatever it is given."""

    breaker = Breaker(on=(Exception,), failures=1, rest_sec=600.0)
    tick_sec = 0.01

    async def on_task(self, task: Task) -> None:
        """Fail."""
        raise ValueError("ill")

    async def on_tick(self) -> None:
        """Fail."""
        raise ValueError("ill")


async def test_an_agent_rests_once_with_all_its_handlers_and_no_longer_than_it_is_there() -> None:
    async with Node(health="0", poll_sec=0.05) as node:
        (agent,) = await node.spawn(Ill, pool="docs")
        await node.tasks.submit(Task(pool_id="docs"))
        await wait_until(lambda: len(node.health().notes) == 2, what="both of its handlers rest")
        found = await anyio.to_thread.run_sync(shown, str(node.health_url))
        assert 'converge_agents{state="resting"} 1.0' in found
        await node.retire(agent)
        assert node.health().notes == ()
        found = await anyio.to_thread.run_sync(shown, str(node.health_url))
        assert 'converge_agents{state="live"} 0.0' in found and 'converge_agents{state="resting"} 0.0' in found


async def test_the_pools_of_agents_are_shown_before_anything_has_happened_in_them() -> None:
    """A counter that begins at 1 has not increased, as Prometheus sees it: the first failure would alarm nobody."""
    async with Node(health="0") as node:
        await node.spawn(Waiter, pool="docs")
        found = await anyio.to_thread.run_sync(shown, str(node.health_url))
    assert 'converge_task_attempts_total{outcome="failed",pool="docs"} 0.0' in found
    assert 'converge_claim_latency_seconds_count{pool="docs"} 0.0' in found


class Asker(Agent):
    """Waits for a signal."""

    async def on_task(self, task: Task) -> object:
        """Return what it was told."""
        return await task.wait_for("go")


async def test_the_claim_after_a_wait_is_not_the_first(tmp_path: Path) -> None:
    async with Node(health="0", store=f"file:{tmp_path / 's.db'}", poll_sec=0.05) as node:
        await node.spawn(Asker, pool="docs")
        task_id = await node.tasks.submit(Task(pool_id="docs"))

        async def waits() -> bool:
            return (await node.tasks.get(task_id)).state == TaskState.WAITING

        await wait_until(waits)
        await node.tasks.signal(task_id, "go", 1)
        assert (await node.tasks.result(task_id, timeout=30)).result == 1
        await wait_until(lambda: node.feeds[0].finishing.completed == 1)
        found = await anyio.to_thread.run_sync(shown, str(node.health_url))
    assert 'converge_claim_latency_seconds_count{pool="docs"} 1.0' in found
    assert 'converge_task_attempts_total{outcome="completed",pool="docs"} 1.0' in found
