"""Whatever the other side of a link waits for, this side goes on: neither a receive loop nor an agent's loop ever waits
for another party's network, look-up or store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, Message, Node
from converge.contracts.transport import Channel
from converge.errors import MessageError
from converge.runtime.network import link as links
from converge.testing.fixtures import wait_until
from converge_transport_tcp.sockets import SocketChannel

AT_ONCE = 40
LARGE = "x" * 200_000


class Echo(Agent):
    """Answers with what it was sent."""

    async def on_message(self, message: Message) -> object:
        return message.payload


@asynccontextmanager
async def three(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, Node]]:
    """Three nodes on one store."""
    where: dict[str, Any] = {"store": f"file:{tmp_path / 's.db'}", "plugins": ["tcp"], "grace_sec": 0.0}
    async with (
        Node(**where, transport="tcp://127.0.0.1:0") as one,
        Node(**where, transport="tcp://127.0.0.1:0") as two,
        Node(**where, transport="tcp://127.0.0.1:0") as three_,
    ):
        yield one, two, three_


def stalled(gate: anyio.Event, node: Node, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return the call of channels, which waits at the gate where the channel is the node's."""
    assert node.network.links is not None
    own = [link._secured._channel for link in node.network.links.all()]

    async def wait(self: Any, *arguments: Any, **more: Any) -> Any:
        if self in own:
            await gate.wait()
        return await call(self, *arguments, **more)

    return wait


def stall_here(gate: anyio.Event, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return the call of one object, which waits at the gate."""

    async def wait(*arguments: Any, **more: Any) -> Any:
        await gate.wait()
        return await call(*arguments, **more)

    return wait


STALLS = {
    "its connection takes nothing that it sends": ("channel", "send"),
    "it reads nothing": ("channel", "receive"),
    "its store does not answer reads": ("store", "scan"),
    "its store does not answer writes": ("store", "commit"),
    "its look-ups do not end": ("routes", "refresh"),
}


@pytest.mark.parametrize("stall", STALLS, ids=str)
async def test_a_peer_whose_await_never_ends_costs_others_nothing(
    stall: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with three(tmp_path) as (near, far, other):
        (a,), (b,), (c,) = await near.spawn(Echo), await far.spawn(Echo), await other.spawn(Echo)
        for node, agents in ((near, (b, c)), (far, (a, c)), (other, (a, b))):
            for agent in agents:
                assert await node.ask(agent.id, 1) == 1
        owner, name = STALLS[stall]
        gate, ended = anyio.Event(), list[str]()
        if owner == "channel":
            monkeypatch.setattr(SocketChannel, name, stalled(gate, far, getattr(SocketChannel, name)))
        else:
            one = far.handle.store if owner == "store" else far.network.post.routes
            monkeypatch.setattr(one, name, stall_here(gate, getattr(one, name)))

        async def ask(node: Node, to: str) -> None:
            try:
                await node.ask(to, LARGE, timeout=3)
                ended.append("answered")
            except MessageError as error:
                ended.append(type(error).__name__)

        async with anyio.create_task_group() as group:
            for _ in range(AT_ONCE):  # both directions, more than any buffer holds
                group.start_soon(ask, near, b.id)
                group.start_soon(ask, far, a.id)
            for number in range(20):
                with anyio.fail_after(10):
                    assert await near.ask(c.id, number) == number
                    assert await other.ask(a.id, number) == number
        assert len(ended) == 2 * AT_ONCE, "each ended by its deadline"
        gate.set()
        with anyio.fail_after(30):  # the link is as good as before, or made anew
            assert await near.ask(b.id, "again", timeout=25) == "again"
            assert await far.ask(a.id, "again", timeout=25) == "again"


async def test_a_link_whose_peer_takes_nothing_is_broken_and_its_messages_fail_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge.runtime.network.links.WRITE_SEC", 0.3)
    monkeypatch.setattr("converge.runtime.network.links.WATCH_SEC", 0.05)
    async with three(tmp_path) as (near, far, _):
        (b,) = await far.spawn(Echo)
        assert await near.ask(b.id, 1) == 1
        assert near.network.links is not None
        (before,) = [link for link in near.network.links.all() if link.peer == far.identity.public_key]
        gate = anyio.Event()
        monkeypatch.setattr(SocketChannel, "receive", stalled(gate, far, SocketChannel.receive))
        async with anyio.create_task_group() as group:

            async def fill() -> None:
                for _ in range(AT_ONCE):
                    await near.send(b.id, LARGE, ack=None, timeout=30)

            group.start_soon(fill)
            await wait_until(lambda: before.is_closed, timeout=20, what="the link is broken")
            group.cancel_scope.cancel()
        assert before.why == "the peer has not taken what was written within 0.3 s"
        gate.set()


def test_control_queues_hold_a_whole_window() -> None:
    assert links.CONTROL >= links.WINDOW and links.CONTROL_BYTES >= links.WINDOW_BYTES
    assert issubclass(SocketChannel, Channel)
