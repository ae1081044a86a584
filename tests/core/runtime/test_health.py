"""A node's health says what is true, from any thread, and why."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge.model.task import Task
from converge.operations.run import Run, run
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.ailments import Ailment, Code
from converge.runtime.config.config import load
from converge.runtime.health import BLOCKED_SEC, LATE, Vitals
from converge.runtime.node import Node
from converge.runtime.probes.answer import Health
from converge.testing._store.outages import Outages, OutageStore
from converge.testing.fixtures import wait_until

LEASE_SEC = 1.0  # short: the loop, and whether wake-ups arrive, are looked at three times in it


class Idle(Agent):
    """Has nothing to do."""

    async def on_task(self, task: Task) -> None:
        """See the class."""


class Blocking(Agent):
    """Blocks the event loop until it is told to go on."""

    go_on: threading.Event

    async def on_task(self, task: Task) -> None:
        """See the class."""
        type(self).go_on.wait(20)


@pytest.fixture
def outages() -> Outages:
    return Outages()


@pytest.fixture
async def node(outages: Outages) -> AsyncIterator[Node]:
    async with Node(store=OutageStore(outages), poll_sec=0.05, grace_sec=0.2) as node:
        await node.spawn(Idle, count=2, pool="p")
        yield node


@pytest.fixture
async def brief_node(outages: Outages) -> AsyncIterator[Node]:
    """One that looks often at whether wake-ups arrive."""
    async with Node(store=OutageStore(outages), lease_sec=LEASE_SEC, poll_sec=0.05, grace_sec=0.2) as node:
        await node.spawn(Idle, count=2, pool="p")
        yield node


async def shown_within(seconds: int, condition: Callable[[], bool]) -> None:
    """Return once it holds. It counts the seconds in which the event loop runs: where a machine stands still, nobody
    is shown anything, and what is waited for begins anew.
    """
    passed = 0.0
    while passed < seconds:
        if condition():
            return
        began = anyio.current_time()
        await anyio.sleep(0.01)
        slept = anyio.current_time() - began
        passed = 0.0 if slept > 1.0 else passed + min(slept, 0.05)
    raise AssertionError(f"it did not show within {seconds} s")


def codes(health: Health) -> set[str]:
    """The codes of why it is not ready."""
    return {one.code for one in health.reasons}


async def test_a_node_is_ready_from_its_start_to_its_stop_and_live_until_its_end() -> None:
    node = Node(store="memory:")
    assert codes(node.health()) == {Code.STARTING}
    assert (node.health().is_live, node.health().is_ready) == (True, False)
    async with node:
        assert node.health() == Health(is_live=True, is_ready=True)
        await node.spawn(Idle, pool="p")
        await wait_until(lambda: node.health().is_ready)
        async with anyio.create_task_group() as group:
            group.start_soon(node.stop)
            await anyio.wait_all_tasks_blocked()
            assert codes(node.health()) == {Code.STOPPING}
            assert node.health().is_live
    assert codes(node.health()) == {Code.STOPPED}
    assert not node.health().is_live


async def test_a_store_that_refuses_everything_shows_within_three_seconds_and_so_does_its_return(
    node: Node, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    outages.is_away = True
    await shown_within(3, lambda: Code.STORE_AWAY in codes(node.health()))
    assert "the store is away" in next(one.text for one in node.health().reasons if one.code == Code.STORE_AWAY)
    assert node.health().is_live, "a restart would not help"
    outages.is_away = False
    await shown_within(3, lambda: node.health().is_ready)


async def test_a_store_that_never_answers_shows_within_three_seconds(
    node: Node, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    outages.is_silent = True
    late = {Code.STORE_AWAY, Code.RENEWAL_LATE, Code.LEASE_LOST}
    await shown_within(3, lambda: bool(codes(node.health()) & late))


async def test_a_lease_that_is_not_renewed_in_time_shows_before_it_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with Node(store="memory:", lease_sec=600.0) as node:
        lease = await node.handle.lease()
        lease.abandon()
        for left, late in ((0.9 - LATE + 0.05, set[str]()), (0.9 - LATE - 0.05, {Code.RENEWAL_LATE})):
            lease._deadline = node.env.monotonic() + 600.0 * left
            await wait_until(lambda late=late: codes(node.health()) == late)  # type: ignore[misc]  # bound now
        (late_one,) = node.health().reasons
        assert 20 < time.time() - late_one.since.timestamp() < 300, "it has been late for 30 s"
        lease._deadline = node.env.monotonic()
        await wait_until(lambda: node.handle.lease_opened is not lease and node.health().is_ready, timeout=20)


async def test_a_clock_that_is_ahead_is_told_since_it_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Node(store="memory:") as node:
        now, store = node.env.monotonic(), type(node.handle.store)

        def since(at: float) -> list[float]:
            return [one.since for one in node.vitals._ailments(at) if one.code == Code.CLOCK_AHEAD]

        monkeypatch.setattr(store, "clock_ahead_sec", 7.0)
        first = since(now)
        assert first and since(now + 60.0) == first
        monkeypatch.setattr(store, "clock_ahead_sec", 0.0)
        assert since(now + 61.0) == []
        monkeypatch.setattr(store, "clock_ahead_sec", 7.0)
        assert since(now + 62.0) == [now + 62.0]


async def test_a_lease_that_was_lost_shows_until_there_is_another(
    node: Node, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    lease = node.handle.lease_opened
    assert lease is not None
    outages.is_away = True
    lease._deadline = node.env.monotonic()
    with anyio.fail_after(20):
        await wait_until(lambda: node.handle.lease_opened is None)  # it is given up, and no other can be opened
        (lost,) = [reason for reason in node.health().reasons if reason.code == Code.LEASE_LOST]
        assert lost.text == "the lease was lost: renewals did not reach the store"
        outages.is_away = False
        await wait_until(lambda: node.health().is_ready)
    assert node.handle.lease_opened is not None


async def test_a_watch_that_the_store_refuses_shows_as_deaf(
    brief_node: Node, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    outages.is_deaf = True
    await wait_until(lambda: Code.WATCH_DEAF in codes(brief_node.health()), timeout=30)
    outages.is_deaf = False
    await wait_until(lambda: brief_node.health().is_ready, timeout=30)


async def test_wake_ups_that_are_lost_without_an_error_show_as_deaf(
    brief_node: Node, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    outages.is_mute = True
    await wait_until(lambda: Code.WATCH_DEAF in codes(brief_node.health()), timeout=30)
    outages.is_mute = False
    await wait_until(lambda: brief_node.health().is_ready, timeout=30)


async def test_a_blocked_loop_shows_to_another_thread_while_it_is_blocked_and_where_it_stands(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    go_on, seen = threading.Event(), list[Health]()
    worker = type("Blocking", (Blocking,), {"go_on": go_on})

    def look(node: Node) -> None:
        until = time.monotonic() + 15
        while time.monotonic() < until and not seen:
            health = node.health()
            # Another block, of a busy machine, may come before.
            if any(where in one.text for one in health.reasons for where in ("threading.py", "test_health.py")):
                seen.append(health)
            time.sleep(0.02)
        go_on.set()

    async with Node(store="memory:", stall_sec=60.0) as node:
        await node.spawn(worker, pool="p")
        thread = threading.Thread(target=look, args=(node,))
        thread.start()
        await node.tasks.result(await node.tasks.submit(Task(pool_id="p")), timeout=20)
        await anyio.to_thread.run_sync(thread.join)
        await wait_until(lambda: node.health().is_ready)
    (health,) = seen
    (reason,) = health.reasons
    assert reason.code == Code.LOOP_BLOCKED, "the store is not to blame"
    assert health.is_live, "not blocked for stall_sec yet"
    assert float(reason.text.split("blocked for ")[1].split(" s")[0]) >= BLOCKED_SEC


async def test_a_part_that_says_what_ails_it_makes_the_node_not_ready(node: Node) -> None:
    node.vitals.sources.append(lambda: [Ailment(Code.LOOP_FAILED, "agent x stands still", node.env.monotonic() - 60)])
    while codes(health := node.health()) != {Code.LOOP_FAILED}:  # noqa: ASYNC110 - a machine that stood still ails it, too
        await anyio.sleep(0.01)
    (reason,) = health.reasons
    assert (health.is_live, health.is_ready, reason.code, reason.text) == (
        True,
        False,
        "loop_failed",
        "agent x stands still",
    )
    assert reason.since.tzinfo is not None
    assert 55 < time.time() - reason.since.timestamp() < 65


async def test_one_outage_is_one_line_when_it_begins_and_one_when_it_is_over(
    node: Node, outages: Outages, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    outages.is_away = True
    lease = node.handle.lease_opened
    assert lease is not None
    lease._deadline = node.env.monotonic()
    with anyio.fail_after(15):
        await wait_until(lambda: node.handle.lease_opened is not lease, timeout=10)
        outages.is_away = False
        await wait_until(lambda: node.health().is_ready)
        # A call may succeed while others still wait for a longer pause: the log takes a brief success for no end.
        await wait_until(lambda: "the store works again, after " in caplog.text)
    texts = [record.getMessage() for record in caplog.records if record.name.startswith("converge")]
    assert len([text for text in texts if text.startswith("the store does not do what it is asked")]) == 1
    assert len([text for text in texts if text.startswith("the store works again, after ")]) == 1
    assert len([text for text in texts if "the store is away" in text]) <= 2, texts


async def test_a_block_is_logged_once_with_its_stack_while_it_lasts_and_once_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    go_on = threading.Event()
    worker = type("Blocking", (Blocking,), {"go_on": go_on})

    def of_handler() -> list[logging.LogRecord]:
        """A busy machine may keep the loop from running at another moment; that is another line."""
        blocks = [one for one in caplog.records if "has been blocked" in one.getMessage()]
        return [one for one in blocks if "in on_task" in one.__dict__["detail"]]

    def end() -> None:
        until = time.monotonic() + 5
        while time.monotonic() < until and not of_handler():
            time.sleep(0.02)
        time.sleep(2 * LEASE_SEC / 3)  # a second look, which must not be a second line
        go_on.set()

    async with Node(store="memory:", lease_sec=LEASE_SEC, stall_sec=60.0) as node:
        await node.spawn(worker, pool="p")
        while not of_handler():  # one that begins while a busy machine stands still is a part of that block
            go_on.clear()
            thread = threading.Thread(target=end)
            thread.start()
            await node.tasks.result(await node.tasks.submit(Task(pool_id="p")), timeout=20)
            await anyio.to_thread.run_sync(thread.join)
        await anyio.sleep(LEASE_SEC)  # a lease in which a line about wake-ups would have been logged
    (line,) = of_handler()
    assert "wake-ups do not arrive" not in caplog.text, "what came while it was blocked is heard afterwards"
    assert "the lease goes on" in line.getMessage()


async def test_a_file_that_another_program_keeps_locked_shows_within_three_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with Node(store=f"file:{tmp_path}/state.db", poll_sec=0.5, grace_sec=0.2) as node:
        await node.spawn(Idle, pool="p")
        await wait_until(lambda: node.health().is_ready)
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        try:
            other.execute("begin immediate")
            await shown_within(3, lambda: Code.STORE_AWAY in codes(node.health()))
            other.execute("rollback")
        finally:
            other.close()
        with anyio.fail_after(10):
            await wait_until(lambda: node.health().is_ready)


class Draining(Agent):
    """Completes its tasks."""

    async def on_task(self, task: Task) -> None:
        """See the class."""


async def test_a_process_is_at_no_moment_ready_before_its_agents_have_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes answer from when the node is entered, on a thread of their own."""
    seen: list[Health] = []
    started = Vitals.started

    def looked_at(self: Vitals, *parts: Any) -> None:
        started(self, *parts)
        seen.append(self.read())

    monkeypatch.setattr(Vitals, "started", looked_at)
    config = load(flags={"agent": f"{__name__}:Draining", "store": "memory:", "pool_id": "p"}, environ={})
    asked = Run(agents=[Draining], tasks=[Task(pool_id="p")], is_drain=True, may_create_pool=True)
    with anyio.fail_after(30):
        drained, code = await run(config, asked)
    assert drained is not None and code == 0
    assert [[reason.code for reason in one.reasons] for one in seen] == [["starting"]]


async def test_an_outage_is_told_since_its_first_sign() -> None:
    """A call that was not answered comes before the first error by as long as it is waited for."""
    async with Node(store="memory:") as node:
        outage, now = node.handle.outage, node.env.monotonic()

        def since() -> list[float]:
            return [one.since for one in node.vitals._ailments(now) if one.code == Code.STORE_AWAY]

        outage.since = now - 10
        assert since() == [now - 10]
        outage.since = now - 5
        assert since() == [now - 10]
        outage.since = None
        assert since() == []
        outage.since = now - 1
        assert since() == [now - 1]
        outage.since = None
