"""Two nodes of one process: what their links do to the code around them, and what strangers and outages do to their links."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from converge import Agent, Message, Node


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """A file and TCP serve both."""
    return str(request.param)


class Echo(Agent):
    """Answers with what it was sent."""

    async def on_message(self, message: Message) -> object:
        return message.payload


def node_at(url: str, **settings: object) -> Node:
    """Return a node on the store, not yet entered."""
    return Node(store=url, transport="tcp://127.0.0.1:0", plugins=["tcp"], poll_sec=0.1, grace_sec=0.0, **settings)  # type: ignore[arg-type]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of the test's own."""
    return f"file:{tmp_path / 'state.db'}"


@pytest.fixture
async def other(url: str) -> AsyncIterator[Agent]:
    """An agent on another node."""
    async with node_at(url) as node:
        (agent,) = await node.spawn(Echo)
        yield agent


async def test_an_error_in_the_block_of_a_node_with_links_is_not_swallowed(url: str, other: Agent) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with node_at(url) as node:
            assert await node.ask(other.id, 1) == 1
            raise LookupError("mine")
    assert caught.group_contains(LookupError, match="mine")


async def test_agents_that_have_just_started_are_heard_at_once(url: str, other: Agent) -> None:
    """The recipient knows none of them, and may not read the store for each."""
    for number in range(8):
        async with node_at(url) as node:
            (own,) = await node.spawn(Echo)
            assert await own.ask(other.id, number) == number
