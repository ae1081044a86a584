"""Messages between agents, and the receipts that their senders get."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs


class Topic(str):
    """A topic, where a plain string could mean something else."""

    __slots__ = ()


class Capability(str):
    """A capability, where a plain string could mean something else."""

    __slots__ = ()


@attrs.frozen(kw_only=True)
class Message:
    """What a handler gets. `sender` is verified: its descriptor names the node at the other end of the channel.

    Attributes:
        id: 16 random bytes in hex; a repeated message has the same.
        sender: The agent's id.
        recipient: The agent that it is for.
        payload: Plain data: JSON types and bytes.
        task_id: The task that it is about, or empty.
        sent_at: The sender's clock, aware UTC.
    """

    id: str
    sender: str
    recipient: str
    payload: Any
    task_id: str = ""
    sent_at: datetime


@attrs.frozen(kw_only=True)
class Receipt:
    """Says how far a message got.

    Attributes:
        message_id: The message's id.
        recipient: The agent that it reached.
        level: `accepted`: it is in the agent's inbox; `handled`: its handler has returned.
        duration_sec: From `send` to the receipt.
    """

    message_id: str
    recipient: str
    level: str
    duration_sec: float
