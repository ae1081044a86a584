"""Pings between nodes: the recipient's node says whether it would take a message; no handler gets one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converge import Agent, Message, Node
from converge.errors import Backpressure, Undeliverable
from converge.runtime.agents import inbox


class Quiet(Agent):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.got: list[object] = []

    async def on_message(self, message: Message) -> None:
        self.got.append(message.payload)


def node_at(path: Path, **settings: Any) -> Node:
    """Return a node on the store, not yet entered."""
    return Node(store=f"file:{path / 's.db'}", transport="tcp://127.0.0.1:0", poll_sec=0.1, grace_sec=0, **settings)


async def test_a_ping_reaches_the_node_and_no_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node_at(tmp_path) as one, node_at(tmp_path) as other:
        (agent,) = await other.spawn(Quiet)
        post, own = one.network.post, one.identity.id
        assert await post.ping(own, agent.id, 10) > 0
        assert await post.ping(own, other.identity.id, 10) > 0  # the node itself
        await one.send(agent.id, "after", ack="handled")
        assert agent.got == ["after"]
        with monkeypatch.context() as patched:
            patched.setattr(inbox.Inbox, "is_full", property(lambda self: True))
            with pytest.raises(Backpressure, match="its inbox is full"):
                await post.ping(own, agent.id, 10)
        link = one.network.links.open(other.identity.public_key) if one.network.links else None
        assert link is not None
        link.features = 1  # as of a release that knows chains of questions, and no pings
        with pytest.raises(Undeliverable, match="the release of its node answers no pings"):
            await post.ping(own, agent.id, 10)


async def test_a_ping_says_at_once_why_a_message_would_not_arrive(tmp_path: Path) -> None:
    async with node_at(tmp_path) as one, node_at(tmp_path, trust="drop") as strict:
        (agent,) = await strict.spawn(Quiet)
        with pytest.raises(Undeliverable, match="its sender is not trusted there"):
            await one.network.post.ping(one.identity.id, agent.id, 30)
