"""What a plugin gives for decisions of its own: the decision's record, and the handler that carries it out."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs

from converge.contracts.store import Store


class DecisionContext(Protocol):
    """What the handler of a decision acts through: the agent whose decision it is.

    Attributes:
        agent_id: The agent's id.
        store: The node's store: `TaskManager(store)`, `PoolManager(store)` and `DiscoveryService(store=store)` share
            the node's lease.
        log: The agent's log.
    """

    @property
    def agent_id(self) -> str: ...

    @property
    def store(self) -> Store: ...

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]: ...

    async def execute(self, decision: object) -> Any:
        """Carry out another decision of the same agent, under the same checks; return its value.

        Raises:
            ConvergeError: It was refused, or failed.
        """
        ...


CORE_DECISIONS = ("send-message", "submit-task", "report-task", "join-pool", "leave-pool", "create-pool", "invoke-tool")
"""The names of core's own decisions, which no plugin may take."""


@attrs.frozen(kw_only=True)
class DecisionKind:
    """One kind of decision, as a plugin declares it.

    Attributes:
        name: What `allowed_actions`, counts and logs call it: lower case, a-z first, then a-z 0-9 -.
        type: The decision's record, an attrs class; a decision is of this kind if it is an instance of exactly this
            class.
        handler: Carries a decision out; what it returns is the outcome's value, what it raises its error. It runs in
            the agent's own task.
    """

    name: str
    type: type[Any]
    handler: Callable[[DecisionContext, Any], Awaitable[Any]]
