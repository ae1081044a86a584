"""What a send of this release cannot do is refused by name, before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from converge import Agent, Capability, Message, Node
from converge.errors import InvalidValue, Unsupported


class Listener(Agent):
    """Remembers what it hears."""

    def on_message(self, message: Message) -> None:
        raise AssertionError("a refused message was delivered")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"ack": "handled"}, 'ack="accepted" only'),
        ({"ack": None}, 'ack="accepted" only'),
        ({"mailbox": True}, "no mailboxes"),
        ({"proof": "signed"}, 'proof="channel" only'),
    ],
)
async def test_a_level_that_this_release_lacks_is_refused_by_name(how: dict[str, Any], text: str) -> None:
    async with Node() as node:
        (agent,) = await node.spawn(Listener)
        with pytest.raises(Unsupported, match=text):
            await agent.send(agent.id, "x", **how)


async def test_a_capability_as_recipient_is_refused_and_the_way_out_named() -> None:
    async with Node() as node:
        with pytest.raises(Unsupported, match="DiscoveryService"):
            await node.send(Capability("echo"), "x")


async def test_a_misspelt_level_is_a_wrong_value() -> None:
    async with Node() as node:
        (agent,) = await node.spawn(Listener)
        with pytest.raises(InvalidValue, match="acepted"):
            await agent.send(agent.id, "x", ack="acepted")
