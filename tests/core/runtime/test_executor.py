"""The executor: each check refuses with its own error, and everything that an agent does is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import anyio
import anyio.from_thread
import pytest

from converge.errors import ActionNotAllowed, InvalidValue, NoSuchPool, ToolNotAllowed, ToolTimeout, TooManyActions
from converge.model.message import Message
from converge.model.pool import Pool
from converge.model.task import Task
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.decisions import (
    BroadcastMessage,
    CreatePool,
    InvokeTool,
    JoinPool,
    Limits,
    SubmitTask,
    Tool,
)
from converge.runtime.node import Node


async def add(a: int, b: int = 1) -> int:
    """An async tool."""
    return a + b


def thread_name() -> str:
    """A sync tool."""
    return threading.current_thread().name


async def hang() -> None:
    """A tool that never returns."""
    await anyio.sleep_forever()


class Able(Agent):
    """Has tools of each kind."""

    tools: ClassVar[Any] = {"add": add, "thread": thread_name, "hang": Tool(hang, timeout_sec=0.05)}

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        return message.payload


async def one(node: Node, cls: type[Agent] = Able, **attributes: Any) -> Agent:
    """An agent of a class with other attributes."""
    agent: Agent
    (agent,) = await node.spawn(type(cls.__name__, (cls,), attributes))
    return agent


async def test_everything_that_an_agent_does_is_counted_by_kind(store_url: str) -> None:
    async with Node(store=store_url) as node:
        agent, other = await node.spawn(Able, count=2)
        assert await agent.ask(other.id, "hello") == "hello"
        await agent.act(CreatePool(pool=Pool(id="p")))
        assert await agent.join("p") is True
        task_id = await agent.submit(Task(pool_id="p"))
        assert (await node.tasks.get(task_id)).pool_id == "p"
        assert await agent.tool("add", a=1, b=2) == 3
        assert await agent.leave("p") is True
        with pytest.raises(NoSuchPool):
            await agent.submit(Task(pool_id="q"))
        counts = {
            name: (tally.done, tally.refused, tally.failed) for name, tally in node.executor.counts(agent.id).items()
        }
        assert counts == {
            "send-message": (1, 0, 0),
            "create-pool": (1, 0, 0),
            "join-pool": (1, 0, 0),
            "submit-task": (1, 0, 1),
            "invoke-tool": (1, 0, 0),
            "leave-pool": (1, 0, 0),
        }
        assert node.executor.counts(other.id) == {}


@pytest.mark.parametrize(
    "act",
    [
        lambda agent: agent.send(agent.id, "x"),
        lambda agent: agent.ask(agent.id, "x"),
        lambda agent: agent.publish("t", "x"),
        lambda agent: agent.submit(Task(pool_id="p")),
        lambda agent: agent.join("p"),
        lambda agent: agent.leave("p"),
        lambda agent: agent.tool("add", a=1),
        lambda agent: agent.act(BroadcastMessage(pool_id="p", payload="x")),
        lambda agent: agent.act(CreatePool(pool=Pool(id="p"))),
    ],
)
async def test_no_way_to_act_leads_around_the_allowed_actions(act: Callable[[Agent], Any]) -> None:
    async with Node() as node:
        agent = await one(node, allowed_actions=())
        with pytest.raises(ActionNotAllowed, match=r"may not .*: allowed_actions has nothing"):
            await act(agent)
        assert sum(tally.refused for tally in node.executor.counts(agent.id).values()) == 1
        assert await node.pools.pools() == []


@pytest.mark.parametrize("allowed", [("invoke-tool",), (InvokeTool,)])
async def test_an_action_that_is_allowed_by_name_or_by_type_is_done_and_others_are_not(
    allowed: tuple[Any, ...],
) -> None:
    async with Node() as node:
        agent = await one(node, allowed_actions=allowed)
        assert await agent.tool("add", a=1) == 2
        with pytest.raises(ActionNotAllowed) as refused:
            await agent.submit(Task(pool_id="p"))
        assert (refused.value.agent, refused.value.action) == (agent.id, "submit-task")
        assert refused.value.allowed in (("invoke-tool",), ("InvokeTool",))


async def test_a_misspelt_allowed_action_is_told_at_the_start_with_the_nearest_name() -> None:
    async with Node() as node:
        with pytest.raises(
            InvalidValue, match=r"allowed_actions: 'submit-tasks' is not allowed; expected \"submit-task\""
        ):
            await one(node, allowed_actions=("submit-tasks",))
        assert node.agents == {}


async def test_a_tool_that_is_not_listed_is_not_called_and_the_nearest_is_named() -> None:
    async with Node() as node:
        agent = await one(node)
        with pytest.raises(ToolNotAllowed, match='may not call the tool "ad": did you mean "add"') as refused:
            await agent.tool("ad", a=1)
        assert (refused.value.nearest, refused.value.allowed) == ("add", ("add", "thread", "hang"))
        with pytest.raises(ToolNotAllowed, match="it has none"):
            await (await one(node, tools=())).tool("add", a=1)


async def test_the_methods_that_an_agent_names_are_its_tools() -> None:
    class Handy(Agent):
        tools = ("double",)

        def double(self, number: int) -> str:
            """A tool that knows its agent."""
            return f"{self.id[:3]} {2 * number}"

        def secret(self) -> None:
            """No tool."""

    async with Node() as node:
        (agent,) = await node.spawn(Handy)
        assert await agent.tool("double", number=3) == "cv1 6"
        with pytest.raises(ToolNotAllowed):
            await agent.tool("secret")


async def test_a_sync_tool_does_not_run_on_the_loop_s_thread() -> None:
    async with Node() as node:
        agent = await one(node)
        assert await agent.tool("thread") != threading.current_thread().name


async def test_a_tool_that_takes_too_long_is_cancelled_and_says_so() -> None:
    async with Node() as node:
        agent = await one(node)
        with (
            anyio.fail_after(30),
            pytest.raises(ToolTimeout, match=r'the tool "hang" did not return within 0\.05 s') as late,
        ):
            await agent.tool("hang")
        assert isinstance(late.value, TimeoutError)
        with anyio.fail_after(30), pytest.raises(ToolTimeout, match=r"within 0\.01 s"):
            await agent.act(InvokeTool(name="hang", timeout_sec=0.01))
        with anyio.fail_after(30), pytest.raises(ToolTimeout, match=r"within 0\.05 s"):
            await agent.act(InvokeTool(name="hang", timeout_sec=60))


async def test_a_sync_tool_that_never_returns_is_abandoned_in_time() -> None:
    gate = threading.Event()
    async with Node() as node:
        agent = await one(node, tools={"stuck": Tool(gate.wait, timeout_sec=0.05)})
        try:
            with anyio.fail_after(30), pytest.raises(ToolTimeout):
                await agent.tool("stuck")
        finally:
            gate.set()


async def test_arguments_that_a_tool_does_not_take_are_refused_before_it_is_called() -> None:
    async with Node() as node:
        agent = await one(node)
        with pytest.raises(
            InvalidValue, match=r"tool add: arguments: .* expected those of add\(a: 'int', b: 'int' = 1\)"
        ):
            await agent.tool("add", c=1)


async def test_what_a_tool_raises_is_raised_where_it_was_called() -> None:
    async def broken() -> None:
        raise KeyError("x")

    async with Node() as node:
        agent = await one(node, tools={"broken": broken})
        with pytest.raises(KeyError):
            await agent.tool("broken")
        assert node.executor.counts(agent.id)["invoke-tool"].failed == 1


async def test_one_action_too_many_under_way_is_refused_and_the_next_one_after_an_end_is_not() -> None:
    async with Node() as node:
        agent = await one(node, limits=Limits(in_flight=2), tools={"hang": hang, "add": add})
        async with anyio.create_task_group() as group:
            group.start_soon(agent.tool, "hang")
            group.start_soon(agent.tool, "hang")
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(TooManyActions, match="2 of its actions are in flight"):
                await agent.tool("add", a=1)
            group.cancel_scope.cancel()
        assert await agent.tool("add", a=1) == 2


async def test_an_agent_that_acts_faster_than_its_rate_is_refused_until_time_has_passed() -> None:
    class Clock:
        now = 1000.0

    async with Node() as node:
        agent = await one(node, limits=Limits(per_sec=2))
        monotonic = node.env.monotonic
        object.__setattr__(node.executor, "_env", type("Env", (), {"monotonic": lambda: Clock.now}))
        assert monotonic() > 0
        assert [await agent.tool("add", a=1), await agent.tool("add", a=1)] == [2, 2]
        with pytest.raises(TooManyActions, match="more than 2 times a second"):
            await agent.tool("add", a=1)
        Clock.now += 0.5
        assert await agent.tool("add", a=1) == 2


async def test_what_is_no_decision_is_refused() -> None:
    async with Node() as node:
        agent = await one(node)
        with pytest.raises(
            InvalidValue, match="decision: 'send' is not allowed; expected one of SendMessage, AskAgent"
        ):
            await agent.act("send")


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"allowed_actions": "send-message"}, r'expected a sequence of names: \("send-message",\)'),
        ({"tools": "add"}, r"expected a mapping, or a sequence of names"),
        ({"tools": ("no_such",)}, "expected the name of a method"),
        ({"tools": {"x": 3}}, "expected a function, or a Tool"),
        ({"limits": 3}, r"expected a Limits\(\.\.\.\)"),
        ({"breaker": 3}, r"expected a Breaker\(\.\.\.\)"),
    ],
)
async def test_an_agent_class_that_says_what_cannot_be_is_refused_at_the_start(
    attributes: dict[str, Any], text: str
) -> None:
    async with Node() as node:
        with pytest.raises(InvalidValue, match=text):
            await one(node, **attributes)


async def test_the_secret_of_a_pool_is_not_in_what_is_logged_of_a_decision() -> None:
    assert "tell" not in repr(JoinPool(pool_id="p", secret="tell")) + repr(CreatePool(pool=Pool(id="p"), secret="tell"))
    assert repr(SubmitTask(task=Task(pool_id="p"))).startswith("SubmitTask(")


@pytest.mark.parametrize("name", ["health", "id", "identity", "node", "pools"])
async def test_a_class_that_uses_a_name_which_its_node_sets_is_refused(name: str) -> None:
    async with Node() as node:
        with pytest.raises(InvalidValue, match=f"Able.{name}: .* expected another name: the node sets this one"):
            await one(node, type("Able", (Able,), {name: "mine"}))


async def test_a_plain_handler_acts_from_its_thread() -> None:
    class Plain(Agent):
        tools: ClassVar[Any] = {"add": add}

        def on_message(self, message: Message) -> Any:
            return anyio.from_thread.run(partial(self.tool, "add", a=message.payload))

    async with Node() as node:
        (agent,) = await node.spawn(Plain)
        assert await node.ask(agent.id, 3) == 4
