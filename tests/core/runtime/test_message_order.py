"""Order between two nodes, over a real connection: a message after a publication that its reader gets, too, and an
answer after what its handler sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, DiscoveryQuery, Message, Node
from converge.testing.fixtures import wait_until

ROUNDS, READERS, SAID = 60, 10, 40
LARGE = "x" * 60_000


class Reader(Agent):
    """Keeps the numbers that it was sent; where it is asked, it says some to the asker's agent first."""

    topics = ("news",)

    def __init__(self) -> None:
        self.numbers: list[int] = []

    async def on_message(self, message: Message) -> Any:
        told = message.payload
        if (to := told.get("say to")) is None:
            self.numbers.append(told["number"])
            return None
        for number in range(SAID):
            await self.send(to, {"number": number, "filler": LARGE if number % 7 == 0 else ""}, ack=told["ack"])
        return "said"


@asynccontextmanager
async def two_nodes(tmp_path: Path) -> AsyncIterator[tuple[Node, Node]]:
    """Two nodes on one store."""
    where: dict[str, Any] = {"store": f"file:{tmp_path / 's.db'}", "plugins": ["tcp"], "grace_sec": 0.0}
    async with Node(**where, transport="tcp://127.0.0.1:0") as one, Node(**where, transport="tcp://127.0.0.1:0") as two:
        yield one, two


@pytest.mark.parametrize("ack", [None, "accepted"])
async def test_a_message_to_a_reader_does_not_overtake_a_publication_before_it(ack: str | None, tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (near, far):
        (writer,) = await near.spawn(Agent)
        readers = await far.spawn(Reader, count=READERS)

        async def are_known() -> bool:
            return len(await near.discovery.query(DiscoveryQuery(topics=["news"]), refresh_from_store=True)) == READERS

        await wait_until(are_known, timeout=30, what="all are known")
        for number in range(0, 2 * ROUNDS, 2):
            filler = LARGE if number % 6 == 0 else ""  # what takes longer to decode
            await writer.publish("news", {"number": number, "filler": filler})
            await writer.send(readers[-1].id, {"number": number + 1}, ack=ack)
        await wait_until(lambda: len(readers[-1].numbers) == 2 * ROUNDS, timeout=60)
        assert readers[-1].numbers == list(range(2 * ROUNDS))


@pytest.mark.parametrize("ack", [None, "accepted"])
async def test_an_answer_does_not_overtake_what_its_handler_sent_before_it(ack: str | None, tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (near, far):
        (own,), (there,) = await near.spawn(Reader), await far.spawn(Reader)
        with anyio.fail_after(60):
            assert await near.ask(there.id, {"say to": own.id, "ack": ack}) == "said"
            await near.send(own.id, {"number": SAID}, ack="handled")
        assert own.numbers == list(range(SAID + 1)), "what the handler had sent was there when its answer came"
