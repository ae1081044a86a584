"""Messages between agents, and the receipts that their senders get."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs


class Topic(str):
    """A topic, if a plain string would be ambiguous."""

    __slots__ = ()


class Capability(str):
    """A capability, if a plain string would be ambiguous."""

    __slots__ = ()


@attrs.frozen(kw_only=True)
class Message:
    """A message as its handler gets it. `sender` is verified: its descriptor names the node at the other end of the
    channel.

    Attributes:
        id: 16 random bytes in hex; a repeated message has the same.
        sender: The agent's id.
        recipient: The agent that it is for; while it is guarded before it is published or broadcast, empty.
        payload: Plain data: JSON types and bytes.
        task_id: The task that it is about, or empty.
        topic, pool_id: What it was published on, or where it was broadcast; both are empty if it was sent to the agent.
        sent_at: The store's time where it was sent, aware UTC.
        token: Of a message that was stored: it rises with each attempt to handle it, as a task's; 0 of any other.
    """

    id: str
    sender: str
    recipient: str
    payload: Any
    task_id: str = ""
    topic: str = ""
    pool_id: str = ""
    sent_at: datetime
    token: int = 0


@attrs.frozen(kw_only=True)
class Receipt:
    """How far a message got.

    Attributes:
        message_id: The message's id.
        recipient: The agent that it reached.
        level: `handed`: it was given to the connection or the inbox (`ack=None`); `accepted`: it is in the agent's
            inbox; `handled`: its handler has returned; `stored`: it is in the agent's mailbox.
        duration_sec: From `send` to the receipt.
    """

    message_id: str
    recipient: str
    level: str
    duration_sec: float


@attrs.frozen(kw_only=True)
class Fanout:
    """The outcome of a published or broadcast message at one node.

    Attributes:
        node: The node's id.
        accepted: Agents there in whose inboxes it is.
        refused: Agents there that did not get it: their inbox is full, or they take no messages.
        error: Empty, or why it is not known to have reached the node; then some agents there may have it.
    """

    node: str
    accepted: int = 0
    refused: int = 0
    error: str = ""
