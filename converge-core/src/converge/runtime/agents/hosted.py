"""What a node keeps of an agent, in an object of the node's own.

The rule: the runtime reads nothing of an agent's own object, since its code may do anything to that: replace how its
attributes are looked up, clear them, change its class. What the node needs is read once, when the agent is made; later
on it asks only for handlers, and what is documented as the agent's to change, by `foreign.guarded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import attrs

from converge.foreign import guarded
from converge.machines.breaker import Breaker
from converge.machines.match import Claimer
from converge.model.identity import Identity
from converge.model.task import Task
from converge.runtime.agents.agent_health import AgentHealth
from converge.runtime.agents.decisions import Limits, ReportTask
from converge.services.messages.inboxes import LocalInbox

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Kind:
    """What the agents of one class have in common, as it was when they were made.

    Attributes:
        name: The name of the class, as others may read it.
        claimer: What they may claim; None: nothing.
        own: The handlers that the class has for itself.
    """

    name: str
    topics: tuple[str, ...]
    capabilities: tuple[str, ...]
    claimer: Claimer | None
    own: frozenset[str]
    is_virtual: bool
    takes_messages: bool
    concurrency: int
    inputs: type[Any] | None
    tick_sec: float | None
    allowed_actions: Sequence[str | type[Any]] | None
    limits: Limits
    breaker: Breaker


class AgentLoop(LocalInbox, Protocol):
    """The loop of an agent with `decide`, for those who give it messages, tasks and ticks."""

    def tick(self) -> bool: ...

    async def hold(self, task: Task) -> Any: ...

    def report(self, report: ReportTask) -> None: ...

    def answer(self, message_id: str, payload: Any) -> None: ...


@attrs.define(eq=False, kw_only=True)
class Hosted:
    """One agent of a node. `agent` is its own object; `node` the node that it is on; `loop` has one with `decide`;
    `is_retired`: it ends, or has ended, while its node goes on.
    """

    agent: Any
    kind: Kind
    identity: Identity
    id: str
    node: Any
    pools: tuple[str, ...]
    health: AgentHealth
    loop: AgentLoop | None = None
    is_retired: bool = False

    @property
    def concurrency(self) -> int:
        """Tasks that it works on at a time."""
        return self.kind.concurrency

    @property
    def topics(self) -> tuple[str, ...]:
        """What its class works on."""
        return self.kind.topics

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What its class can do."""
        return self.kind.capabilities

    def asked(self, name: str) -> Any:
        """Return an attribute of the agent's own object as it is now, or `Raised`."""
        return guarded(getattr, self.agent, name)


def host(agent: object, hosted: Hosted) -> None:
    """Let the agent's own object know what its node keeps of it, from now on: for the agent's own calls alone."""
    object.__setattr__(agent, "_hosted", hosted)


def hosted_of(agent: object) -> Hosted:
    """Return what its node keeps of the agent, past whatever its class does to look up attributes.

    Raises:
        AttributeError: No node has it yet, or it has cleared its `__dict__`.
    """
    return cast(Hosted, object.__getattribute__(agent, "_hosted"))


class OfNode(Generic[T]):
    """An attribute of an agent that belongs to its node: its code reads it, and cannot change it."""

    def __set_name__(self, _: type, name: str) -> None:
        self._name = name

    def __get__(self, agent: object, cls: type | None = None) -> T:
        if agent is None:
            raise AttributeError(f"{self._name} is an attribute of agents, not of their class")
        try:
            return cast(T, getattr(hosted_of(agent), self._name))
        except AttributeError:
            raise AttributeError(f"{self._name} is set by the node, after __init__ and before on_start") from None

    def __set__(self, agent: object, value: object) -> None:
        try:
            hosted_of(agent)
        except AttributeError:
            return  # in `__init__`: the node's own comes in its place
        raise AttributeError(f"{self._name} is set by the node; call the attribute of your own something else")

    def __delete__(self, agent: object) -> None:
        self.__set__(agent, None)
