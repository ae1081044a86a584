"""Agents with the whole loop: what `decide` is given, what becomes of what it returns, and of what it raises."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from converge.errors import Backpressure, HandlerFailed, InvalidValue, NoRetry, StaleClaim, TooManyDecisions
from converge.machines.breaker import Breaker
from converge.machines.task import TaskState
from converge.model.message import Message
from converge.model.pool import Pool
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.decide import INBOX
from converge.runtime.agents.decisions import (
    AnswerMessage,
    CreatePool,
    InvokeTool,
    JoinPool,
    LeavePool,
    Limits,
    Outcome,
    ReportTask,
    SendMessage,
    SubmitTask,
)
from converge.runtime.agents.hosted import hosted_of
from converge.runtime.node import Node
from converge.testing.fixtures import wait_until

Decide = Callable[["Deciding", list[Message], list[Task]], Any]


class Deciding(Agent):
    """Does what the test says, and remembers what it was given and told."""

    rule: Decide

    async def on_start(self) -> None:
        """See the class."""
        self.calls: list[tuple[list[Any], list[str]]] = []
        self.outcomes: list[Outcome] = []

    async def decide(self, messages: list[Message], tasks: list[Task]) -> Any:
        """See the class."""
        self.calls.append(([message.payload for message in messages], [task.id for task in tasks]))
        return type(self).rule(self, messages, tasks)

    async def on_outcomes(self, outcomes: list[Outcome]) -> None:
        """See the class."""
        self.outcomes += outcomes


async def one(node: Node, rule: Decide, pool: str | None = "p", **attributes: Any) -> Deciding:
    """A deciding agent with this rule."""
    agent: Agent
    (agent,) = await node.spawn(type("Deciding", (Deciding,), {"rule": staticmethod(rule), **attributes}), pool=pool)
    assert isinstance(agent, Deciding)
    return agent


def nothing(agent: Deciding, messages: list[Message], tasks: list[Task]) -> None:
    """A rule that decides on nothing."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What these agents fail with is on purpose."""
    caplog.set_level(logging.CRITICAL, logger="converge.agent")


async def test_a_task_is_held_until_it_is_reported_and_its_result_is_what_was_reported(store_url: str) -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        return [ReportTask(task_id=task.id, result={"said": message.payload}) for message in messages for task in tasks]

    with anyio.fail_after(20):
        async with Node(store=store_url) as node:
            agent = await one(node, rule)
            task_id = await node.tasks.submit(Task(pool_id="p"))
            await wait_until(lambda: agent.calls == [([], [task_id])])
            assert (await node.tasks.get(task_id)).state == TaskState.ASSIGNED
            await node.send(agent.id, "now")
            assert (await node.tasks.result(task_id)).result == {"said": "now"}
            assert agent.calls == [([], [task_id]), (["now"], [task_id])]
            await wait_until(lambda: [outcome.is_ok for outcome in agent.outcomes] == [True])


@pytest.mark.parametrize(
    ("report", "state", "attempts"),
    [
        ({"error": "no", "is_retried": False}, TaskState.FAILED, 1),
        ({"error": "no"}, TaskState.FAILED, 2),
        ({"is_released": True}, TaskState.COMPLETED, 1),
    ],
)
async def test_a_task_can_be_reported_as_failed_or_handed_back_uncounted(
    report: dict[str, Any], state: TaskState, attempts: int
) -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        is_again = report.get("is_released") and len(agent.calls) > 1
        return [ReportTask(task_id=task.id, **({} if is_again else report)) for task in tasks]

    with anyio.fail_after(20):
        async with Node(poll_sec=0.05) as node:
            await one(node, rule)
            task = await node.tasks.result(
                await node.tasks.submit(Task(pool_id="p", max_attempts=2, retry_delay_sec=0.0))
            )
            assert (task.state, task.attempts) == (state, attempts)
            assert task.error[:2] == ("no" if state == TaskState.FAILED else "")


async def test_an_agent_holds_as_many_tasks_as_its_concurrency_and_sees_all_of_them_in_each_call() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        return [ReportTask(task_id=task.id, result=len(tasks)) for task in tasks] if messages else []

    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, rule, concurrency=3)
            ids = await node.tasks.submit_many([Task(pool_id="p") for _ in range(5)])
            await wait_until(lambda: len(agent.calls[-1][1] if agent.calls else []) == 3)
            await node.send(agent.id, "go")
            assert [(await node.tasks.result(task_id)).result for task_id in ids[:3]] == [3, 3, 3]
            await wait_until(lambda: agent.calls[-1] == ([], ids[3:]))
            await node.send(agent.id, "go")
            assert [(await node.tasks.result(task_id)).result for task_id in ids[3:]] == [2, 2]


async def test_messages_that_come_while_decide_runs_are_given_together_and_in_order() -> None:
    gate = anyio.Event()

    class Slow(Deciding):
        async def decide(self, messages: list[Message], tasks: list[Task]) -> Any:
            await super().decide(messages, tasks)
            await gate.wait()

    with anyio.fail_after(20):
        async with Node() as node:
            agent: Any
            (agent,) = await node.spawn(type("Slow", (Slow,), {"rule": staticmethod(nothing)}))
            assert isinstance(agent, Slow)
            for number in range(150):
                await node.send(agent.id, number)
                await wait_until(lambda: bool(agent.calls))
            gate.set()
            await wait_until(lambda: sum(len(call[0]) for call in agent.calls) == 150)
            assert [payload for call in agent.calls for payload in call[0]] == list(range(150))
            assert [len(call[0]) for call in agent.calls] == [1, 100, 49]


async def test_an_ask_is_answered_by_a_decision_of_the_call_that_was_given_it_or_with_nothing() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[AnswerMessage]:
        return [
            AnswerMessage(message_id=message.id, payload=message.payload * 2) for message in messages if message.payload
        ]

    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, rule, pool=None)
            assert await node.ask(agent.id, 21) == 42
            assert await node.ask(agent.id, 0) is None


async def test_an_answer_to_what_this_call_was_not_given_is_refused() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, lambda agent, messages, tasks: [AnswerMessage(message_id="ab" * 16, payload=1)])
            await node.send(agent.id, "x")
            await wait_until(lambda: bool(agent.outcomes))
            assert isinstance(agent.outcomes[0].error, InvalidValue)


async def test_core_s_decisions_are_carried_out_in_order_and_each_outcome_is_told() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[Any]:
        if not messages or messages[0].payload != "go":
            return [ReportTask(task_id=task.id) for task in tasks]
        return [
            CreatePool(pool=Pool(id="q")),
            SubmitTask(task=Task(pool_id="q")),
            JoinPool(pool_id="q"),
            LeavePool(pool_id="q"),
            SendMessage(to=agent.id, payload="to myself"),
            InvokeTool(name="double", arguments={"number": 4}),
            SubmitTask(task=Task(pool_id="no-such-pool")),
            InvokeTool(name="double", arguments={"number": 5}),
        ]

    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, rule, pool=None, tools={"double": lambda number: number * 2})
            await node.send(agent.id, "go")
            await wait_until(lambda: len(agent.outcomes) >= 8)
            assert [outcome.is_ok for outcome in agent.outcomes[:8]] == [True] * 6 + [False, True]
            created, task_id, joined, left, receipt, doubled, refused, again = [
                outcome.value for outcome in agent.outcomes[:8]
            ]
            assert (created, joined, left, doubled, refused, again) == (True, True, True, 8, None, 10)
            assert (await node.tasks.get(task_id)).pool_id == "q" and receipt.recipient == agent.id
            assert type(agent.outcomes[6].error).__name__ == "NoSuchPool"
            await wait_until(lambda: any(payloads == ["to myself"] for payloads, _ in agent.calls))


async def test_decisions_beyond_the_limit_are_not_carried_out_and_say_so() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            await node.pools.create_pool(Pool(id="q"))
            rule: Decide = lambda agent, messages, tasks: [SubmitTask(task=Task(pool_id="q")) for _ in range(5)]  # noqa: E731
            agent = await one(node, rule, limits=Limits(decisions=3))
            await node.send(agent.id, "go")
            await wait_until(lambda: len(agent.outcomes) == 5)
            assert [outcome.is_ok for outcome in agent.outcomes] == [True, True, True, False, False]
            error = agent.outcomes[-1].error
            assert isinstance(error, TooManyDecisions) and (error.count, error.limit) == (5, 3)
            assert len(await node.tasks.list(pool_id="q")) == 3


async def test_what_is_no_decision_fails_by_itself() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(
                node, lambda agent, messages, tasks: ["fly", InvokeTool(name="one")], tools={"one": lambda: 1}
            )
            await node.send(agent.id, "go")
            await wait_until(lambda: len(agent.outcomes) == 2)
            assert isinstance(agent.outcomes[0].error, InvalidValue) and agent.outcomes[1].value == 1


async def test_a_report_of_a_task_that_the_agent_does_not_hold_is_a_stale_claim() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        return [ReportTask(task_id=task.id) for task in [*tasks, *tasks]]

    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, rule)
            task_id = await node.tasks.submit(Task(pool_id="p"))
            assert (await node.tasks.result(task_id)).state == TaskState.COMPLETED
            await wait_until(lambda: len(agent.outcomes) == 2)
            assert isinstance(agent.outcomes[1].error, StaleClaim)


async def test_a_task_that_is_not_reported_within_its_timeout_goes_back_and_is_seen_no_more() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, nothing)
            task = await node.tasks.result(await node.tasks.submit(Task(pool_id="p", timeout_sec=0.1, max_attempts=1)))
            assert (task.state, task.error, agent.health.failures) == (TaskState.FAILED, "timed out after 0.1 s", 0)
            await node.send(agent.id, "look")
            await wait_until(lambda: agent.calls[-1] == (["look"], []))


async def test_tasks_that_are_held_when_the_node_stops_go_back_uncounted(store_url: str) -> None:
    with anyio.fail_after(20):
        async with Node(store=store_url, grace_sec=0.1) as node:
            agent = await one(node, nothing)
            task_id = await node.tasks.submit(Task(pool_id="p"))
            await wait_until(lambda: bool(agent.calls))
            store, tasks = node.store, node.tasks
            await node.stop()
            task = await tasks.get(task_id)
            assert (task.state, task.attempts) == (TaskState.PENDING, 0) and store is node.store


async def test_an_exception_fails_the_tasks_and_messages_of_that_call_and_the_agent_goes_on() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        if any(message.payload == "bad" for message in messages) or any(task.inputs.get("bad") for task in tasks):
            raise RuntimeError("bad")
        return [ReportTask(task_id=task.id) for task in tasks if not task.inputs.get("kept")]

    with anyio.fail_after(20):
        async with Node(grace_sec=0.1) as node:
            agent = await one(node, rule, concurrency=2)
            kept = await node.tasks.submit(Task(pool_id="p", inputs={"kept": True}))
            await wait_until(lambda: bool(agent.calls))
            bad = await node.tasks.submit(Task(pool_id="p", inputs={"bad": True}, max_attempts=1))
            assert (await node.tasks.result(bad)).error == "RuntimeError: bad"
            with pytest.raises(HandlerFailed, match="RuntimeError: bad"):
                await node.ask(agent.id, "bad")
            assert (agent.health.failures, agent.health.failures_in_a_row) == (2, 2)
            assert (await node.tasks.get(kept)).state == TaskState.ASSIGNED, "what it held before is not lost"
            good = await node.tasks.submit(Task(pool_id="p"))
            assert (await node.tasks.result(good)).state == TaskState.COMPLETED
            assert agent.health.failures_in_a_row == 0


async def test_when_the_breaker_opens_what_the_agent_holds_fails_and_it_claims_nothing() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> None:
        if messages:
            raise RuntimeError("bad")

    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, rule, breaker=Breaker(on=(Exception,), failures=2, rest_sec=30.0))
            held = await node.tasks.submit(Task(pool_id="p", max_attempts=1))
            await wait_until(lambda: bool(agent.calls))
            for _ in range(2):
                with pytest.raises(HandlerFailed):
                    await node.ask(agent.id, "x")
            assert (await node.tasks.result(held)).state == TaskState.FAILED
            assert agent.health.state == "open"
            waiting = await node.tasks.submit(Task(pool_id="p"))
            await wait_until(lambda: node.feeds[0].slots.free == 0 and node.feeds[0].in_hand == 0)
            assert (await node.tasks.get(waiting)).state == TaskState.PENDING


async def test_tasks_that_decide_refuses_one_after_another_leave_what_it_holds_alone() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        if any(task.inputs.get("bad") for task in tasks):
            raise NoRetry("bad data")
        return [ReportTask(task_id=task.id, result="kept") for task in tasks] if messages else []

    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, rule, breaker=Breaker(failures=2), concurrency=2)
            held = await node.tasks.submit(Task(pool_id="p", max_attempts=1))
            await wait_until(lambda: bool(agent.calls))
            for _ in range(4):
                bad = await node.tasks.submit(Task(pool_id="p", inputs={"bad": True}))
                assert (await node.tasks.result(bad)).error == "bad data"
            await node.send(agent.id, "report")
            assert (await node.tasks.result(held)).result == "kept"


async def test_a_sync_decide_runs_in_a_thread() -> None:
    class Plain(Agent):
        def decide(self, messages: list[Message], tasks: list[Task]) -> list[Any]:
            name = threading.current_thread().name
            return [AnswerMessage(message_id=message.id, payload=name) for message in messages]

    with anyio.fail_after(20):
        async with Node() as node:
            (agent,) = await node.spawn(Plain)
            assert await node.ask(agent.id, "where") != threading.current_thread().name


async def test_decide_is_called_at_each_tick_though_nothing_has_come() -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, nothing, tick_sec=0.02)
            await wait_until(lambda: len(agent.calls) >= 3)
            assert set(map(str, agent.calls)) == {"([], [])"}


async def test_a_full_inbox_answers_with_backpressure() -> None:
    gate = anyio.Event()

    class Stuck(Agent):
        async def decide(self, messages: list[Message], tasks: list[Task]) -> None:
            await gate.wait()

    with anyio.fail_after(30):
        async with Node() as node:
            (agent,) = await node.spawn(Stuck)
            with pytest.raises(Backpressure):
                for _ in range(INBOX + 200):
                    await node.send(agent.id, "x")
            gate.set()


@pytest.mark.parametrize("returned", ["a string", 3, {"a": 1}])
async def test_a_decide_that_returns_no_list_has_failed(returned: object) -> None:
    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, lambda agent, messages, tasks: returned)
            with pytest.raises(HandlerFailed, match="expected a list of decisions"):
                await node.ask(agent.id, "x")
            assert agent.health.failures == 1


@pytest.mark.parametrize("name", ["on_task", "on_message"])
async def test_decide_beside_another_handler_of_tasks_or_messages_is_refused(name: str) -> None:
    async with Node() as node:
        with pytest.raises(InvalidValue, match="expected decide alone: it is the whole loop"):
            await one(node, nothing, None, **{name: nothing})


async def test_outcomes_without_decide_are_refused() -> None:
    class Odd(Agent):
        async def on_outcomes(self, outcomes: list[Outcome]) -> None:
            """Never called."""

    async with Node() as node:
        with pytest.raises(InvalidValue, match="expected a decide whose outcomes they are"):
            await node.spawn(Odd)


async def test_a_result_that_cannot_be_stored_is_told_to_the_agent_and_ends_the_task() -> None:
    def rule(agent: Deciding, messages: list[Message], tasks: list[Task]) -> list[ReportTask]:
        return [ReportTask(task_id=task.id, result=result) for task in tasks for result in (object(), "plain")]

    with anyio.fail_after(20):
        async with Node() as node:
            agent = await one(node, rule)
            ended = await node.tasks.result(await node.tasks.submit(Task(pool_id="p")))
            assert (ended.state, ended.attempts) == (TaskState.FAILED, 1)
            await wait_until(lambda: [outcome.is_ok for outcome in agent.outcomes] == [False, False])
            assert [type(outcome.error) for outcome in agent.outcomes] == [InvalidValue, StaleClaim]


async def test_sync_handlers_that_never_return_keep_no_other_agent_from_its_thread() -> None:
    gate = threading.Event()

    class Stuck(Agent):
        def on_message(self, message: Message) -> None:
            gate.wait()

    class Quick(Agent):
        def on_message(self, message: Message) -> Any:
            return message.payload

    with anyio.fail_after(20):
        async with Node(grace_sec=0.1) as node:
            try:
                for agent in await node.spawn(Stuck, count=60):
                    await node.send(agent.id, "x")
                (quick,) = await node.spawn(Quick)
                assert await node.ask(quick.id, "hello") == "hello"
            finally:
                gate.set()


async def test_the_tasks_that_an_agent_holds_fail_when_its_own_loop_does_and_the_loop_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Holding(Agent):
        concurrency = 2

        def decide(self, messages: list[Message], tasks: list[Task]) -> None:
            """Hold them."""

    async def broken() -> None:
        raise RuntimeError("nothing expected this")

    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(20):
        async with Node(poll_sec=0.05, grace_sec=0.1) as node:
            (agent,) = await node.spawn(Holding, pool="p")
            ids = await node.tasks.submit_many([Task(pool_id="p", max_attempts=1) for _ in range(2)])
            await wait_until(lambda: sum(feed.in_hand for feed in node.feeds) == 2, what="it holds two")
            loop = hosted_of(agent).loop
            assert loop is not None
            with monkeypatch.context() as patched:
                patched.setattr(loop, "_call", broken)
                loop.tick()
                for one in ids:
                    assert "nothing expected this" in (await node.tasks.result(one, timeout=10)).error
                assert [reason.code for reason in node.health().reasons] == ["loop_failed"]
            await node.tasks.submit(Task(pool_id="p"))
            await wait_until(lambda: sum(feed.in_hand for feed in node.feeds) == 1, what="it takes the next one")
