"""The longest payload is the same for each kind of message, signed or not, in one process as across two; one byte more
is refused by the same error before anything leaves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from converge import Agent, Capability, Message, Node
from converge.errors import HandlerFailed, MessageTooLarge
from converge.model.envelope import MAIL_BYTES, PAYLOAD_BYTES

Pair = tuple[Agent, Agent]


def of_bytes(size: int) -> str:
    """Return a text whose JSON has this size."""
    return "x" * (size - 2)


class Echo(Agent):
    """Answers with as many bytes as it is asked for, else with how many came."""

    topics = ("news",)
    capabilities = ("echo",)

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        return of_bytes(message.payload) if type(message.payload) is int else len(message.payload) + 2


@pytest.fixture(params=["", "tcp://127.0.0.1:0", "ws://127.0.0.1:0"], ids=["here", "tcp", "ws"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """A sender and a reader: of one node, or of two."""
    url = f"file:{tmp_path / 'state.db'}" if request.param else "memory:"
    settings = {"transport": request.param, "plugins": [request.param.partition(":")[0]]} if request.param else {}
    async with Node(store=url, poll_sec=0.1, grace_sec=0.0, **settings) as one:
        (sender,) = await one.spawn(Agent)
        if not request.param:
            (reader,) = await one.spawn(Echo)
            yield sender, reader
            return
        async with Node(store=url, poll_sec=0.1, grace_sec=0.0, **settings) as two:
            (reader,) = await two.spawn(Echo)
            yield sender, reader


async def test_the_longest_payload_is_one_wherever_it_goes(pair: Pair) -> None:
    sender, reader = pair
    longest, over = of_bytes(PAYLOAD_BYTES), of_bytes(PAYLOAD_BYTES + 1)
    why = rf"a payload of {PAYLOAD_BYTES + 1:,} bytes; the limit is {PAYLOAD_BYTES:,}"
    for proof in ("channel", "signed"):
        assert (await sender.send(reader.id, longest, proof=proof, timeout=60)).level == "accepted"
        for ack in ("accepted", "handled", None):
            with pytest.raises(MessageTooLarge, match=why):
                await sender.send(reader.id, over, ack=ack, proof=proof, timeout=60)
    assert await sender.ask(reader.id, longest, timeout=60) == PAYLOAD_BYTES
    assert await sender.ask(Capability("echo"), longest, timeout=60) == PAYLOAD_BYTES
    assert [(one.accepted, one.error) for one in await sender.publish("news", longest, timeout=60)] == [(1, "")]
    for call in (sender.ask(reader.id, over), sender.ask(Capability("echo"), over), sender.publish("news", over)):
        with pytest.raises(MessageTooLarge, match=why):
            await call


async def test_an_answer_has_the_same_limit(pair: Pair) -> None:
    sender, reader = pair
    assert len(await sender.ask(reader.id, PAYLOAD_BYTES, timeout=60)) + 2 == PAYLOAD_BYTES
    why = rf"MessageTooLarge: an answer of {PAYLOAD_BYTES + 1:,} bytes; the limit is {PAYLOAD_BYTES:,}"
    with pytest.raises(HandlerFailed, match=why):
        await sender.ask(reader.id, PAYLOAD_BYTES + 1, timeout=60)


async def test_mail_has_a_lower_limit_and_is_refused_by_the_same_error(pair: Pair) -> None:
    sender, reader = pair
    assert (
        await sender.send(reader.id, of_bytes(MAIL_BYTES), mailbox=True, ack="handled", timeout=60)
    ).level == "handled"
    with pytest.raises(MessageTooLarge, match=rf"a payload of {MAIL_BYTES + 1:,} bytes; the limit of a mailbox"):
        await sender.send(reader.id, of_bytes(MAIL_BYTES + 1), mailbox=True)
