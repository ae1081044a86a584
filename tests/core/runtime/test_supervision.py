"""Supervision: an agent that fails is counted and shown, rests, and harms nobody else; an agent that works again gets
all its work back.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from converge.env import SYSTEM
from converge.errors import HandlerFailed, InvalidValue
from converge.machines.breaker import BACKOFF_GREATEST_SEC, Breaker, Circuit, CircuitState
from converge.machines.task import TaskState
from converge.model.message import Message
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.agent_health import AgentHealth
from converge.runtime.agents.ailments import Code
from converge.runtime.node import Node
from converge.services.pools import note_rest, rests_of
from converge.testing.fixtures import wait_until

QUICK = Breaker(on=(Exception,), failures=3, rest_sec=0.4, rest_greatest_sec=1.0)


class Moody(Agent):
    """Fails while it is told to."""

    breaker = QUICK
    is_ill = True
    worked_on: list[str]

    async def on_task(self, task: Task) -> str:
        """See the class."""
        if type(self).is_ill and not task.inputs.get("easy"):
            raise RuntimeError("ill")
        self.worked_on.append(task.id)
        return self.id


class Steady(Agent):
    """Never fails."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return self.id


@pytest.fixture
def moody() -> type[Moody]:
    """A class of agents of this test's own."""
    return type("Moody", (Moody,), {"is_ill": True, "worked_on": []})


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What these agents fail with is on purpose."""
    caplog.set_level(logging.CRITICAL, logger="converge.agent")


# The circuit by itself.


def test_two_failures_cost_no_rest_and_further_ones_cost_more_each_time_up_to_a_bound() -> None:
    circuit = Circuit(Breaker(on=(Exception,), failures=30))
    rests = []
    now = 0.0
    for _ in range(20):
        rests.append(circuit.failed("x", now, 0.5))
        now += rests[-1] + 1
    assert (
        rests[:2] == [0.0, 0.0]
        and rests[2:6] == pytest.approx([0.0375, 0.075, 0.15, 0.3])
        and max(rests) <= BACKOFF_GREATEST_SEC
    )
    assert (circuit.state(now), circuit.failures, circuit.in_a_row, circuit.last_error) == (
        CircuitState.CLOSED,
        20,
        20,
        "x",
    )


def test_the_breaker_opens_is_half_open_after_its_rest_and_closes_when_the_trial_succeeds() -> None:
    circuit = Circuit(QUICK)
    assert [circuit.failed("x", 0.0, 0.5) for _ in range(3)][-1] == pytest.approx(0.4)
    assert (circuit.state(0.3), circuit.state(0.5)) == (CircuitState.OPEN, CircuitState.HALF_OPEN)
    assert circuit.succeeded(0.5) is True
    assert (circuit.state(0.5), circuit.in_a_row, circuit.failures) == (CircuitState.CLOSED, 0, 3)
    assert circuit.failed("x", 0.6, 0.5) == 0.0


def test_each_trial_that_fails_doubles_the_rest_up_to_the_greatest() -> None:
    circuit, now, rests = Circuit(QUICK), 0.0, []
    for _ in range(2):
        circuit.failed("x", now, 0.5)
    for _ in range(4):
        rests.append(circuit.failed("x", now, 0.5))
        now += rests[-1]
    assert rests == pytest.approx([0.4, 0.8, 1.0, 1.0])


def test_what_was_under_way_when_the_breaker_opened_neither_closes_it_nor_makes_its_rest_longer() -> None:
    circuit = Circuit(QUICK)
    for _ in range(3):
        circuit.failed("x", 0.0, 0.5)
    assert circuit.failed("x", 0.1, 0.5) == pytest.approx(0.3)
    assert circuit.succeeded(0.2) is False
    assert (circuit.state(0.2), circuit.state(0.4)) == (CircuitState.OPEN, CircuitState.HALF_OPEN)


def test_a_rest_is_never_shorter_than_what_was_asked_for() -> None:
    circuit = Circuit(Breaker(on=(Exception,), failures=1, rest_sec=60.0))
    assert circuit.failed("x", 0.0, 0.5) == pytest.approx(60.0)
    assert circuit.failed("x", 61.0, 0.5) == pytest.approx(60.0)


def test_the_jitter_spreads_rests() -> None:
    assert [_open(0.0), _open(1.0)] == pytest.approx([0.3, 0.5])


def _open(jitter: float) -> float:
    circuit = Circuit(QUICK)
    return [circuit.failed("x", 0.0, jitter) for _ in range(3)][-1]


def test_an_agent_is_as_ill_as_the_handler_that_is_worst_off() -> None:
    health = AgentHealth("a", QUICK, SYSTEM)
    assert (health.state, health.failures, health.failures_in_a_row, health.last_error) == (
        CircuitState.CLOSED,
        0,
        0,
        "",
    )
    for handler, times in (("on_task", 3), ("on_message", 1)):
        circuit = health.circuits[handler] = Circuit(QUICK)
        for _ in range(times):
            circuit.failed(f"{handler} failed", SYSTEM.monotonic(), 0.5)
    assert (health.state, health.failures, health.failures_in_a_row, health.last_error) == (
        CircuitState.OPEN,
        4,
        3,
        "on_task failed",
    )
    assert health.rest_sec("on_task") > 0 and health.rest_sec("on_message") == health.rest_sec("on_tick") == 0


# Agents of a node.


async def submit(node: Node, count: int = 1, **fields: Any) -> list[str]:
    """Tasks that are tried again at once."""
    return await node.tasks.submit_many([Task(pool_id="p", retry_delay_sec=0.0, **fields) for _ in range(count)])


async def test_an_agent_whose_breaker_is_open_takes_nothing_and_the_others_of_its_group_do_its_work(
    store_url: str, moody: type[Moody]
) -> None:
    steady = type("Steady", (moody,), {"on_task": Steady.on_task})
    moody.breaker = Breaker(on=(Exception,), failures=3, rest_sec=30.0)
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            (ill,) = await node.spawn(moody, pool="p")
            bad = await submit(node, 3, max_attempts=1)
            for one in bad:
                assert (await node.tasks.result(one)).state == TaskState.FAILED
            assert (ill.health.state, ill.health.failures_in_a_row) == ("open", 3)
            waiting = await submit(node, 20)
            well: Agent
            (well,) = await node.spawn(steady, pool="p")
            assert len(node.feeds) == 1
            assert {(await node.tasks.result(one)).result for one in waiting} == {well.id}
            assert moody.worked_on == [] and ill.health.failures == 3
            assert node.supervision.troubled == [ill.health]
            await wait_until(lambda: node.health().is_ready)


async def test_after_its_rest_an_agent_gets_one_task_on_trial_and_then_all_its_slots(
    store_url: str, moody: type[Moody]
) -> None:
    moody.concurrency = 4
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            (agent,) = await node.spawn(moody, pool="p")
            bad = await submit(node, 4, max_attempts=1)
            for one in bad:
                await node.tasks.result(one)
            slots = node.feeds[0].slots
            free, state = slots.free, agent.health.state  # in this order: a rest may end at any moment
            assert (free, state) == (0, "open") or state == "half-open"
            await wait_until(lambda: slots.free == 1, what="one slot on trial")
            assert agent.health.state == "half-open"
            moody.is_ill = False
            good = await submit(node, 8)
            assert {(await node.tasks.result(one)).result for one in good} == {agent.id}
            await wait_until(lambda: slots.free == 4, what="all its slots")
            assert (agent.health.state, agent.health.failures_in_a_row, agent.health.failures) == ("closed", 0, 4)
            assert node.supervision.troubled == []


async def test_a_trial_that_fails_opens_the_breaker_again(moody: type[Moody], monkeypatch: pytest.MonkeyPatch) -> None:
    rests, failed = list[float](), Circuit.failed

    def noted(self: Circuit, *arguments: Any, **more: Any) -> float:
        rests.append(failed(self, *arguments, **more))
        return rests[-1]

    monkeypatch.setattr(Circuit, "failed", noted)
    with anyio.fail_after(30):
        async with Node(poll_sec=0.05) as node:
            (agent,) = await node.spawn(moody, pool="p")
            (bad,) = await submit(node, max_attempts=4)
            assert (await node.tasks.result(bad)).attempts == 4
            assert agent.health.state != "closed" and agent.health.failures_in_a_row == 4
            assert len(rests) == 4 and rests[3] > QUICK.rest_sec


async def test_tasks_that_were_claimed_for_an_agent_that_rests_go_back_uncounted(
    store_url: str, moody: type[Moody]
) -> None:
    moody.breaker = Breaker(on=(Exception,), failures=1, rest_sec=30.0)
    with anyio.fail_after(30):
        async with Node(store=store_url, poll_sec=0.05) as node:
            await node.spawn(moody, pool="p")
            (bad,) = await submit(node, max_attempts=1)
            others = await submit(node, 5)
            assert (await node.tasks.result(bad)).state == TaskState.FAILED
            await wait_until(lambda: node.feeds[0].in_hand == 0, what="everything is handed back")
            found = [await node.tasks.get(one) for one in others]
            assert {(task.state, task.attempts) for task in found} == {(TaskState.PENDING, 0)}


async def test_a_node_whose_agents_rest_keeps_no_wake_up_to_itself(tmp_path: Path, moody: type[Moody]) -> None:
    url = f"file:{tmp_path / 'state.db'}"
    moody.breaker = Breaker(on=(Exception,), failures=1, rest_sec=30.0)
    with anyio.fail_after(60):
        async with Node(store=url, poll_sec=5.0) as ill, Node(store=url, poll_sec=5.0) as well:
            await ill.spawn(moody, pool="p")
            (bad,) = await submit(ill, max_attempts=1)
            assert (await ill.tasks.result(bad)).state == TaskState.FAILED
            (steady,) = await well.spawn(Steady, pool="p")
            took = list[float]()
            for _ in range(7):
                began = anyio.current_time()
                (one,) = await submit(ill)
                assert (await ill.tasks.result(one)).result == steady.id
                took.append(anyio.current_time() - began)
            # By most of them, since a busy machine stands still now and then.
            assert sorted(took)[3] < 0.7, f"they waited for a poll, of the node or of the store: {took}"


@attrs.frozen
class Text:
    """What an agent wants to be given."""

    text: str


class Picky(Moody):
    """Has its inputs checked, by core."""

    is_ill = False
    inputs = Text


class Refusing(Moody):
    """Checks its inputs itself."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        raise InvalidValue("inputs.text", 3, "a text")


class Lost(Moody):
    """Submits to a pool that is not there."""

    async def on_task(self, task: Task) -> str:
        """See the class."""
        return await self.submit(Task(pool_id="no-such-pool"))


@pytest.mark.parametrize(("kind", "failures"), [(Picky, 0), (Refusing, 0), (Lost, 5)])
async def test_only_what_the_handler_was_given_is_not_its_fault(kind: type[Agent], failures: int) -> None:
    with anyio.fail_after(30):
        async with Node() as node:
            agent: Agent
            (agent,) = await node.spawn(
                type(kind.__name__, (kind,), {"breaker": Breaker(on=(Exception,), failures=100)}), pool="p"
            )
            for bad in await submit(node, 5, max_attempts=1):
                assert (await node.tasks.result(bad)).state == TaskState.FAILED
            assert (agent.health.failures, agent.health.state) == (failures, "closed")


async def test_a_handler_that_runs_into_its_timeout_has_failed() -> None:
    class Slow(Moody):
        breaker = Breaker(on=(Exception,), failures=3, rest_sec=30.0)

        async def on_task(self, task: Task) -> str:
            await anyio.sleep_forever()
            return ""

    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(Slow, pool="p")
            for bad in await submit(node, 3, max_attempts=1, timeout_sec=0.02):
                assert (await node.tasks.result(bad)).state == TaskState.FAILED
            assert (agent.health.last_error, agent.health.state) == ("timed out after 0.02 s", "open")


async def test_a_cancelled_task_is_no_failure_of_its_agent() -> None:
    class Waiting(Moody):
        began = False

        async def on_task(self, task: Task) -> str:
            type(self).began = True
            await anyio.sleep_forever()
            return ""

    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(Waiting, pool="p")
            (one,) = await submit(node)
            await wait_until(lambda: Waiting.began)
            await node.tasks.cancel(one)
            await wait_until(lambda: node.feeds[0].slots.busy == 0, what="the handler is cancelled")
            assert agent.health.failures == 0


class Exiting(Agent):
    """Ends the program, or tries to."""

    async def on_task(self, task: Task) -> None:
        """See the class."""
        sys.exit("enough")


class ExitingSync(Agent):
    """The same from a thread."""

    def on_task(self, task: Task) -> None:
        """See the class."""
        sys.exit("enough")


@pytest.mark.parametrize("exiting", [Exiting, ExitingSync])
async def test_a_handler_that_exits_ends_its_attempt_and_not_the_node(exiting: type[Agent]) -> None:
    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(exiting, pool="p")
            (one,) = await submit(node, max_attempts=1)
            task = await node.tasks.result(one)
            assert (task.state, task.error, agent.health.failures) == (TaskState.FAILED, "SystemExit: enough", 1)


async def test_messages_wait_while_the_handler_of_messages_rests_and_tasks_do_not() -> None:
    class Hurt(Agent):
        breaker = Breaker(on=(Exception,), failures=1, rest_sec=60.0)

        async def on_message(self, message: Message) -> Any:
            if message.payload == "hurt":
                raise RuntimeError("it hurts")
            return message.payload

        async def on_task(self, task: Task) -> str:
            return "done"

    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(Hurt, pool="p")
            with pytest.raises(HandlerFailed):
                await node.ask(agent.id, "hurt")
            (one,) = await submit(node)
            assert (await node.tasks.result(one)).result == "done" and agent.health.state == "open"
            agent.health.circuits["on_message"].rests_until = until = node.env.monotonic() + 0.4
            assert await node.ask(agent.id, "fine") == "fine"
            assert node.env.monotonic() >= until and agent.health.state == "closed"


async def test_what_nobody_expected_of_a_slot_makes_its_node_not_ready_and_stops_nothing(
    moody: type[Moody], monkeypatch: pytest.MonkeyPatch
) -> None:
    moody.is_ill = False
    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(moody, pool="p")
            await node.spawn(type("Other", (Steady,), {}), pool="q")
            slots = next(feed for feed in node.feeds if feed.slots.slots[0].agent.agent is agent).slots
            with monkeypatch.context() as patched:
                patched.setattr(slots, "_limit", None)  # our own mistake, whatever it is
                (bad,) = await submit(node, max_attempts=1, timeout_sec=9)
                assert "TypeError" in (await node.tasks.result(bad)).error
            (reason,) = node.health().reasons
            assert reason.code == Code.LOOP_FAILED and "_keep" in reason.text
            (same,) = await submit(node, max_attempts=1)
            assert (await node.tasks.result(same)).state == TaskState.COMPLETED
            good = await node.tasks.submit(Task(pool_id="q"))
            assert (await node.tasks.result(good)).state == TaskState.COMPLETED


# What an agent rests for.


async def test_failures_that_the_breaker_does_not_name_cost_no_rest(moody: type[Moody]) -> None:
    moody.breaker = Breaker()
    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(moody, pool="p")
            for one in await submit(node, 30, max_attempts=1):
                assert (await node.tasks.result(one)).state == TaskState.FAILED
            assert (agent.health.failures, agent.health.failures_in_a_row, agent.health.state) == (30, 30, "closed")
            assert agent.health.rest_sec("on_task") == 0 and node.health().notes == ()


async def test_a_rest_shows_in_the_notes_of_a_node_that_is_ready(moody: type[Moody]) -> None:
    moody.breaker = Breaker(on=(RuntimeError,), failures=1, rest_sec=30.0)
    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(moody, pool="p")
            (bad,) = await submit(node, max_attempts=1)
            await node.tasks.result(bad)
            await wait_until(lambda: node.health().is_ready)
            health = node.health()
            (note,) = health.notes
            assert (note.code, health.reasons) == (Code.AGENT_RESTS, ())
            assert note.text.startswith(f"agent {agent.id}: on_task rests for ") and note.text.endswith("ill")


def test_only_errors_that_the_breaker_names_count_towards_it() -> None:
    circuit = Circuit(QUICK)
    for _ in range(10):
        assert circuit.failed("data", 0.0, 0.5, is_ill=False) == 0.0
    assert circuit.failed("ill", 0.0, 0.5) == 0.0 and circuit.state(0.0) == CircuitState.CLOSED
    circuit.failed("ill", 0.0, 0.5)
    circuit.failed("data", 0.0, 0.5, is_ill=False)
    assert circuit.failed("ill", 0.0, 0.5) > 0 and circuit.state(0.0) == CircuitState.OPEN


def test_a_breaker_is_on_errors_of_its_classes_alone_or_in_a_group() -> None:
    breaker = Breaker(on=(ConnectionError,))
    assert breaker.is_on(ConnectionResetError()) and breaker.is_on(
        ExceptionGroup("", [ValueError(), ConnectionError()])
    )
    assert not breaker.is_on(ValueError()) and not Breaker().is_on(ConnectionError())


@pytest.mark.parametrize("on", [ConnectionError, (3,), [ConnectionError]])
def test_a_breaker_refuses_what_is_no_tuple_of_classes_of_errors(on: Any) -> None:
    with pytest.raises(InvalidValue, match="a tuple of classes of errors"):
        Breaker(on=on)


async def test_a_rest_shows_in_the_listings_of_other_processes_until_the_agent_works_again(
    store_url: str, moody: type[Moody]
) -> None:
    moody.breaker = Breaker(on=(RuntimeError,), failures=1, rest_sec=0.6, rest_greatest_sec=0.6)
    with anyio.fail_after(60):
        async with Node(store=store_url, poll_sec=0.05) as node:
            (agent,) = await node.spawn(moody, pool="p")
            lease = (await node.handle.lease()).id.hex()

            async def until() -> int:
                return (await rests_of(node.store, [(agent.id, lease, agent.pools)])).get(agent.id, 0)

            async def shown(*, is_rest: bool) -> int:
                while bool(found := await until()) is not is_rest:  # noqa: ASYNC110 - the store tells nobody of it
                    await anyio.sleep(0.01)
                return found

            assert await until() == 0
            rests_until = 0
            while not rests_until:  # a rest may be over before a busy machine looks
                (bad,) = await submit(node, max_attempts=1)
                await node.tasks.result(bad)
                with anyio.move_on_after(0.6):
                    rests_until = await shown(is_rest=True)
            assert rests_until <= await node.store.time() + 750_000
            moody.is_ill = False
            (good,) = await submit(node)
            assert (await node.tasks.result(good)).result == agent.id
            await shown(is_rest=False)
            await node.pools.leave_pool(agent.id, "p")
            await note_rest(node.handle, agent.id, agent.pools, rests_until)
            assert await until() == 0, "a rest makes no member of an agent that has left"
