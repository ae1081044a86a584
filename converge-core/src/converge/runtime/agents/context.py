"""The context of running code, for logs: set around a handler, read only when something is logged."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar

from converge.ids import id_text
from converge.model.place import Found, Held
from converge.runtime.agents.hosted import Hosted
from converge.services.messages.chains import CHAIN

NODE: ContextVar[str] = ContextVar("converge_node", default="")
"""The id of the node whose code runs."""

AGENT: ContextVar[Hosted | None] = ContextVar("converge_agent", default=None)
"""The agent whose handler runs; a worker sets it once, not for each task."""

TASK: ContextVar[Found | None] = ContextVar("converge_task", default=None)
"""The task that the handler works on, as it was found: nothing is made for a line that nobody writes."""

MESSAGE: ContextVar[str] = ContextVar("converge_message", default="")
"""The id of the message that the handler was given."""

FIELDS = ("node", "agent", "pool", "task", "token", "message_id")
"""What a line can say of the work that it belongs to."""


def fields() -> Iterator[tuple[str, str | int]]:
    """Yield the log fields of the caller's work: agent, task, message."""
    agent, found, message = AGENT.get(), TASK.get(), MESSAGE.get()
    node = NODE.get() or (agent.node.identity.id if agent is not None else "")
    if node:
        yield "node", node
    if agent is not None:
        yield "agent", agent.id
    if found is not None:
        yield "pool", found.spec.pool
        yield "task", id_text(found.id)
        if type(found.place) is Held:
            yield "token", found.place.token
    if message:
        yield "message_id", message


def begin(agent: Hosted, message_id: str = "") -> None:
    """Say of what this task, of the event loop, logs from here on that it is this agent's, and about this message.

    A task begins with the context of whoever started it, which may be another agent's handler.
    """
    AGENT.set(agent)
    TASK.set(None)
    MESSAGE.set(message_id)
    CHAIN.set(())
