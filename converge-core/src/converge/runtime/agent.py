"""What a user subclasses: an agent says what it can do, and what it does with a task or a message."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import attrs
import msgspec

from converge.errors import InvalidValue, Unsupported
from converge.ids import check_name
from converge.machines.match import Claimer
from converge.model.identity import Identity
from converge.model.message import Message, Receipt
from converge.model.task import Task

if TYPE_CHECKING:
    from converge.runtime.node import Node

LATER = ("on_tick", "decide")
"""Handlers that this release does not have; an agent that defines one is refused, not half run."""


class Agent:
    """One autonomous worker. Subclasses set what they need of the class attributes, and write the handlers they want, async or plain.

    A plain (sync) handler runs in a worker thread. What `on_task` returns is the task's result, plain data; what it raises fails the attempt.

    Attributes:
        capabilities: What it can do; a task that requires others is not claimed for it.
        topics: What it works on; none: anything.
        task_types: The types of task that it knows; none: any.
        concurrency: Tasks that it works on at a time.
        inputs: An attrs or msgspec class: `task.inputs` is then an instance; a task whose inputs do not fit fails, with the path of the field.
        id, log, node: Set before `on_start`.
    """

    capabilities: ClassVar[Sequence[str]] = ()
    topics: ClassVar[Sequence[str]] = ()
    task_types: ClassVar[Sequence[str]] = ()
    concurrency: ClassVar[int] = 1
    inputs: ClassVar[type[Any] | None] = None

    id: str
    log: logging.LoggerAdapter[logging.Logger]
    node: Node
    identity: Identity
    pools: tuple[str, ...]

    async def on_start(self) -> None:
        """Called once before the first task or message; what it raises stops the start."""

    async def on_stop(self) -> None:
        """Called once after the last task or message."""

    def on_task(self, task: Task) -> Any:
        """Work on a task and return its result; an agent without this handler claims none."""
        raise NotImplementedError(f"{type(self).__name__} claims no tasks: it has no on_task")

    def on_message(self, message: Message) -> Any:
        """Take a message; what it returns answers an `ask`."""
        raise NotImplementedError(f"{type(self).__name__} takes no messages: it has no on_message")

    async def send(
        self, to: str, payload: Any, *, ack: str | None = "accepted", timeout: float = 10.0, mailbox: bool = False, proof: str = "channel"
    ) -> Receipt:
        """Send a message to another agent by id. See `Node.send`."""
        return await self.node.send(to, payload, ack=ack, timeout=timeout, mailbox=mailbox, proof=proof, sender=self.id)

    async def ask(self, to: str, payload: Any, *, timeout: float = 10.0) -> Any:
        """Send a message and return what the recipient's `on_message` returned. See `Node.ask`."""
        return await self.node.ask(to, payload, timeout=timeout, sender=self.id)

    async def submit(self, task: Task) -> str:
        """Submit a task. See `TaskManager.submit`."""
        return await self.node.tasks.submit(task)


def check_agent_class(cls: type[Agent]) -> None:
    """Refuse a class that this release cannot run whole.

    Raises:
        InvalidValue, InvalidName: One of its class attributes is not what it must be.
        Unsupported: It defines a handler that this release does not have.
    """
    if not issubclass(cls, Agent):
        raise InvalidValue("agent", cls, "a subclass of converge.Agent")
    for name in LATER:
        if hasattr(cls, name):
            raise Unsupported(f"{cls.__name__}.{name}: this release has no such handler; use on_task and on_message")
    for attribute in ("capabilities", "topics", "task_types"):
        values = getattr(cls, attribute)
        if isinstance(values, str):
            raise InvalidValue(f"{cls.__name__}.{attribute}", values, f'a sequence of names: ("{values}",)')
        for value in values:
            check_name(f"{cls.__name__}.{attribute}", value)
    if type(cls.concurrency) is not int or not 1 <= cls.concurrency <= 1_000:
        raise InvalidValue(f"{cls.__name__}.concurrency", cls.concurrency, "an integer from 1 to 1,000")


def claims_tasks(cls: type[Agent]) -> bool:
    """Tell whether agents of this class claim tasks."""
    return cls.on_task is not Agent.on_task


def takes_messages(cls: type[Agent]) -> bool:
    """Tell whether agents of this class take messages."""
    return cls.on_message is not Agent.on_message


def claimer_of(cls: type[Agent]) -> Claimer:
    """Return what agents of this class may claim."""
    return Claimer.of([str(name) for name in cls.capabilities], [str(name) for name in cls.topics], [str(name) for name in cls.task_types])


def is_async(handler: Callable[..., Any]) -> bool:
    """Tell whether a handler is awaited, or runs in a worker thread."""
    return inspect.iscoroutinefunction(handler)


async def call_handler(handler: Callable[[], Any]) -> None:
    """Call `on_start` or `on_stop`: await it, or let a worker thread run it."""
    if is_async(handler):
        await handler()
    else:
        await anyio.to_thread.run_sync(handler, abandon_on_cancel=True)


def with_inputs(task: Task, type_: type[Any] | None) -> Task:
    """Return the task with its inputs as an instance of the agent's `inputs` class, if it has one.

    Raises:
        InvalidValue: They do not fit; the path of the field.
    """
    if type_ is None:
        return task
    try:
        inputs: Mapping[str, Any] = msgspec.convert(task.inputs, type_, strict=True)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$")
        raise InvalidValue(f"inputs{path.rstrip('`')}", task.inputs, text) from error
    return attrs.evolve(task, inputs=inputs)
