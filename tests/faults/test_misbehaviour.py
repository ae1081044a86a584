"""Every kind of call of user code crossed with every kind of misbehaviour, each followed by good calls of the same
agent: the call ends, nothing else does.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import anyio
import attrs
import misbehaviour as bad
import pytest

from converge import Agent, Message, Node, Task
from converge.contracts.decisions import DecisionContext, DecisionKind
from converge.errors import ConvergeError, HandlerFailed
from converge.hookspecs import hookimpl
from converge.runtime.agents.decisions import AnswerMessage, InvokeTool, Limits
from converge.services.durable.agents import ASKS
from converge.testing.fixtures import wait_until

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of forks beside threads, from Python 3.12 on
]

GOOD = "good"
KINDS: Mapping[str, Callable[[], Any]] = {**bad.PLAIN, **bad.ASYNC}
CELL_SEC = 10.0

HARMLESS = ("a fork that returns", "a fork that exits", "a fork that awaits", "a thread left running", "blocking")
"""What succeeds: of a fork, that its child has ended as it should."""

LOOPS = ["asyncio", "uvloop", "trio"] if os.environ.get("FULL_TESTS") == "1" else ["uvloop", "trio"]
"""uvloop is what a process has by default where it is installed."""

TIMED_OUT_AFTER = (
    "its own cancellation, not awaited",
    "its own cancellation, awaited",
    "a scope left open",
    "an async generator broken out of",
)
"""What is followed by a task that runs into its timeout, too: half a second each, until the watchdog looks."""


@pytest.fixture(scope="module", params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loops."""
    if request.param == "trio":
        return "trio", {}
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Thousands of stacks help nobody."""
    caplog.set_level(logging.CRITICAL)
    yield
    bad.RELEASED.set()


async def act(kind: str) -> Any:
    """Misbehave in this way, or do well."""
    if kind == GOOD:
        return await bad.behaves()
    did = KINDS[kind]()
    return await did if inspect.isawaitable(did) else did


def act_plain(kind: str) -> Any:
    """Misbehave in this way, in a thread or where nothing is awaited."""
    assert bad.VARIABLE.get() == "untouched", bad.VARIABLE.get()
    return GOOD if kind == GOOD else bad.PLAIN[kind]()


class Behaving(Agent):
    """Has tools that do as they are told."""

    limits = Limits(decisions=1_000)
    tools = ("asks", "computes")

    async def asks(self, kind: str) -> Any:
        """See the class."""
        return await act(kind)

    def computes(self, kind: str) -> Any:
        """See the class."""
        return act_plain(kind)


@attrs.frozen
class Misbehave:
    """A decision of a plugin."""

    kind: str


@attrs.frozen
class Picky:
    """A class of inputs."""

    kind: str

    def __attrs_post_init__(self) -> None:
        act_plain(self.kind)


class Result(dict[str, Any]):
    """A result that does as it was told when it is stored."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind=kind)
        self._kind = kind

    def items(self) -> Any:
        """See the class."""
        act_plain(self._kind)
        return super().items()


class OnTask(Behaving):
    """Works on tasks."""

    async def on_task(self, task: Task) -> Any:
        """See the class."""
        kind, by = task.inputs["kind"], task.inputs["by"]
        if by in self.tools:
            return await self.tool(by, kind=kind)
        if by == "decision":
            return await self.act(Misbehave(kind=kind))
        if by == "step":
            return await task.step("misbehave", act, kind)
        if by == "plain step":
            return await task.step("misbehave", act_plain, kind)
        if by == "result":
            return Result(kind) if kind != GOOD else kind
        if by == "timeout":
            await anyio.sleep(60)
        return await act(kind)


class OnTaskPlain(Behaving):
    """Works on tasks in a thread."""

    def on_task(self, task: Task) -> Any:
        """See the class."""
        kind = task.inputs["kind"]
        return task.blocking.step("misbehave", act_plain, kind) if task.inputs.get("by") == "step" else act_plain(kind)


class WithInputs(Behaving):
    """Has its inputs made."""

    inputs = Picky

    async def on_task(self, task: Task) -> Any:
        """See the class."""
        return await bad.behaves()


class OnAsk(Behaving):
    """Stands in for virtual agents."""

    async def on_ask(self, state: Any, message: Any) -> Any:
        """See the class."""
        return (state or 0) + 1, await act(message)


class OnAskPlain(Behaving):
    """Stands in for virtual agents, in a thread."""

    def on_ask(self, state: Any, message: Any) -> Any:
        """See the class."""
        return (state or 0) + 1, act_plain(message)


class OnMessage(Behaving):
    """Takes messages."""

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        return await act(message.payload)


class OnMessagePlain(Behaving):
    """Takes messages in a thread."""

    def on_message(self, message: Message) -> Any:
        """See the class."""
        return act_plain(message.payload)


class OnTick(Behaving):
    """Does one thing at each tick."""

    tick_sec = 0.01

    async def on_start(self) -> None:
        """See the class."""
        self.todo: list[str] = []
        self.done: list[Any] = []

    async def on_tick(self) -> None:
        """See the class."""
        if self.todo:
            kind = self.todo.pop(0)
            try:
                self.done.append(await act(kind))
            except BaseException:
                self.done.append("failed")
                raise


class Decides(Behaving):
    """Answers each message with what a decision made of it."""

    async def decide(self, messages: list[Message], tasks: list[Task]) -> Any:
        """See the class."""
        decisions: list[Any] = []
        for one in messages:
            by, kind = one.payload
            if by == "decide":
                await act(kind)
            decisions += [Misbehave(kind=kind)] if by == "decision" else []
            decisions += [InvokeTool(name=by, arguments={"kind": kind})] if by in self.tools else []
            decisions.append(AnswerMessage(message_id=one.id, payload=GOOD))
        return decisions

    async def on_outcomes(self, outcomes: list[Any]) -> None:
        """See the class."""
        if any(one.is_ok and one.value == "outcomes" for one in outcomes):
            raise bad.Unshowable


class Watcher:
    """A plugin: a kind of decision, and hooks that misbehave when told."""

    @hookimpl
    def converge_decisions(self) -> list[DecisionKind]:
        """See the hook."""

        async def handle(_: DecisionContext, decision: Misbehave) -> Any:
            return await act(decision.kind)

        return [DecisionKind(name="misbehave", type=Misbehave, handler=handle)]

    @hookimpl
    def converge_task_claimed(self, task: Task) -> None:
        """See the hook."""
        if task.inputs.get("by") == "observer":
            act_plain(task.inputs["kind"])

    @hookimpl
    def converge_message_received(self, message: Message) -> None:
        """See the hook."""
        if isinstance(message.payload, list) and message.payload[0] == "guard":
            act_plain(message.payload[1])


@pytest.fixture(scope="module")
def plugin() -> Iterator[str]:
    """The plugin's import path."""
    module = ModuleType("misbehaving_plugin")
    module.watcher = Watcher()  # type: ignore[attr-defined]  # a module made for the test
    sys.modules[module.__name__] = module
    yield "misbehaving_plugin:watcher"
    del sys.modules[module.__name__]


@pytest.fixture
async def node(plugin: str) -> AsyncIterator[Node]:
    """A node that is well before and after."""
    async with Node(plugins=[plugin], grace_sec=1.0) as node:
        yield node
        await wait_until(lambda: node.health().is_ready, what="the node is ready")
        assert not node.parts.boundary.background.failures


async def task(node: Node, agent: Agent, **inputs: Any) -> Task:
    """Return the agent's one attempt, ended."""
    timeout = 0.02 if inputs.get("by") == "timeout" else None
    one = Task(pool_id=agent.pools[0], inputs=inputs, max_attempts=1, timeout_sec=timeout)
    with anyio.fail_after(CELL_SEC):
        return await node.tasks.result(await node.tasks.submit(one))


@pytest.mark.parametrize("by", ["on_task", "asks", "computes", "decision", "step", "plain step", "result", "observer"])
async def test_a_task(node: Node, by: str) -> None:
    (agent,) = await node.spawn(OnTask, pool="p")
    for kind in KINDS if by in ("on_task", "asks", "decision", "step") else bad.PLAIN:
        ended = await task(node, agent, kind=kind, by=by)
        assert by != "observer" or ended.state in ("COMPLETED", "FAILED")
        assert kind not in HARMLESS or by == "result" or ended.state == "COMPLETED", f"{kind}: {ended.error}"
        if by == "on_task" and kind in TIMED_OUT_AFTER:
            late = await task(node, agent, kind=GOOD, by="timeout")
            assert (late.state, late.error[:9]) == ("FAILED", "timed out"), kind
        good = await task(node, agent, kind=GOOD, by="on_task")
        assert (good.state, good.result) == ("COMPLETED", GOOD), f"{kind}: {good.error}"


@pytest.mark.parametrize(("cls", "by"), [(OnTaskPlain, "on_task"), (OnTaskPlain, "step"), (WithInputs, "inputs")])
async def test_a_task_whose_code_awaits_nothing(node: Node, cls: type[Agent], by: str) -> None:
    (agent,) = await node.spawn(cls, pool="p")
    for kind in bad.PLAIN:
        ended = await task(node, agent, kind=kind, by=by)
        assert kind not in HARMLESS or ended.state == "COMPLETED", f"{kind}: {ended.error}"
        good = await task(node, agent, kind=GOOD, by=by)
        assert (good.state, good.result) == ("COMPLETED", GOOD), f"{kind}: {good.error}"


@pytest.mark.parametrize("cls", [OnAsk, OnAskPlain])
async def test_a_message_to_a_virtual_agent(node: Node, cls: type[Agent]) -> None:
    await node.spawn(cls, pool="p")
    refs = node.agent("k", pool="p")
    for count, kind in enumerate(KINDS if cls is OnAsk else bad.PLAIN):
        one = Task(
            pool_id="p",
            type=ASKS,
            required_capabilities=(ASKS,),
            ordering_key=f"bad {count}",
            inputs={"payload": kind},
            max_attempts=1,
        )
        with anyio.fail_after(CELL_SEC):
            ended = await node.tasks.result(await node.tasks.submit(one))
            assert kind not in HARMLESS or ended.state == "COMPLETED", f"{kind}: {ended.error}"
            assert await refs.ask(GOOD) == GOOD, kind


async def ask(node: Node, agent: Agent, payload: Any) -> Any:
    """Return the answer, or why there is none."""
    try:
        return await node.ask(agent.id, payload, timeout=CELL_SEC)
    except HandlerFailed as error:
        return error


@pytest.mark.parametrize("cls", [OnMessage, OnMessagePlain])
async def test_a_message(node: Node, cls: type[Agent]) -> None:
    (agent,) = await node.spawn(cls)
    for kind in KINDS if cls is OnMessage else bad.PLAIN:
        await ask(node, agent, kind)
        assert await ask(node, agent, GOOD) == GOOD, kind


async def test_a_guard(node: Node) -> None:
    (agent,) = await node.spawn(OnMessage)
    for kind in bad.PLAIN:
        try:
            await ask(node, agent, ["guard", kind])
        except ConvergeError as error:
            assert "guard" in str(error), kind
        assert await ask(node, agent, GOOD) == GOOD, kind


async def test_a_tick(node: Node) -> None:
    (agent,) = await node.spawn(OnTick)
    for kind in KINDS:
        agent.done.clear()
        agent.todo += [kind, GOOD]
        with anyio.fail_after(CELL_SEC):
            await wait_until(lambda: len(agent.done) == 2, what=kind)
        assert agent.done[1] == GOOD, kind


@pytest.mark.parametrize("by", ["decide", "asks", "computes", "decision"])
async def test_a_decision(node: Node, by: str) -> None:
    (agent,) = await node.spawn(Decides)
    for kind in bad.PLAIN if by == "computes" else KINDS:
        await ask(node, agent, [by, kind])
        assert await ask(node, agent, ["decide", GOOD]) == GOOD, kind


@pytest.mark.parametrize("is_plain", [False, True])
async def test_a_start(node: Node, is_plain: bool) -> None:
    class Starting(Behaving):
        kind = ""

        async def on_start(self) -> None:
            await act(self.kind)

        async def on_message(self, message: Message) -> Any:
            return await bad.behaves()

    class StartingPlain(Starting):
        def on_start(self) -> None:  # type: ignore[override]
            act_plain(self.kind)

    for kind in bad.PLAIN if is_plain else KINDS:
        cls = type("Started", (StartingPlain if is_plain else Starting,), {"kind": kind})
        agent: Agent
        try:
            (agent,) = await node.spawn(cls)
        except Exception as error:
            assert error is not None  # whatever it is, it can be caught
        else:
            assert await ask(node, agent, GOOD) == GOOD, kind


async def test_a_stop_ends_whatever_each_agent_does(plugin: str) -> None:
    said: list[str] = []

    class Stopping(Behaving):
        kind = ""

        async def on_stop(self) -> None:
            said.append(self.kind)
            await act(self.kind)

    class StoppingPlain(Stopping):
        def on_stop(self) -> None:  # type: ignore[override]
            said.append(self.kind)
            act_plain(self.kind)

    with anyio.fail_after(30):
        async with Node(plugins=[plugin], grace_sec=5.0) as node:
            for kind in KINDS:
                await node.spawn(type("Stopped", (Stopping,), {"kind": kind}))
            for kind in bad.PLAIN:
                await node.spawn(type("Stopped", (StoppingPlain,), {"kind": kind}))
    assert sorted(said) == sorted([*KINDS, *bad.PLAIN])
