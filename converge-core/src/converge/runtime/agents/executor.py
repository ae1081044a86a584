"""The executor: every action of an agent passes here, under the same checks, and is counted."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import anyio
import attrs
from anyio import CapacityLimiter

from converge.contracts.decisions import DecisionKind
from converge.contracts.store import Store
from converge.env import Env
from converge.errors import (
    ActionError,
    ActionNotAllowed,
    InvalidValue,
    PluginDuplicate,
    StaleClaim,
    ToolNotAllowed,
    ToolTimeout,
    TooManyActions,
)
from converge.foreign import awaited, tell, text_of
from converge.model.message import Fanout, Receipt
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.decisions import (
    AnswerMessage,
    AskAgent,
    BroadcastMessage,
    CreatePool,
    InvokeTool,
    JoinPool,
    LeavePool,
    Limits,
    PublishMessage,
    ReportTask,
    SendMessage,
    SubmitTask,
    Tool,
)
from converge.runtime.agents.hosted import Hosted
from converge.services.durable.manager import TaskManager
from converge.services.messages.fanout import Fanouts
from converge.services.messages.options import SendOptions
from converge.services.messages.sending import Post
from converge.services.pools import PoolManager
from converge.threads import called_in_own_thread

TOOL_THREADS = 40
"""Sync tools of one process that run at a time, as many as anyio's limit; more wait, before their timeouts begin."""


@attrs.define(kw_only=True)
class Tally:
    """How often one agent did one kind of action: carried out, refused by a check, or failed."""

    done: int = 0
    refused: int = 0
    failed: int = 0


class _Account:
    """What the executor keeps of one agent that has acted."""

    __slots__ = ("in_flight", "saved", "saved_at", "tallies")

    def __init__(self, limits: Limits, now: float) -> None:
        self.in_flight = 0
        self.saved = max(1.0, limits.per_sec or 0.0)
        self.saved_at = now
        self.tallies: dict[str, Tally] = {}

    def check(self, agent: Hosted, now: float) -> None:
        """Count the action as begun.

        Raises:
            TooManyActions: The agent's limits are reached.
        """
        limits = agent.kind.limits
        if self.in_flight >= limits.in_flight:
            raise TooManyActions(agent.id, f"{self.in_flight} of its actions are in flight, which is its limit")
        if limits.per_sec is not None:
            self.saved = min(max(1.0, limits.per_sec), self.saved + (now - self.saved_at) * limits.per_sec)
            self.saved_at = now
            if self.saved < 1:
                raise TooManyActions(agent.id, f"it acts more than {limits.per_sec:g} times a second")
            self.saved -= 1


class Members(Protocol):
    """What makes an agent a member of a pool, and ends that."""

    async def join(self, agent: Hosted, pool_id: str, secret: str | None) -> bool: ...

    async def leave(self, agent: Hosted, pool_id: str) -> bool: ...


@attrs.frozen(kw_only=True)
class Means:
    """What the actions of a node's agents are carried out with."""

    store: Store
    tasks: TaskManager
    pools: PoolManager
    members: Members
    post: Post
    fanouts: Fanouts


@attrs.frozen
class Acting:
    """The agent whose decision is carried out: the `DecisionContext` of handlers."""

    agent: Hosted
    executor: Executor

    @property
    def agent_id(self) -> str:
        """The agent's id."""
        return self.agent.id

    @property
    def store(self) -> Store:
        """The node's store."""
        return self.executor.means.store

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """The agent's log."""
        return agent_log(self.agent)

    async def execute(self, decision: object) -> Any:
        """Carry out another decision of the same agent. See `Executor.execute`."""
        return await self.executor.execute(self.agent, decision)


class Executor:
    """Carries out the actions of one node's agents. `plugins`: the kinds of decision that plugins declare."""

    def __init__(self, env: Env, means: Means, plugins: Iterable[DecisionKind] = ()) -> None:
        self._env, self.means = env, means
        self._kinds: dict[type[Any], DecisionKind] = {kind.type: kind for kind in CORE}
        for kind in plugins:
            if kind.type in self._kinds:
                text = f'the decision "{kind.name}" of a plugin is of the type {kind.type.__name__}'
                raise PluginDuplicate(f"{text}, which is core's; it needs a type of its own")
            self._kinds[kind.type] = kind
        self._accounts: dict[str, _Account] = {}
        self._threads = CapacityLimiter(TOOL_THREADS)

    def check_agent_class(self, cls: type[Agent]) -> None:
        """Refuse a class whose `allowed_actions` name unknown actions.

        Raises:
            InvalidValue: With the nearest name.
        """
        names = list(dict.fromkeys(kind.name for kind in self._kinds.values()))
        for one in cls.allowed_actions or ():
            if one in self._kinds or one in names:
                continue
            near = difflib.get_close_matches(str(one), names, n=1)
            raise InvalidValue(
                f"{cls.__name__}.allowed_actions", one, f'"{near[0]}"' if near else f"one of {', '.join(names)}"
            )

    def counts(self, agent_id: str) -> Mapping[str, Tally]:
        """Return what the agent has done so far, by the name of the action."""
        account = self._accounts.get(agent_id)
        return {} if account is None else account.tallies

    def forget(self, agent_id: str) -> None:
        """Keep nothing of an agent that has ended."""
        self._accounts.pop(agent_id, None)

    async def execute(self, agent: Hosted, decision: object) -> Any:
        """Carry out the agent's decision; return its result.

        Raises:
            ActionError: A check refused it, or a tool took too long.
            InvalidValue: It is no decision that core or a loaded plugin knows.
            Exception: As the action itself: see `Node.send`, `TaskManager.submit` and so on; what a tool or a plugin's
                handler raised.
        """
        kind = self._kinds.get(type(decision))
        if kind is None:
            raise InvalidValue(
                "decision",
                decision,
                f"one of {', '.join(known.__name__ for known in self._kinds)}; is its plugin loaded?",
            )
        account = self._accounts.get(agent.id)
        if account is None:
            account = self._accounts[agent.id] = _Account(agent.kind.limits, self._env.monotonic())
        tally = account.tallies.get(kind.name)
        if tally is None:
            tally = account.tallies[kind.name] = Tally()
        try:
            _check_allowed(agent, kind)
            account.check(agent, self._env.monotonic())
            account.in_flight += 1
            try:
                value = await kind.handler(Acting(agent, self), decision)
            finally:
                account.in_flight -= 1
        except ActionError as error:
            tally.refused += 1
            tell(agent_log(agent), logging.WARNING, "%s was refused: %s", kind.name, text_of(error))
            raise
        except BaseException:
            tally.failed += 1
            raise
        tally.done += 1
        return value

    async def call(self, tool: Tool, timeout_sec: float, name: str, arguments: Mapping[str, Any]) -> Any:
        """Call a tool; an async one in this task, another one in a worker thread.

        Raises:
            ToolTimeout: It took too long.
            InvalidValue: The arguments are not the tool's.
        """
        function = tool.function
        with suppress(ValueError):  # a builtin without a signature
            signature = inspect.signature(function)
            try:
                signature.bind(**arguments)
            except TypeError as error:
                raise InvalidValue(
                    f"tool {name}: arguments", dict(arguments), f"those of {name}{signature}: {error}"
                ) from error
        if inspect.iscoroutinefunction(function):
            with anyio.move_on_after(timeout_sec):
                return await awaited(partial(function, **arguments))
            raise ToolTimeout(name, timeout_sec)
        # The wait for a thread does not count, and a thread that is left behind keeps nobody else from one.
        async with self._threads:
            with anyio.move_on_after(timeout_sec):
                return await called_in_own_thread(partial(function, **arguments))
        raise ToolTimeout(name, timeout_sec)


def _check_allowed(agent: Hosted, kind: DecisionKind) -> None:
    allowed = agent.kind.allowed_actions
    if allowed is not None and kind.name not in allowed and kind.type not in allowed:
        raise ActionNotAllowed(agent.id, kind.name, [one if isinstance(one, str) else one.__name__ for one in allowed])


async def _send(acting: Acting, decision: SendMessage) -> Receipt:
    return await acting.executor.means.post.send(acting.agent.id, decision.to, decision.payload, decision)


async def _ask(acting: Acting, decision: AskAgent) -> Any:
    options = SendOptions(timeout=decision.timeout, task_id=decision.task_id)
    return await acting.executor.means.post.ask(acting.agent.id, decision.to, decision.payload, options)


async def _publish(acting: Acting, decision: PublishMessage) -> list[Fanout]:
    fanouts = acting.executor.means.fanouts
    return await fanouts.publish(acting.agent.id, decision.topic, decision.payload, decision.timeout)


async def _broadcast(acting: Acting, decision: BroadcastMessage) -> list[Fanout]:
    fanouts = acting.executor.means.fanouts
    return await fanouts.broadcast(acting.agent.id, decision.pool_id, decision.payload, decision.timeout)


async def _answer(acting: Acting, decision: AnswerMessage) -> None:
    loop, message_id = acting.agent.loop, decision.message_id
    if loop is None:
        raise InvalidValue("AnswerMessage.message_id", message_id, "no id: what on_message returns is its answer")
    loop.answer(message_id, decision.payload)


async def _submit(acting: Acting, decision: SubmitTask) -> str:
    return await acting.executor.means.tasks.submit(decision.task)


async def _report(acting: Acting, decision: ReportTask) -> None:
    loop = acting.agent.loop
    if loop is None:
        raise StaleClaim(
            decision.task_id,
            token=0,
            why="only an agent with decide reports its tasks; what on_task returns is the result",
        )
    loop.report(decision)


async def _join(acting: Acting, decision: JoinPool) -> bool:
    return await acting.executor.means.members.join(acting.agent, decision.pool_id, decision.secret)


async def _leave(acting: Acting, decision: LeavePool) -> bool:
    return await acting.executor.means.members.leave(acting.agent, decision.pool_id)


async def _create(acting: Acting, decision: CreatePool) -> bool:
    return await acting.executor.means.pools.create_pool(decision.pool, secret=decision.secret)


async def _invoke(acting: Acting, decision: InvokeTool) -> Any:
    tools = tools_of(acting.agent)
    tool = tools.get(decision.name)
    if tool is None:
        near = difflib.get_close_matches(decision.name, tools, n=1)
        raise ToolNotAllowed(acting.agent_id, decision.name, list(tools), nearest=near[0] if near else None)
    timeout_sec = tool.timeout_sec if decision.timeout_sec is None else min(tool.timeout_sec, decision.timeout_sec)
    return await acting.executor.call(tool, timeout_sec, decision.name, decision.arguments)


def tools_of(agent: Hosted) -> dict[str, Tool]:
    """Return the tools that the agent may call: a mapping's as they are; a name is a method of the agent."""
    own = agent.agent  # it is in a call of its own that it asks for a tool
    tools = own.tools
    if isinstance(tools, Mapping):
        return {name: tool if isinstance(tool, Tool) else Tool(tool) for name, tool in tools.items()}
    return {name: Tool(getattr(own, name)) for name in tools}


def _core(name: str, type_: type[Any], handler: Callable[[Any, Any], Awaitable[Any]]) -> DecisionKind:
    # They act through `Acting`, which has more than plugins are promised.
    return DecisionKind(name=name, type=type_, handler=handler)


CORE = (
    _core("send-message", SendMessage, _send),
    _core("send-message", AskAgent, _ask),
    _core("send-message", PublishMessage, _publish),
    _core("send-message", BroadcastMessage, _broadcast),
    _core("send-message", AnswerMessage, _answer),
    _core("submit-task", SubmitTask, _submit),
    _core("report-task", ReportTask, _report),
    _core("join-pool", JoinPool, _join),
    _core("leave-pool", LeavePool, _leave),
    _core("create-pool", CreatePool, _create),
    _core("invoke-tool", InvokeTool, _invoke),
)
"""The kinds of core's own decisions."""
