"""Signed messages that leave together share a signature, and arrive as each would alone."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from converge import Agent, Message, Node
from converge.model.envelope import CHAINS, PINGS, TOGETHER
from converge.services.messages.under_way import TOGETHER_BYTES

COUNT = 100


class Reader(Agent):
    """Keeps who has sent it what."""

    def __init__(self) -> None:
        self.got: list[tuple[str, object]] = []

    async def on_message(self, message: Message) -> None:
        self.got.append((message.sender, message.payload))


def node_at(path: Path) -> Node:
    """Return a node on the store, not yet entered."""
    return Node(store=f"file:{path / 's.db'}", transport="tcp://127.0.0.1:0", poll_sec=0.1, grace_sec=0)


@pytest.mark.parametrize("features", [CHAINS | PINGS | TOGETHER, CHAINS | PINGS], ids=["a peer", "an older peer"])
async def test_messages_that_leave_together_arrive_in_order_with_few_signatures(tmp_path: Path, features: int) -> None:
    async with node_at(tmp_path) as one, node_at(tmp_path) as other:
        (reader,) = await other.spawn(Reader)
        senders = await one.spawn(Reader, 2)
        await one.ask(reader.id, "first")
        reader.got.clear()
        link = one.network.links.open(other.identity.public_key) if one.network.links else None
        assert link is not None and link.features == CHAINS | PINGS | TOGETHER
        link.features = features
        payloads = [n if n % 10 else "x" * (TOGETHER_BYTES + n) for n in range(COUNT)]  # some are signed alone
        sent: dict[str, list[object]] = {sender.id: [] for sender in senders}

        async def send(sender: Reader, payload: object) -> None:
            sent[sender.id].append(payload)
            await sender.send(reader.id, payload, proof="signed")

        async with anyio.create_task_group() as group:
            for payload in payloads:
                for sender in senders:
                    group.start_soon(send, sender, payload)
        await one.send(reader.id, "last", ack="handled", proof="signed")
        for sender in senders:
            assert [payload for by, payload in reader.got if by == sender.id] == sent[sender.id]
        assert len(reader.got) == 2 * COUNT + 1
        verified = other.network.received.together.verified
        assert (0 < verified < COUNT) if features & TOGETHER else not verified
