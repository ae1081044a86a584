"""The class that users subclass: what an agent can do, and its handlers for tasks and messages."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, Unpack

import msgspec

from converge.errors import InputError, InvalidValue, NoHandler
from converge.foreign import Raised, guarded, name_of
from converge.ids import check_name
from converge.machines.breaker import Breaker
from converge.machines.match import Claimer
from converge.model.identity import Identity
from converge.model.message import Fanout, Message, Receipt
from converge.model.task import Task
from converge.runtime.agents.agent_health import AgentHealth
from converge.runtime.agents.agent_log import log_of
from converge.runtime.agents.boundary import handler_of
from converge.runtime.agents.claimed import replaced_inputs
from converge.runtime.agents.decisions import (
    AskAgent,
    BroadcastMessage,
    InvokeTool,
    JoinPool,
    LeavePool,
    Limits,
    Outcome,
    PublishMessage,
    SendMessage,
    SubmitTask,
    Tool,
)
from converge.runtime.agents.hosted import Hosted, Kind, OfNode, hosted_of
from converge.services.durable.agents import ASKS
from converge.services.messages.options import SendArguments

if TYPE_CHECKING:  # below, but nothing that an agent's own module needs while it runs
    from converge.contracts.store import Store
    from converge.services.discovery.registry import IdentityRegistry
    from converge.services.discovery.service import DiscoveryService
    from converge.services.durable.agents import AgentRef
    from converge.services.durable.manager import TaskManager
    from converge.services.pools import PoolManager

A = TypeVar("A", bound="Agent")

OPTIONAL_HANDLERS = ("on_start", "on_stop", "on_tick", "on_outcomes")
"""Handlers that are not called of a class that has none for itself."""

HANDLERS = (*OPTIONAL_HANDLERS, "on_task", "on_message", "on_ask", "decide")
"""All handlers."""

RESERVED = ("health", "id", "identity", "node", "pools")
"""What a node sets on each of its agents; a class that has one of these for itself would lose it, and is refused."""

TICK_LEAST_SEC, TICK_GREATEST_SEC = 0.01, 86_400.0
"""Bounds of `tick_sec`: below the first an agent would do nothing but tick."""


class Executes(Protocol):
    """What carries out the actions of a node's agents."""

    async def execute(self, agent: Hosted, decision: object) -> Any: ...


class AgentNode(Protocol):
    """The node that an agent runs on, as the agent sees it. See `Node`."""

    @property
    def identity(self) -> Identity: ...

    @property
    def store(self) -> Store: ...

    @property
    def tasks(self) -> TaskManager: ...

    @property
    def pools(self) -> PoolManager: ...

    @property
    def discovery(self) -> DiscoveryService: ...

    @property
    def registry(self) -> IdentityRegistry: ...

    def agent(self, key: str, *, pool: str) -> AgentRef: ...

    @property
    def executor(self) -> Executes: ...

    async def spawn(
        self,
        agent: type[A],
        count: int = 1,
        pool: str | Sequence[str] | None = None,
        *,
        secret: str | None = None,
        identities: Sequence[Identity] | None = None,
    ) -> list[A]: ...

    async def send(
        self, to: str, payload: Any, *, sender: str | None = None, **options: Unpack[SendArguments]
    ) -> Receipt: ...

    async def ask(
        self, to: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None, task_id: str = ""
    ) -> Any: ...

    async def publish(
        self, topic: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None
    ) -> list[Fanout]: ...

    async def broadcast(
        self, pool_id: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None
    ) -> list[Fanout]: ...


class Agent:
    """One autonomous worker. Subclasses set class attributes, and write the handlers they want, async or plain.

    A plain (sync) handler runs in a worker thread. What `on_task` returns is the task's result, plain data; what it
    raises fails the attempt.

    Attributes:
        capabilities: What it can do; a task that requires others is not claimed for it.
        topics: What it works on; none: anything.
        task_types: The types of task that it knows; none: any.
        concurrency: Tasks that it works on at a time.
        inputs: An attrs or msgspec class: `task.inputs` is then an instance; a task whose inputs do not fit fails, with
            the path of the field.
        tick_sec: Seconds between calls of `on_tick` (or `decide`), plus or minus a tenth; None: there are no calls.
        allowed_actions: What it may do, by name or by decision (`"send-message"`, `SendMessage`, ...); None:
            everything, (): nothing.
        tools: What `self.tool` may call: a mapping of names to functions (or `Tool`, for another timeout than 30 s), or
            names of its own methods.
        limits: How much it may do.
        breaker: When it rests after failures, and for how long.
        id, node: Set before `on_start`. Like `identity`, `pools` and `health` they are the node's: a call of the agent
            that sets one fails.
        log: Its log; each line names the agent, and while a task runs that task, its pool and its token.
        pools: The pools that it is in.
        health: What is known of its failures.
    """

    capabilities: ClassVar[Sequence[str]] = ()
    topics: ClassVar[Sequence[str]] = ()
    task_types: ClassVar[Sequence[str]] = ()
    concurrency: ClassVar[int] = 1
    inputs: ClassVar[type[Any] | None] = None
    tick_sec: ClassVar[float | None] = None
    allowed_actions: ClassVar[Sequence[str | type[Any]] | None] = None
    tools: ClassVar[Mapping[str, Callable[..., Any] | Tool] | Sequence[str]] = ()
    limits: ClassVar[Limits] = Limits()
    breaker: ClassVar[Breaker] = Breaker()

    id = OfNode[str]()
    node = OfNode[AgentNode]()
    identity = OfNode[Identity]()
    pools = OfNode[tuple[str, ...]]()
    health = OfNode[AgentHealth]()

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """Its own log."""
        hosted = guarded(hosted_of, self)  # none yet in `__init__`
        return log_of(name_of(type(self)), "" if type(hosted) is Raised else hosted.id)

    async def on_start(self) -> None:
        """Prepare, once, before the first task or message; an exception stops the start."""

    async def on_stop(self) -> None:
        """Clean up, once, after the last task or message."""

    def on_task(self, task: Task) -> Any:
        """Work on a task and return its result; an agent without this handler claims none."""
        raise NoHandler(f"{type(self).__name__} claims no tasks: it has no on_task; add one to the class")

    def on_ask(self, state: Any, message: Any) -> Any:
        """Take a message to a virtual agent of the pool (`Node.agent`): return its new state and the answer, which are
        stored together. `state` is None for a new one. Messages of one agent come one at a time, in order.
        """
        raise NoHandler(f"{type(self).__name__} answers for no virtual agents: it has no on_ask; add one to the class")

    def on_message(self, message: Message) -> Any:
        """Handle a message; the return value answers an `ask`."""
        raise NoHandler(f"{type(self).__name__} takes no messages: it has no on_message; add one to the class")

    def on_tick(self) -> Any:
        """Do what is due each `tick_sec`; never called twice at a time."""
        raise NoHandler(
            f"{type(self).__name__} has nothing to do each `tick_sec`: it has no on_tick; add one to the class"
        )

    def decide(self, messages: list[Message], tasks: list[Task]) -> Any:
        """Decide on everything, in place of `on_task` and `on_message`; the decisions returned are carried out in turn.

        Called when a message or a task has come, and at each tick.

        Args:
            messages: What has come since the last call, at most 100 at a time.
            tasks: All tasks that the agent holds, in the order of their claims: each until a `ReportTask` ends it, or
                its timeout.
        """
        raise NoHandler(f"{type(self).__name__} makes no decisions: it has no decide; add one to the class")

    def on_outcomes(self, outcomes: list[Outcome]) -> Any:
        """Receive the outcomes of one `decide`, after its decisions were carried out."""

    async def act(self, decision: object) -> Any:
        """Carry out a decision of core's or of a plugin's; return its value. All the calls below do this.

        Raises:
            ActionError: It was refused: a leaf says why.
            Exception: As the action itself.
        """
        hosted = hosted_of(self)
        return await hosted.node.executor.execute(hosted, decision)

    async def send(self, to: str, payload: Any, **options: Unpack[SendArguments]) -> Receipt:
        """Send a message to another agent. See `Node.send`, which has the same options."""
        receipt: Receipt = await self.act(SendMessage(to=to, payload=payload, **options))
        return receipt

    async def ask(self, to: str, payload: Any, *, timeout: float = 10.0, task_id: str = "") -> Any:
        """Send a message and return what the recipient's `on_message` returned. See `Node.ask`."""
        return await self.act(AskAgent(to=to, payload=payload, timeout=timeout, task_id=task_id))

    async def publish(self, topic: str, payload: Any, *, timeout: float = 10.0) -> list[Fanout]:
        """Send a message to all other agents of a topic. See `Node.publish`."""
        outcomes: list[Fanout] = await self.act(PublishMessage(topic=topic, payload=payload, timeout=timeout))
        return outcomes

    async def broadcast(self, pool_id: str, payload: Any, *, timeout: float = 10.0) -> list[Fanout]:
        """Send a message to all other agents of a pool. See `Node.broadcast`."""
        outcomes: list[Fanout] = await self.act(BroadcastMessage(pool_id=pool_id, payload=payload, timeout=timeout))
        return outcomes

    async def submit(self, task: Task) -> str:
        """Submit a task; return its id. See `TaskManager.submit`."""
        return str(await self.act(SubmitTask(task=task)))

    async def join(self, pool_id: str, *, secret: str | None = None) -> bool:
        """Become a member of a pool, and claim its tasks from now on; return whether that is new. See `join_pool`."""
        return bool(await self.act(JoinPool(pool_id=pool_id, secret=secret)))

    async def leave(self, pool_id: str) -> bool:
        """Leave a pool, and stop claiming its tasks; running ones continue. Return whether the agent was a member."""
        return bool(await self.act(LeavePool(pool_id=pool_id)))

    async def tool(self, name: str, **arguments: Any) -> Any:
        """Call one of the agent's `tools`; return what it returned.

        Raises:
            ToolNotAllowed, ToolTimeout: It is not one of them, or took too long.
            InvalidValue: It does not accept these arguments.
            Exception: What it raised.
        """
        return await self.act(InvokeTool(name=name, arguments=arguments))


def check_agent_class(cls: type[Agent]) -> None:
    """Refuse a class that cannot be run whole.

    Raises:
        InvalidValue, InvalidName: One of its class attributes is not what it must be, or raises when it is looked up,
            or its handlers do not go together.
    """
    given: object = cls
    if not (isinstance(given, type) and issubclass(given, Agent)):
        raise InvalidValue("agent", cls, "a subclass of converge.Agent")
    checked = guarded(_check, cls)
    if type(checked) is Raised:
        if checked.is_a(InputError):
            raise checked.error
        what = f"a class that raises {checked.text}"
        raise InvalidValue(name_of(cls), cls, "attributes as converge.Agent has them", shown=what) from checked.error


def _check(cls: type[Agent]) -> None:
    own = cls.__name__
    for name in RESERVED:
        if any(name in vars(base) for base in cls.__mro__[: cls.__mro__.index(Agent)]):
            raise InvalidValue(f"{own}.{name}", getattr(cls, name), "another name: the node sets this one")
    for attribute in ("capabilities", "topics", "task_types"):
        for value in _listed(cls, attribute, "a sequence of names"):
            check_name(f"{own}.{attribute}", value)
    if type(cls.concurrency) is not int or not 1 <= cls.concurrency <= 1_000:
        raise InvalidValue(f"{own}.concurrency", cls.concurrency, "an integer from 1 to 1,000")
    for name in HANDLERS:
        handler = getattr(cls, name)
        if not callable(handler) and not hasattr(type(handler), "__get__"):  # a property gives one when it is asked
            expected = "a function: a class without this handler does not name it"
            raise InvalidValue(f"{own}.{name}", handler, expected)
    _check_loop(cls)
    _check_actions(cls)
    kind_of(cls)


def _listed(cls: type[Agent], attribute: str, expected: str) -> Collection[Any]:
    """Return a class attribute of several values, which are read more than once."""
    values = getattr(cls, attribute)
    if isinstance(values, str):
        raise InvalidValue(f"{cls.__name__}.{attribute}", values, f'{expected}: ("{values}",)')
    if not isinstance(values, Collection):
        raise InvalidValue(f"{cls.__name__}.{attribute}", values, expected)
    return values


def _check_loop(cls: type[Agent]) -> None:
    if decides(cls) and (cls.on_task is not Agent.on_task or cls.on_message is not Agent.on_message):
        raise InvalidValue(
            f"{cls.__name__}.decide",
            "decide beside on_task or on_message",
            "decide alone: it is the whole loop, and gets both",
        )
    if not decides(cls) and cls.on_outcomes is not Agent.on_outcomes:
        raise InvalidValue(f"{cls.__name__}.on_outcomes", "on_outcomes", "a decide whose outcomes they are")
    tick_sec = cls.tick_sec
    if tick_sec is None:
        if cls.on_tick is not Agent.on_tick:
            raise InvalidValue(f"{cls.__name__}.tick_sec", None, "seconds: it has an on_tick")
        return
    if type(tick_sec) not in (int, float) or not TICK_LEAST_SEC <= tick_sec <= TICK_GREATEST_SEC:
        raise InvalidValue(
            f"{cls.__name__}.tick_sec", tick_sec, f"seconds, from {TICK_LEAST_SEC:g} to {TICK_GREATEST_SEC:,.0f}"
        )
    if cls.on_tick is Agent.on_tick and not decides(cls):
        raise InvalidValue(f"{cls.__name__}.tick_sec", tick_sec, "None: it has neither on_tick nor decide")


def _check_actions(cls: type[Agent]) -> None:
    if cls.allowed_actions is not None:
        for one in _listed(cls, "allowed_actions", "a sequence of names"):
            if not isinstance(one, str | type):
                expected = "the name of an action, or a class of decisions"
                raise InvalidValue(f"{cls.__name__}.allowed_actions", one, expected)
    tools = _listed(cls, "tools", "a mapping, or a sequence of names")
    if isinstance(tools, Mapping):
        for name, tool in tools.items():
            if not callable(tool.function if isinstance(tool, Tool) else tool):
                raise InvalidValue(f"{cls.__name__}.tools[{name!r}]", tool, "a function, or a Tool")
    else:
        for name in tools:
            if not callable(getattr(cls, str(name), None)):
                raise InvalidValue(f"{cls.__name__}.tools", name, "the name of a method of the agent")
    for attribute, kind in (("limits", Limits), ("breaker", Breaker)):
        if not isinstance(getattr(cls, attribute), kind):
            raise InvalidValue(f"{cls.__name__}.{attribute}", getattr(cls, attribute), f"a {kind.__name__}(...)")


def decides(cls: type[Agent]) -> bool:
    """Return whether agents of this class have the whole loop."""
    return cls.decide is not Agent.decide


def claims_tasks(cls: type[Agent]) -> bool:
    """Return whether agents of this class claim tasks."""
    return cls.on_task is not Agent.on_task or decides(cls) or is_virtual(cls)


def is_virtual(cls: type[Agent]) -> bool:
    """Return whether agents of this class stand in for virtual agents."""
    return cls.on_ask is not Agent.on_ask


def takes_messages(cls: type[Agent]) -> bool:
    """Return whether agents of this class take messages."""
    return cls.on_message is not Agent.on_message or decides(cls)


def claimer_of(cls: type[Agent]) -> Claimer:
    """Return what agents of this class may claim."""
    types = [str(name) for name in cls.task_types]
    if is_virtual(cls) and (types or cls.on_task is Agent.on_task):
        types.append(ASKS)
    return Claimer.of(
        [*(str(name) for name in cls.capabilities), *([ASKS] if is_virtual(cls) else [])],
        [str(name) for name in cls.topics],
        types,
    )


def kind_of(cls: type[Agent]) -> Kind:
    """Return what a node keeps of a class that `check_agent_class` has passed."""
    return Kind(
        name=name_of(cls),
        topics=tuple(str(name) for name in cls.topics),
        capabilities=tuple(str(name) for name in cls.capabilities),
        claimer=claimer_of(cls) if claims_tasks(cls) else None,
        own=frozenset(name for name in OPTIONAL_HANDLERS if getattr(cls, name) is not getattr(Agent, name)),
        is_virtual=is_virtual(cls),
        takes_messages=takes_messages(cls),
        concurrency=cls.concurrency,
        inputs=cls.inputs,
        tick_sec=cls.tick_sec,
        allowed_actions=None if cls.allowed_actions is None else tuple(cls.allowed_actions),
        limits=cls.limits,
        breaker=cls.breaker,
    )


def task_handler(agent: Hosted) -> Callable[[Task], Any]:
    """Return what works on a task: `on_task`, with inputs of the class that it names, or what holds it for `decide`."""
    handler = handler_of(agent, "on_task") if agent.loop is None else agent.loop.hold
    inputs = agent.kind.inputs
    if inputs is None:
        return handler
    if not inspect.iscoroutinefunction(handler):
        return lambda task: handler(with_inputs(task, inputs))

    async def with_instance(task: Task) -> Any:
        return await handler(with_inputs(task, inputs))

    return with_instance


def with_inputs(task: Task, type_: type[Any]) -> Task:
    """Return the task with its inputs as an instance of the agent's `inputs` class.

    Raises:
        InputError: They do not fit; the path of the field.
    """
    try:
        inputs: Mapping[str, Any] = msgspec.convert(task.inputs, type_, strict=True)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        raise InputError(f"inputs{path.rstrip('`')}: {text}") from error  # without the value: the text goes into logs
    return replaced_inputs(task, inputs)
